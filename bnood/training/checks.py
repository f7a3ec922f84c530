"""What the types of a training config allow, but no training can do: refused before anything is written."""

from typing import Any

from bnood.data.datamodule import ImageDataModule
from bnood.errors import UserError
from bnood.training.classifier import Classifier

# The least that each number of the section trainer may be: Lightning takes others, and trains nothing or fails late.
_LEAST = {
    "max_epochs": 1, "max_steps": 1, "min_epochs": 0, "min_steps": 0, "devices": 1, "num_nodes": 1,
    "accumulate_grad_batches": 1, "check_val_every_n_epoch": 1, "val_check_interval": 1e-9, "log_every_n_steps": 0,
    "limit_train_batches": 1e-9, "limit_val_batches": 0, "num_sanity_val_steps": 0, "gradient_clip_val": 0,
    "reload_dataloaders_every_n_epochs": 0,
}  # fmt: skip
_OFF = {"max_epochs": -1, "max_steps": -1, "devices": -1, "num_sanity_val_steps": -1}


def check_config(config: Any) -> None:
    """Raise :class:`UserError` for what the types of the config allow, but no training can do."""
    seed, trainer = config.seed_everything, config.trainer
    if isinstance(seed, bool) or not 0 <= seed < 2**32:
        raise UserError(f"seed_everything is {str(seed).lower()}; expected a whole number from 0 to 4294967295")
    for key in ("logger", "default_root_dir"):
        if trainer[key] is not None:
            raise UserError(f"trainer.{key} can't be set: runs are logged to --runs, and to W&B by the section wandb")
    for key in ("fast_dev_run", "overfit_batches"):
        if trainer[key]:
            raise UserError(f"trainer.{key} can't be set: use --trainer.max_epochs 1 --data.train_count 256")
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
        if not isinstance(value, bool) and not number >= least and number != _OFF.get(key):
            expected = "above 0" if least == 1e-9 else f"at least {least}"
            raise UserError(f"trainer.{key} is {value}; expected {expected}")


def take_one_device(trainer: Any) -> None:
    """A training that another program calls has one device: the others' processes would run that program again."""
    if trainer.devices in ("auto", -1, "-1"):
        trainer.devices = 1
    several = isinstance(trainer.devices, list) and len(trainer.devices) > 1
    if several or trainer.num_nodes > 1 or (str(trainer.devices).isdigit() and int(trainer.devices) > 1):
        raise UserError(
            f"trainer.devices is {trainer.devices}, trainer.num_nodes {trainer.num_nodes}: several devices need "
            "scripts/train.py with a command line of its own"
        )


def check_data(data: ImageDataModule, model: Classifier, devices: int) -> None:
    """Raise :class:`UserError` unless the labels are the network's, and each device gets a share of every batch."""
    assert data.train_set is not None and data.validation_set is not None
    classes = model.hparams["num_classes"]
    largest = max(int(images.labels.max()) for images in (data.train_set, data.validation_set))  # type: ignore[union-attr]
    if largest >= classes:
        raise UserError(
            f"{data.in_distribution} has labels up to {largest}, but model.num_classes is {classes}: "
            f"set --model.num_classes {largest + 1}"
        )
    share, rest = divmod(data.batch_size, devices)
    if rest:
        raise UserError(
            f"data.batch_size is {data.batch_size}, which {devices} devices can't share equally: choose a multiple"
        )
    if share == 1 and model.norm == "bn":
        raise UserError(
            f"data.batch_size is {data.batch_size} on {devices} device(s): one image has no batch statistics; expected "
            f"at least {2 * devices}, or another --model.norm"
        )
    if len(data.validation_set) < devices:
        raise UserError(
            f"data.validation is {len(data.validation_set)}: expected an image for each of {devices} devices"
        )
