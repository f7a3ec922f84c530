"""Whether a training can go on from a checkpoint: only as the training that it was."""

from pathlib import Path
from typing import Any

import torch

from bnood.data.datamodule import ImageDataModule, channel_constants
from bnood.errors import UserError
from bnood.training.classifier import Classifier
from bnood.training.run_folder import check_same_network
from bnood.training.yaml_files import dotted

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


def settings_that_decide(config: dict[str, Any]) -> dict[str, Any]:
    """What decides the weights, by dotted key: other values would be another training."""
    chosen = {f"trainer.{key}" for key in _TRAINER} | {"seed_everything"}
    return {
        key: value
        for key, value in dotted(config)
        if key in chosen or (key.startswith(("model.", "data.")) and key not in _FREE)
    }


def check_resumable(
    file: Path, content: dict[str, Any], settings: dict[str, Any], model: Classifier, data: ImageDataModule
) -> None:
    """Raise :class:`UserError` unless a training with these settings can go on from the checkpoint in a file."""
    check_same_network(file, content["hyper_parameters"], dict(model.hparams))
    before = content.get("settings")
    if "optimizer_states" not in content or not isinstance(before, dict):
        raise UserError(f"{file} holds a network, but no optimizer state: expected a last.ckpt of this version")
    if not _is_whole(content, model):
        raise UserError(f"{file} is damaged: expected weights, momentum and schedule of this network; train anew")
    for key, value in settings.items():
        if key in before and before[key] != value:
            raise UserError(
                f"{key} is {value}, but {file} was trained with {before[key]}: resume with --{key} {before[key]}, "
                "or train anew under another --name"
            )
    assert data.train_set is not None
    for name, constant in zip(("image_mean", "image_std"), channel_constants(data.train_set.images), strict=True):
        if not torch.allclose(content["state_dict"][name], constant, rtol=1e-5):
            raise UserError(f"data.in_distribution: {data.in_distribution} has other images than {file} was trained on")


def _is_whole(content: dict[str, Any], model: Classifier) -> bool:
    """Whether all is there that Lightning would train on without, in silence, or miss in the middle."""
    try:
        (optimizer,), (scheduler,) = content["optimizer_states"], content["lr_schedulers"]
        momenta = [state["momentum_buffer"] for state in optimizer["state"].values()]
        shapes = sorted(tuple(momentum.shape) for momentum in momenta if momentum is not None)
        in_step = scheduler["last_epoch"] == content["global_step"] and isinstance(content["epoch"], int)
    except (TypeError, ValueError, KeyError, AttributeError):
        return False
    weights = {name: value.shape for name, value in content["state_dict"].items()}
    same = weights == {name: value.shape for name, value in model.state_dict().items()}
    expected = sorted(tuple(p.shape) for p in model.parameters()) if model.hparams["momentum"] else []
    return in_step and same and shapes == expected
