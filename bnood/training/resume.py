"""Whether a training can go on from a checkpoint: only as the training that it was."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch

from bnood.data.datamodule import ImageDataModule
from bnood.errors import UserError
from bnood.training.classifier import Classifier, image_constants
from bnood.training.run_folder import check_same_network, read_checkpoint
from bnood.training.yaml_files import dotted, read_yaml

# All of the sections model and data decides what is trained, but for these; of the section trainer only those do.
# The images themselves are compared, not their name: a folder may have moved.
_FREE = {
    "model.compile", "model.memory_format", "data.root", "data.ood", "data.download", "data.evaluation_batch_size",
    "data.in_distribution", "data.seed",
}  # fmt: skip
_TRAINER = (
    "max_epochs", "max_steps", "precision", "accumulate_grad_batches", "gradient_clip_val", "gradient_clip_algorithm",
    "limit_train_batches", "sync_batchnorm", "num_nodes",
)  # fmt: skip


def settings_that_decide(config: dict[str, Any], processes: int | None = None) -> dict[str, Any]:
    """What decides the weights, by dotted key: other values would be another training."""
    chosen = {f"trainer.{key}" for key in _TRAINER} | {"seed_everything"}
    found = {
        key: value
        for key, value in dotted(config)
        if not isinstance(value, dict) and key not in _FREE
        if key in chosen or key.startswith(("model.", "data."))
    }
    return found if processes is None else found | {"trainer.devices": processes}


def check_resumable(
    checkpoint: Path, settings: dict[str, Any], model: Classifier, data: ImageDataModule, finished: bool
) -> None:
    """Raise :class:`UserError` unless a training can go on from a checkpoint.

    Args:
        checkpoint: of the training so far.
        settings: of the training that is to go on (:func:`settings_that_decide`).
        model: as it will be trained.
        data: with its training images loaded.
        finished: whether the run's summary is written.
    """
    content = read_checkpoint(checkpoint)
    check_same_network(checkpoint, content["hyper_parameters"], dict(model.hparams))
    if "optimizer_states" not in content or "global_step" not in content:
        raise UserError(f"{checkpoint} holds a network, but no optimizer state: expected a last.ckpt of this program")
    for damage in _damages(content, model):
        raise UserError(f"{checkpoint} is damaged: {damage}; go back to another copy, or train anew")
    before = _settings_before(checkpoint, content)
    for key, value in settings.items():
        if key in before and before[key] != value:
            why = (
                ", and the learning rate's schedule spans them"
                if key in ("trainer.max_epochs", "trainer.max_steps")
                else ""
            )
            raise UserError(
                f"{key} is {value}, but {checkpoint} was trained with {before[key]}{why}: resume with --{key} "
                f"{before[key]}, or train anew under another --name"
            )
    for name, constant in zip(("image_mean", "image_std"), image_constants(data), strict=True):
        if not torch.allclose(content["state_dict"][name], constant, rtol=1e-5):
            raise UserError(
                f"data.in_distribution: {data.in_distribution} has other images than {checkpoint} was trained on"
            )
    done, limit = content["epoch"] + 1, settings["trainer.max_epochs"]
    if finished and limit is not None and 0 < limit <= done:
        raise UserError(f"{checkpoint} has finished all {done} epoch(s) of --trainer.max_epochs: nothing is left to do")


def _settings_before(checkpoint: Path, content: dict[str, Any]) -> dict[str, Any]:
    """Of the training so far: from the checkpoint, or (version 0.1) from the run's config as far as it is there."""
    settings = content.get("settings")
    if isinstance(settings, dict):
        return settings
    config = checkpoint.parents[1] / "config.yaml" if len(checkpoint.parents) > 1 else Path("config.yaml")
    if config.is_file():
        return settings_that_decide(read_yaml(config))
    return {f"model.{key}": value for key, value in content["hyper_parameters"].items()}


def _damages(content: dict[str, Any], model: Classifier) -> Iterator[str]:
    """What is wrong in a checkpoint and would train on in silence, or stop in the middle."""
    if not all(isinstance(content.get(key), int) for key in ("epoch", "global_step")):
        yield "expected whole numbers of epochs and steps"
    own = model.state_dict()
    if {name: value.shape for name, value in content["state_dict"].items()} != {k: v.shape for k, v in own.items()}:
        yield "its weights are not those of the network that its settings describe"
    try:
        (optimizer,) = content["optimizer_states"]
        momenta = [state["momentum_buffer"] for state in optimizer["state"].values()]
        shapes = sorted(tuple(momentum.shape) for momentum in momenta if momentum is not None)
        (scheduler,) = content["lr_schedulers"]
        steps = scheduler["last_epoch"]
    except (TypeError, ValueError, KeyError, AttributeError):
        yield "the state of its optimizer or of its schedule is not that of this program"
        return
    expected = sorted(tuple(parameter.shape) for parameter in model.parameters())
    if model.hparams["momentum"] and shapes != expected:
        yield "the optimizer has no momentum for some weights"
    if steps != content.get("global_step"):
        yield f"the schedule is at step {steps}, the training at {content.get('global_step')}"
