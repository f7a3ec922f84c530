"""What no training can do, though the types of its config allow it: refused before anything is written."""

import re
from pathlib import Path
from typing import Any

import torch

from bnood.data.datamodule import ImageDataModule, channel_constants
from bnood.errors import UserError
from bnood.training.classifier import Classifier
from bnood.training.command_line import dotted

# Numbers of the section trainer that need not be above 0. Lightning takes others too, and trains nothing or fails late.
_MAY_BE_0 = ("min_epochs", "min_steps", "log_every_n_steps", "limit_val_batches", "num_sanity_val_steps",
             "reload_dataloaders_every_n_epochs", "gradient_clip_val", "overfit_batches")  # fmt: skip
_MAY_BE_MINUS_1 = ("max_epochs", "max_steps", "devices", "num_sanity_val_steps")
_INSTEAD = {
    "logger": "runs are logged to --runs, and to W&B by the section wandb",
    "default_root_dir": "runs are written to --runs",
    **dict.fromkeys(("fast_dev_run", "overfit_batches"), "use --trainer.max_epochs 1 --data.train_count 256"),
    **dict.fromkeys(("gradient_clip_val", "gradient_clip_algorithm"), "use --model.clip_gradient_norm"),
}
# What decides the weights: all of the sections model and data but for these, and of the section trainer only those.
# The images themselves are compared, not their name: a folder may have moved.
_FREE = {"model.compile", "model.memory_format", "data.root", "data.ood", "data.download", "data.evaluation_batch_size",
         "data.in_distribution", "data.seed"}  # fmt: skip
_DECIDING = {"seed_everything", "trainer.max_epochs", "trainer.max_steps", "trainer.precision", "trainer.num_nodes",
             "trainer.accumulate_grad_batches", "trainer.limit_train_batches", "trainer.sync_batchnorm"}  # fmt: skip


def check_config(config: Any, own_command_line: bool) -> None:
    """Raise :class:`UserError` for values that Lightning takes, and then trains nothing or fails late.

    A training that another program calls has one device: the others' processes would run that program again.
    """
    seed, trainer = config.seed_everything, config.trainer
    if isinstance(seed, bool) or not 0 <= seed < 2**32:
        raise UserError(f"seed_everything is {str(seed).lower()}; expected a whole number from 0 to 4294967295")
    for key, instead in _INSTEAD.items():
        if trainer[key] or (key == "logger" and trainer[key] is not None):
            raise UserError(f"trainer.{key} can't be set: {instead}")
    if isinstance(trainer.strategy, str) and any(word in trainer.strategy for word in ("spawn", "fork", "notebook")):
        raise UserError(f"trainer.strategy is {trainer.strategy}: the trained network stays in its processes; try ddp")
    if trainer.max_epochs in (None, -1) and trainer.max_steps in (None, -1):
        raise UserError(f"trainer.max_epochs is {trainer.max_epochs}: the schedule needs a number of epochs from 1 up")
    for key, value in trainer.as_dict().items():
        try:
            number = float(value)
        except (TypeError, ValueError):
            continue  # none, "auto", a list of devices
        allowed = number > 0 or (number == 0 and key in _MAY_BE_0) or (number == -1 and key in _MAY_BE_MINUS_1)
        if not allowed and not isinstance(value, bool):
            raise UserError(f"trainer.{key} is {value}; expected a number above 0")
    devices = trainer.devices
    several = len(devices) > 1 if isinstance(devices, list) else str(devices).isdigit() and int(devices) > 1
    if own_command_line:
        return
    if several or trainer.num_nodes > 1:
        found = f"trainer.devices is {devices} on {trainer.num_nodes} node(s)"
        raise UserError(f"{found}: several devices need scripts/train.py with its own command line")
    if devices in ("auto", -1, "-1"):
        trainer.devices = 1


def check_data(data: ImageDataModule, model: Classifier, devices: int, kind: str = "cpu") -> None:
    """Raise :class:`UserError` unless labels are the network's, and such devices can share a batch and compile."""
    assert data.train_set is not None and data.validation_set is not None
    classes = model.hparams["num_classes"]
    largest = max(int(images.labels.max()) for images in (data.train_set, data.validation_set))  # type: ignore[union-attr]
    if largest >= classes:
        found = f"{data.in_distribution} has labels up to {largest}, but model.num_classes is {classes}"
        raise UserError(f"{found}: set --model.num_classes {largest + 1}")
    if model.hparams["compile"] == "reduce-overhead" and (kind != "cuda" or devices > 1):
        found = f"one CUDA device, not {devices} of type {kind}"
        raise UserError(f"model.compile is reduce-overhead, which takes {found}: set --model.compile true or false")
    share, rest = divmod(data.batch_size, devices)
    if rest:
        raise UserError(f"data.batch_size is {data.batch_size}, which {devices} devices can't share: choose a multiple")
    if share == 1 and model.norm == "bn":
        expected = f"expected at least {2 * devices}, or another --model.norm"
        raise UserError(f"data.batch_size {data.batch_size}: one image has no batch statistics; {expected}")
    if (count := len(data.validation_set)) < devices:
        raise UserError(f"data.validation is {count}: expected an image for each of {devices} devices")


def settings_that_decide(config: dict[str, Any]) -> dict[str, Any]:
    """What decides the weights, by dotted key: other values would be another training."""
    deciding = _DECIDING | {key for key, _ in dotted(config) if key.startswith(("model.", "data."))} - _FREE
    settings = {key: value for key, value in dotted(config) if key in deciding}
    callbacks = str(dict(dotted(config)).get("trainer.callbacks"))
    changing = re.search("Averaging|AccumulationScheduler|Finetuning|Pruning", callbacks)  # Lightning's, of weights
    return settings | {"trainer.callbacks": callbacks if changing else None}


def check_resumable(
    file: Path, content: dict[str, Any], settings: dict[str, Any], model: Classifier, data: ImageDataModule
) -> None:
    """Raise :class:`UserError` unless a training with these settings can go on from the checkpoint in a file."""
    before = content.get("settings")
    if "optimizer_states" not in content or not isinstance(before, dict):
        raise UserError(f"{file} holds a network, but no optimizer state: expected a last.ckpt of this version")
    for key, value in settings.items():  # labels come last
        if key in before and before[key] != value and key == "labels":
            raise UserError(f"data.in_distribution: {data.in_distribution} has other labels than {file} was trained on")
        if key in before and before[key] != value:
            there = "null" if before[key] is None else before[key]
            again = f"resume with --{key} {there}, or train anew under another --name"
            raise UserError(f"{key} is {value}, but {file} was trained with {before[key]}: {again}")
    if not _is_whole(content, model):
        raise UserError(f"{file} is damaged: expected weights, momentum and schedule of this network; train anew")
    assert data.train_set is not None
    for name, constant in zip(("image_mean", "image_std"), channel_constants(data.train_set.images), strict=True):
        if not torch.allclose(content["state_dict"][name], constant, rtol=1e-5):
            raise UserError(f"data.in_distribution: {data.in_distribution} has other images than {file} was trained on")


def _is_whole(content: dict[str, Any], model: Classifier) -> bool:
    """Whether all is there that Lightning would train on without, in silence, or miss in the middle."""
    try:
        (optimizer,), (scheduler,) = content["optimizer_states"], content["lr_schedulers"]
        momenta = (state["momentum_buffer"] for state in optimizer["state"].values())
        shapes = sorted(tuple(momentum.shape) for momentum in momenta if momentum is not None)
        in_step = scheduler["last_epoch"] == content["global_step"] and isinstance(content["epoch"], int)
    except (TypeError, ValueError, KeyError, AttributeError):
        return False
    weights = {name: value.shape for name, value in content["state_dict"].items()}
    same = weights == {name: value.shape for name, value in model.state_dict().items()}
    expected = sorted(tuple(p.shape) for p in model.parameters()) if model.hparams["momentum"] else []
    return in_step and same and shapes == expected
