"""What the types of a training config allow, but no training can do: refused before anything is written."""

from typing import Any

from bnood.data.datamodule import ImageDataModule
from bnood.errors import UserError
from bnood.training.classifier import Classifier

ABOVE_0 = 1e-9
# The least that each number of the section trainer may be: Lightning takes others, and trains nothing or fails late.
_LEAST = {
    "max_epochs": 1, "max_steps": 1, "min_epochs": 0, "min_steps": 0, "devices": 1, "num_nodes": 1,
    "accumulate_grad_batches": 1, "check_val_every_n_epoch": 1, "val_check_interval": ABOVE_0, "log_every_n_steps": 0,
    "limit_train_batches": ABOVE_0, "limit_val_batches": 0, "num_sanity_val_steps": 0, "gradient_clip_val": 0,
    "reload_dataloaders_every_n_epochs": 0,
}  # fmt: skip
_MAY_BE_MINUS_1 = ("max_epochs", "max_steps", "devices", "num_sanity_val_steps")
_INSTEAD = {
    "logger": "runs are logged to --runs, and to W&B by the section wandb",
    "default_root_dir": "runs are written to --runs",
    "fast_dev_run": "use --trainer.max_epochs 1 --data.train_count 256",
    "overfit_batches": "use --trainer.max_epochs 1 --data.train_count 256",
}


def check_config(config: Any, own_command_line: bool) -> None:
    """Raise :class:`UserError` for what the types of the config allow, but no training can do.

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
    for key, least in _LEAST.items():
        value = trainer[key]
        try:
            number = float(value)
        except (TypeError, ValueError):
            continue  # none, "auto", a list of devices
        if not isinstance(value, bool) and not number >= least and not (number == -1 and key in _MAY_BE_MINUS_1):
            raise UserError(
                f"trainer.{key} is {value}; expected {f'at least {least}' if least % 1 == 0 else 'above 0'}"
            )
    devices = trainer.devices
    several = len(devices) > 1 if isinstance(devices, list) else str(devices).isdigit() and int(devices) > 1
    if not own_command_line and (several or trainer.num_nodes > 1):
        raise UserError(
            f"trainer.devices is {devices}: several devices need scripts/train.py with its own command line"
        )
    if not own_command_line and devices in ("auto", -1, "-1"):
        trainer.devices = 1


def check_data(data: ImageDataModule, model: Classifier, devices: int) -> None:
    """Raise :class:`UserError` unless the labels are the network's, and each device gets a share of every batch."""
    assert data.train_set is not None and data.validation_set is not None
    classes = model.hparams["num_classes"]
    largest = max(int(images.labels.max()) for images in (data.train_set, data.validation_set))  # type: ignore[union-attr]
    if largest >= classes:
        found = f"{data.in_distribution} has labels up to {largest}, but model.num_classes is {classes}"
        raise UserError(f"{found}: set --model.num_classes {largest + 1}")
    share, rest = divmod(data.batch_size, devices)
    if rest:
        raise UserError(f"data.batch_size is {data.batch_size}, which {devices} devices can't share: choose a multiple")
    if share == 1 and model.norm == "bn":
        found = f"data.batch_size is {data.batch_size} on {devices} device(s): one image has no batch statistics"
        raise UserError(f"{found}; expected at least {2 * devices}, or another --model.norm")
    if len(data.validation_set) < devices:
        raise UserError(
            f"data.validation is {len(data.validation_set)}: expected an image for each of {devices} devices"
        )
