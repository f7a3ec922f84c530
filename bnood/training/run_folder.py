"""A run's folder: where its files lie, and how its network is read back (without Lightning)."""

import json
import pickle
import warnings
import zipfile
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from bnood.errors import UserError
from bnood.networks.image_classifier import NETWORK_SETTINGS, ImageClassifier, build_network
from bnood.networks.network import Network
from bnood.training.yaml_files import read_yaml

CHECKPOINT = Path("checkpoints", "last.ckpt")


@dataclass
class Run:
    """One trained network and how it came about."""

    folder: Path  # runs/<name>
    config: dict[str, Any]  # config.yaml
    summary: dict[str, Any]  # summary.json; empty if training was interrupted
    classifier: ImageClassifier  # at its last checkpoint, float32, in evaluation mode, on the CPU

    def __post_init__(self) -> None:
        self.name, self.checkpoint = self.folder.name, self.folder / CHECKPOINT
        self.seed, self.norm = int(self.config["seed_everything"]), self.classifier.norm
        self.network = Network(self.classifier, name=self.name, norm=self.norm, seed=self.seed)


def newest_run(runs: Path) -> Path:
    """The folder in ``runs`` whose checkpoint was written last."""
    checkpoints = sorted(runs.glob(f"*/{CHECKPOINT}"), key=lambda path: path.stat().st_mtime)
    if not checkpoints:
        raise UserError(f"no run with a checkpoint in {runs}/: train one with scripts/train.py, or name it with --run")
    return checkpoints[-1].parent.parent


def load_run(folder: Path) -> Run:
    """Read a run back; UserError if a file is missing or unreadable, or the network another than the config says."""
    if not folder.is_dir():
        raise UserError(f"{folder}: no such run folder")
    config_file, checkpoint = folder / "config.yaml", folder / CHECKPOINT
    if not config_file.exists():
        raise UserError(f"{config_file} is missing: {folder} is not a run of scripts/train.py")
    config = read_config(config_file)
    if not checkpoint.exists():
        raise UserError(f"{checkpoint} is missing: the run has not finished its first epoch")
    return Run(folder, config, read_summary(folder), load_classifier(checkpoint, config["model"]))


def read_config(file: Path) -> dict[str, Any]:
    """A run's ``config.yaml``, with all that is read of it elsewhere. UserError for a wrong value."""
    config = read_yaml(file)
    right = {"seed_everything": int, "data": dict, "model": dict}
    if not all(isinstance(config.get(key), kind) for key, kind in right.items()):
        raise UserError(f"{file}: expected a number (seed_everything) and the sections data and model")
    data = config["data"]
    ood = data.get("ood")
    if not isinstance(data.get("in_distribution"), str) or not isinstance(ood, list) or not all(map(_is_text, ood)):
        raise UserError(f"{file}: expected under data a name (in_distribution) and a list of names (ood)")
    count, root = data.get("train_count"), data.get("root")
    if count is not None and (type(count) is not int or count < 1):
        raise UserError(f"{file}: data.train_count is {count!r}; expected a whole number from 1 up, or null")
    if root is not None and not _is_text(root):
        raise UserError(f"{file}: data.root is {root!r}; expected the path of a folder, or null")
    return config


def _is_text(value: object) -> bool:
    return isinstance(value, str)


def read_summary(folder: Path) -> dict[str, Any]:
    """``summary.json``; empty where there is none."""
    file, summary = folder / "summary.json", None
    if file.exists() and not file.is_file():
        raise UserError(f"{file} is no regular file; expected a mapping in JSON: remove it, or train again")
    with suppress(ValueError, RecursionError):
        summary = json.loads(file.read_text()) if file.exists() else {}
    if not isinstance(summary, dict):
        raise UserError(f"{file} is not readable as JSON; expected a mapping: remove it, or train again")
    return summary


def read_checkpoint(checkpoint: Path) -> dict[str, Any]:
    """The content of a checkpoint of this project, tensors on the CPU; its weights and settings are mappings."""
    if not checkpoint.is_file():
        raise UserError(f"{checkpoint}: {'it is no regular file' if checkpoint.exists() else 'no such checkpoint'}")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # torch's, about pickles of others: the error says enough
            content = torch.load(checkpoint, map_location="cpu", weights_only=True)
    except PermissionError:
        raise
    except (RuntimeError, pickle.UnpicklingError, EOFError, OSError, ValueError, TypeError, AttributeError,
            LookupError, zipfile.BadZipFile) as error:  # fmt: skip
        raise UserError(f"{checkpoint} is not a readable checkpoint (truncated or of another program)") from error
    if not isinstance(content, dict) or not {"state_dict", "hyper_parameters"} <= content.keys():
        raise UserError(f"{checkpoint} is not a checkpoint of bnood: it has no state_dict and hyper_parameters")
    weights, settings = content["state_dict"], content["hyper_parameters"]
    if not isinstance(weights, dict) or not all(
        isinstance(key, str) and isinstance(value, Tensor) and not value.is_complex() for key, value in weights.items()
    ):
        raise UserError(f"{checkpoint} is damaged: expected a mapping of names to real tensors as its state_dict")
    if not isinstance(settings, dict):
        raise UserError(f"{checkpoint} is damaged: expected a mapping as its hyper_parameters")
    return content


def check_same_network(checkpoint: Path, found: Mapping[str, Any], wanted: Mapping[str, Any]) -> None:
    """Raise :class:`UserError` unless the checkpoint's network is the one that the config describes."""
    # Checkpoints of before these two existed are of networks with what are their defaults now.
    found = {"activation": "relu", "norm_position": "before", **found}
    for key in NETWORK_SETTINGS:
        if key == "image_size" or (key == "groups" and wanted.get("norm") != "gn"):
            continue
        if key in wanted and found.get(key) != wanted[key]:
            holds = f"{checkpoint} holds a network with {key} {found.get(key)!r}"
            raise UserError(f"{holds}, but the config says {wanted[key]!r}")


def load_classifier(checkpoint: Path, model_config: dict[str, Any] | None = None) -> ImageClassifier:
    """The network in a checkpoint, float32, in evaluation mode; ``model_config`` is checked against it if given."""
    content = read_checkpoint(checkpoint)
    settings = content["hyper_parameters"]
    if model_config is not None:
        check_same_network(checkpoint, settings, model_config)
    try:
        # Weights are drawn first and then replaced; that must not move the caller's random numbers.
        with torch.random.fork_rng(devices=[]):
            network = build_network(settings)
        classifier = ImageClassifier(network, settings.get("norm", "bn"), settings.get("memory_format", "auto"))
        classifier.load_state_dict(content["state_dict"])  # copies: weights stored as float16 become float32
    except (UserError, RuntimeError) as error:
        reason = str(error) if isinstance(error, UserError) else "the weights do not fit the settings"
        raise UserError(f"{checkpoint} does not fit the network that its own settings describe: {reason}") from error
    classifier.network.to(memory_format=classifier.torch_memory_format())
    return classifier.eval()
