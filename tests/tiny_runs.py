"""Small images and small networks, trained as a user trains them; each is made once per test session."""

import atexit
import os
import shutil
import signal
import tempfile
from functools import cache
from pathlib import Path
from typing import Any

import lightning as L
import numpy as np
import torch

from bnood.data.synthetic import synthetic_images
from bnood.training.train import train

SIZE = 16  # pixels: a quarter of the work of the real 32
TRAIN, VALIDATION, TEST, OOD = 256, 100, 120, 80
STEPS = TRAIN // 64  # per epoch


@cache
def data_root() -> Path:
    """A data root with the in-distribution set ``tiny`` and the OOD sets ``marks`` and ``grounds``."""
    root = Path(tempfile.mkdtemp(prefix="tiny-runs-"))
    atexit.register(shutil.rmtree, root, ignore_errors=True)
    tiny = (("tiny", "shapes", "train", TRAIN + VALIDATION), ("tiny", "shapes", "test", TEST))
    for name, source, split, count in (*tiny, ("marks", "digits", "test", OOD), ("grounds", "textures", "test", OOD)):
        images = synthetic_images(source, split, count=count)
        write_set(root / name / f"{split}.npz", images.images[:, ::2, ::2], images.labels)
    return root


def write_set(path: Path, images: np.ndarray, labels: np.ndarray | None = None) -> Path:
    """An .npz archive as users write it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    np.savez(path, images=images, **({} if labels is None else {"labels": labels}))
    return path


def training_arguments(runs: Path, name: str, *more: str) -> list[str]:
    """A command line of ``scripts/train.py``: two epochs of four steps each."""
    return [
        *("--runs", str(runs), "--name", name, "--data.root", str(data_root()), "--data.in_distribution", "tiny"),
        *("--data.image_size", str(SIZE), "--data.validation", str(VALIDATION), "--data.train_count", str(TRAIN)),
        *("--data.batch_size", "64", "--data.ood", "[marks, grounds]", "--model.depth", "20", "--model.width", "8"),
        *("--model.groups", "4", "--trainer.max_epochs", "2", "--trainer.precision", "32-true", "--no-wandb"),
        *("--trainer.enable_progress_bar", "false", *more),
    ]


def evaluation_arguments(*more: str) -> list[str]:
    """A command line of ``scripts/eval_ood.py``, all conditions, few images."""
    return [
        *("--statistics", "running,batch:16,batch:16@0.5,recalibrated", "--shuffles", "2", "--resamples", "50"),
        *("--calibration_images", "64", "--id_count", "60", "--no-wandb", *more),
    ]


def trained(norm: str = "bn") -> Path:
    """The folder of a trained run; for reading only."""
    return _trained(norm)


@cache  # which would take trained() and trained("bn") for two
def _trained(norm: str) -> Path:
    return train(training_arguments(data_root() / "runs", norm, "--model.norm", norm))


def copy_of_run(target: Path, norm: str = "bn") -> Path:
    """A copy of :func:`trained` that a test may spoil."""
    shutil.copytree(trained(norm), target)
    return target


def weights(run: Path) -> dict[str, torch.Tensor]:
    """The state dict in a run's checkpoint."""
    return checkpoint(run)["state_dict"]


def checkpoint(run: Path) -> dict[str, Any]:
    """The content of a run's checkpoint."""
    return torch.load(run / "checkpoints" / "last.ckpt", weights_only=True)


def equal_weights(first: Path, second: Path) -> bool:
    """Whether two runs have the same weights and buffers, bit for bit."""
    a, b = weights(first), weights(second)
    return a.keys() == b.keys() and all(torch.equal(a[key], b[key]) for key in a)


class KillProcess(L.Callback):
    """A power cut: kills the process in the middle of an epoch."""

    def __init__(self, epoch: int, batch: int = 1) -> None:
        self.epoch, self.batch = epoch, batch

    def on_train_batch_end(self, trainer: L.Trainer, pl_module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        if (trainer.current_epoch, batch_idx) == (self.epoch, self.batch):
            os.kill(os.getpid(), signal.SIGKILL)
