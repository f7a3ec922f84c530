"""A run's folder: where its files lie, and how its network is read back (without Lightning)."""

import json
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from bnood.errors import UserError
from bnood.networks.image_classifier import NETWORK_SETTINGS, ImageClassifier, build_network
from bnood.networks.network import Network
from bnood.networks.weights import are_weights, load_plain
from bnood.training.command_line import dotted, read_yaml

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


def load_run(folder: Path) -> Run:
    """Read a run back; UserError if a file is missing or damaged, or the network another than the config says."""
    if not folder.is_dir():
        raise UserError(f"{folder}: no such run folder")
    config_file, checkpoint = folder / "config.yaml", folder / CHECKPOINT
    for file, reason in ((config_file, "no run of scripts/train.py"), (checkpoint, "no epoch of this run is finished")):
        if not file.exists():
            raise UserError(f"{file} is missing: {reason}")
    config = read_config(config_file)
    return Run(folder, config, read_summary(folder), load_classifier(checkpoint, config))


def read_config(file: Path) -> dict[str, Any]:
    """A run's ``config.yaml``, with all that is read of it elsewhere. UserError for a wrong value."""
    config = read_yaml(file)
    seed, data = config.get("seed_everything"), config.get("data")
    if not isinstance(seed, int) or not isinstance(data, dict) or not isinstance(config.get("model"), dict):
        raise UserError(f"{file}: expected a number (seed_everything) and the sections data and model")
    ood, count = data.get("ood"), data.get("train_count")
    for key, fits, expected in (
        ("in_distribution", isinstance(data.get("in_distribution"), str), "the name of a set"),
        ("ood", isinstance(ood, list) and all(isinstance(each, str) for each in ood), "a list of names"),
        ("train_count", count is None or (type(count) is int and count > 0), "a whole number from 1 up, or null"),
        ("root", isinstance(data.get("root"), str | None), "the path of a folder, or null"),
    ):
        if not fits:
            raise UserError(f"{file}: data.{key} is {data.get(key)!r}; expected {expected}")
    return config


def read_summary(folder: Path) -> dict[str, Any]:
    file, summary = folder / "summary.json", None
    with suppress(ValueError, RecursionError):
        summary = json.loads(file.read_text()) if file.is_file() else {} if not file.exists() else None
    if not isinstance(summary, dict):
        raise UserError(f"{file} is no file with a mapping in JSON: remove it, or train again")
    return summary


def read_checkpoint(checkpoint: Path) -> dict[str, Any]:
    """The content of a checkpoint of this project, tensors on the CPU; UserError for another file."""
    if not checkpoint.is_file():
        raise UserError(f"{checkpoint}: {'it is no regular file' if checkpoint.exists() else 'no such checkpoint'}")
    content = load_plain(checkpoint)
    whole = isinstance(content, dict) and isinstance(content.get("hyper_parameters"), dict)
    if not whole or not are_weights(content.get("state_dict")):
        found = "truncated or of another program" if content is None else "not of bnood"
        expected = "real tensors by name (state_dict) and settings (hyper_parameters)"
        raise UserError(f"{checkpoint} is not a readable checkpoint ({found}): expected {expected}")
    return content


def load_classifier(checkpoint: Path, config: dict[str, Any]) -> ImageClassifier:
    """The network in a checkpoint, float32, in evaluation mode; UserError unless it is that of the run's ``config``."""
    content = read_checkpoint(checkpoint)
    settings, wanted = content["hyper_parameters"], config["model"]
    trained = content["settings"] if isinstance(content.get("settings"), dict) else {}
    for key, value in dotted(config):
        if key.startswith(("data.", "seed_everything")) and trained.get(key, value) != value:
            raise UserError(f"{checkpoint} was trained with {key} {trained[key]!r}, but the config says {value!r}")
    free = {"image_size"} if wanted.get("norm") == "gn" else {"image_size", "groups"}
    for key in NETWORK_SETTINGS:
        if key in wanted and key not in free and settings.get(key) != wanted[key]:
            found = f"{checkpoint} holds a network with {key} {settings.get(key)!r}"
            raise UserError(f"{found}, but the config says {wanted[key]!r}")
    try:
        # Weights are drawn first and then replaced; that must not move the caller's random numbers.
        with torch.random.fork_rng(devices=[]):
            network = build_network(settings)
        classifier = ImageClassifier(network, settings.get("norm", "bn"), settings.get("memory_format", "auto"))
        classifier.load_state_dict(content["state_dict"])  # copies: weights stored as float16 become float32
    except (UserError, RuntimeError) as error:
        raise UserError(f"{checkpoint} does not fit the network that its own settings describe: {error}") from error
    classifier.network.to(memory_format=classifier.torch_memory_format())
    return classifier.eval()
