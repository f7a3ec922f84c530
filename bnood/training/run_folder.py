"""A run's folder: where its files lie, and how its network is read back (without Lightning)."""

import json
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from bnood.errors import UserError
from bnood.networks.image_classifier import NETWORK_SETTINGS, ImageClassifier, build_network
from bnood.networks.network import Network
from bnood.networks.weights import are_weights, load_plain
from bnood.training.command_line import read_yaml

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
    seed, data = config.get("seed_everything"), config.get("data")
    if not isinstance(seed, int) or not isinstance(data, dict) or not isinstance(config.get("model"), dict):
        raise UserError(f"{file}: expected a number (seed_everything) and the sections data and model")
    name, ood, count, root = (data.get(key) for key in ("in_distribution", "ood", "train_count", "root"))
    if not isinstance(name, str) or not isinstance(ood, list) or not all(isinstance(each, str) for each in ood):
        raise UserError(f"{file}: expected under data a name (in_distribution) and a list of names (ood)")
    if count is not None and (type(count) is not int or count < 1):
        raise UserError(f"{file}: data.train_count is {count!r}; expected a whole number from 1 up, or null")
    if root is not None and not isinstance(root, str):
        raise UserError(f"{file}: data.root is {root!r}; expected the path of a folder, or null")
    return config


def read_summary(folder: Path) -> dict[str, Any]:
    """``summary.json``; empty where there is none."""
    file, summary = folder / "summary.json", None
    if not file.exists():
        return {}
    with suppress(ValueError, RecursionError):
        summary = json.loads(file.read_text()) if file.is_file() else None
    if not isinstance(summary, dict):
        raise UserError(f"{file} is no file with a mapping in JSON: remove it, or train again")
    return summary


def read_checkpoint(checkpoint: Path) -> dict[str, Any]:
    """The content of a checkpoint of this project, tensors on the CPU; UserError for another file."""
    if not checkpoint.is_file():
        raise UserError(f"{checkpoint}: {'it is no regular file' if checkpoint.exists() else 'no such checkpoint'}")
    content = load_plain(checkpoint)
    if content is None:
        raise UserError(f"{checkpoint} is not a readable checkpoint (truncated or of another program)")
    if not isinstance(content, dict) or not (
        are_weights(content.get("state_dict")) and isinstance(content.get("hyper_parameters"), dict)
    ):
        expected = "real tensors by name (state_dict) and settings (hyper_parameters)"
        raise UserError(f"{checkpoint} is not a checkpoint of bnood: expected {expected}")
    return content


def _check_same_network(checkpoint: Path, found: Mapping[str, Any], wanted: Mapping[str, Any]) -> None:
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
        _check_same_network(checkpoint, settings, model_config)
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
