"""A run's folder: where its files lie, how its files are written and how its network is read back."""

import json
import os
import pickle
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import yaml

from bnood.errors import UserError
from bnood.training.classifier import Classifier

CHECKPOINT = Path("checkpoints", "last.ckpt")


@dataclass(frozen=True)
class Run:
    """One trained network with everything that says how it came about.

    Attributes:
        folder: ``runs/<name>``.
        config: the complete configuration, as parsed from ``config.yaml``.
        summary: ``summary.json``; empty if training was interrupted.
        classifier: the network at its last checkpoint, in evaluation mode, on the CPU.
    """

    folder: Path
    config: dict[str, Any]
    summary: dict[str, Any]
    classifier: Classifier

    @property
    def name(self) -> str:
        return self.folder.name

    @property
    def seed(self) -> int:
        return int(self.config["seed_everything"])

    @property
    def checkpoint(self) -> Path:
        return self.folder / CHECKPOINT


def newest_run(runs: Path) -> Path:
    """The folder in ``runs`` whose checkpoint was written last."""
    checkpoints = sorted(runs.glob(f"*/{CHECKPOINT}"), key=lambda path: path.stat().st_mtime)
    if not checkpoints:
        raise UserError(f"no run with a checkpoint in {runs}/: train one with scripts/train.py, or name it with --run")
    return checkpoints[-1].parent.parent


def load_run(folder: Path) -> Run:
    """Read a run back.

    Raises:
        UserError: if the folder, its config or its checkpoint is missing or unreadable, or if the checkpoint
            is of another network than the config says.
    """
    if not folder.is_dir():
        raise UserError(f"{folder}: no such run folder")
    config_file, checkpoint = folder / "config.yaml", folder / CHECKPOINT
    if not config_file.exists():
        raise UserError(f"{config_file} is missing: {folder} is not a run of scripts/train.py")
    try:
        config = yaml.safe_load(config_file.read_text())
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise UserError(f"{config_file} is not readable as YAML: {' '.join(str(error).split())}") from error
    sections = ("data", "model", "seed_everything")
    if not isinstance(config, dict) or any(config.get(key) is None for key in sections):
        raise UserError(f"{config_file}: expected the sections seed_everything, data and model of a training config")
    data, right = config["data"], {"in_distribution": str, "ood": list}
    if not isinstance(config["model"], dict) or not isinstance(config["seed_everything"], int):
        raise UserError(f"{config_file}: expected a mapping under model and a whole number under seed_everything")
    if not isinstance(data, dict) or not all(isinstance(data.get(key), kind) for key, kind in right.items()):
        raise UserError(f"{config_file}: expected under data a name (in_distribution) and a list (ood)")
    if not checkpoint.exists():
        raise UserError(f"{checkpoint} is missing: the run has not finished its first epoch")
    classifier = load_classifier(checkpoint, config["model"])
    summary_file = folder / "summary.json"
    try:
        summary = json.loads(summary_file.read_text()) if summary_file.exists() else {}
    except ValueError as error:
        raise UserError(f"{summary_file} is not readable as JSON ({error}): remove it, or train again") from error
    if not isinstance(summary, dict):
        raise UserError(
            f"{summary_file} holds a {type(summary).__name__}, expected a mapping: remove it, or train again"
        )
    return Run(folder, config, summary, classifier)


def read_checkpoint(checkpoint: Path) -> dict[str, Any]:
    """The content of a Lightning checkpoint of this project, tensors on the CPU."""
    if not checkpoint.is_file():
        raise UserError(f"{checkpoint}: no such checkpoint")
    try:
        content = torch.load(checkpoint, map_location="cpu", weights_only=True)
    except PermissionError:
        raise
    except (RuntimeError, pickle.UnpicklingError, EOFError, OSError, ValueError, LookupError) as error:
        raise UserError(f"{checkpoint} is not a readable checkpoint (truncated or of another program)") from error
    if not isinstance(content, dict) or not {"state_dict", "hyper_parameters"} <= content.keys():
        raise UserError(f"{checkpoint} is not a checkpoint of bnood: it has no state_dict and hyper_parameters")
    return content


def check_same_network(checkpoint: Path, found: dict[str, Any], wanted: dict[str, Any]) -> None:
    """Raise :class:`UserError` unless the checkpoint's network is the one that the config describes."""
    # Checkpoints of before these two existed are of networks with what are their defaults now.
    found = {"activation": "relu", "norm_position": "before"} | found
    for key in ("architecture", "depth", "width", "norm", "groups", "num_classes", "activation", "norm_position"):
        if key == "groups" and wanted.get("norm") != "gn":
            continue
        if key in wanted and found.get(key) != wanted[key]:
            raise UserError(
                f"{checkpoint} holds a network with {key} {found.get(key)!r}, but the config says {wanted[key]!r}"
            )


def load_classifier(checkpoint: Path, model_config: dict[str, Any] | None = None) -> Classifier:
    """The classifier in a checkpoint, in evaluation mode; ``model_config`` is checked against it if given."""
    content = read_checkpoint(checkpoint)
    # LightningCLI adds how it instantiated the class, which is no argument of it.
    hyper_parameters = {k: v for k, v in content["hyper_parameters"].items() if not k.startswith("_")}
    if model_config is not None:
        check_same_network(checkpoint, hyper_parameters, model_config)
    try:
        classifier = Classifier(**{**hyper_parameters, "compile": False})
    except TypeError as error:
        raise UserError(f"{checkpoint} holds settings of another version of bnood: {error}") from error
    try:
        classifier.load_state_dict(content["state_dict"])
    except RuntimeError as error:
        raise UserError(f"{checkpoint} does not fit the network that its own settings describe") from error
    classifier.network.to(memory_format=classifier.torch_memory_format())
    return classifier.eval()


def write_beside(target: Path, write: Callable[[Path], object]) -> None:
    """Let ``write`` fill a file beside ``target``, then rename it: a reader never sees half a file.

    If writing fails (disk full, no permission), nothing is left behind.

    Raises:
        UserError: naming the file and the reason that the system gave.
    """
    partial = target.with_name(f".{target.stem}.{os.getpid()}.partial{target.suffix}")
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        write(partial)
        partial.replace(target)
    except OSError as error:
        raise UserError(f"{target} can't be written: {error.strerror or error}") from error
    finally:
        # Where the folder is none or may not be entered, there is nothing to remove, and unlink's own error would
        # hide the one that says so.
        with suppress(OSError):
            partial.unlink(missing_ok=True)
