"""Short segments of training to be timed: a bare loop, this project's way, and a conventional pipeline."""

import contextlib
import logging
import os
import time
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import lightning as L
import numpy as np
import torch
from lightning.pytorch.loggers import CSVLogger
from PIL import Image
from torch import Tensor
from torch.nn import functional as F
from torch.utils.data import DataLoader, Dataset
from torchvision import transforms

from bnood.data.datamodule import ImageDataModule
from bnood.data.image_set import ImageSet
from bnood.training.classifier import Classifier
from bnood.training.train import TrainingCLI

# What scripts/train.py is measured with beyond its defaults.
TRAINING_DEFAULTS: dict[str, Any] = {
    "max_epochs": 1, "precision": "bf16-mixed", "accelerator": "cpu", "devices": 1, "num_sanity_val_steps": 0,
    "enable_model_summary": False, "log_every_n_steps": 20, "enable_autolog_hparams": False,
}  # fmt: skip


def random_images(name: str, count: int, seed: int, classes: int = 10) -> ImageSet:
    """Random pixels of CIFAR's size, labelled in turn."""
    images = np.random.RandomState(seed).randint(0, 256, (count, 32, 32, 3), dtype=np.uint8)
    return ImageSet(name, images, np.arange(count, dtype=np.int64) % classes)


class StepClock(L.Callback):
    """The seconds from the end of the last warm-up step to the end of the last step of an epoch."""

    def __init__(self, warmup: int) -> None:
        self.warmup, self.started, self.seconds = warmup, 0.0, 0.0

    def on_train_batch_end(self, trainer: Any, pl_module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        if batch_idx + 1 == self.warmup:
            self.started = time.perf_counter()
        elif trainer.is_last_batch:
            self.seconds = time.perf_counter() - self.started


class TrainingSegments:
    """Short segments of training in several ways, each ``warmup + steps`` steps of a fresh network.

    Every method returns images per second, over the steps after the warm-up.
    """

    def __init__(self, folder: Path, warmup: int, steps: int, batch_size: int, width: int) -> None:
        self.folder, self.warmup, self.steps, self.batch_size, self.width = folder, warmup, steps, batch_size, width
        self.count = 0
        self.images = random_images("images", (warmup + steps) * batch_size, seed=0)
        validation = random_images("validation", 10, seed=1)
        assert self.images.labels is not None and validation.labels is not None
        np.savez(
            folder / "images.npz",
            images=np.concatenate([self.images.images, validation.images]),
            labels=np.concatenate([self.images.labels, validation.labels]),
        )

    def bare(self) -> float:
        """A PyTorch loop over batches that are ready: normalised, channels_last, no augmentation, no logging."""
        network = Classifier(width=self.width).network.to(memory_format=torch.channels_last)
        optimizer = torch.optim.SGD(network.parameters(), 0.1, momentum=0.9, nesterov=True, weight_decay=5e-4)
        assert self.images.labels is not None
        images = torch.from_numpy(self.images.images).split(self.batch_size)
        ready = [((x.float() - 127.5) / 63.75).permute(0, 3, 1, 2) for x in images]
        assert all(x.is_contiguous(memory_format=torch.channels_last) for x in ready)
        started = 0.0
        for step, (x, y) in enumerate(
            zip(ready, torch.from_numpy(self.images.labels).split(self.batch_size), strict=True)
        ):
            if step == self.warmup:
                started = time.perf_counter()
            optimizer.zero_grad()
            with torch.autocast("cpu", torch.bfloat16):
                loss = F.cross_entropy(network(x), y)
            loss.backward()
            optimizer.step()
        return self._rate(time.perf_counter() - started)

    def bnood(self, norm: str = "bn", memory_format: str = "auto") -> float:
        """Training as ``scripts/train.py`` does it: augmentation, metrics, CSV log, progress bar, checkpoint."""
        self.count += 1
        with _drawn_to_nowhere():
            cli = self._cli(norm, memory_format)
        return self._timed(cli.trainer, cli.model, cli.datamodule)

    def _cli(self, norm: str, memory_format: str) -> TrainingCLI:
        return TrainingCLI(
            Classifier,
            ImageDataModule,
            run=False,
            args=[
                *("--data.in_distribution", str(self.folder / "images.npz"), "--data.validation", "10"),
                *("--data.batch_size", str(self.batch_size), "--model.width", str(self.width)),
                *("--model.norm", norm, "--model.memory_format", memory_format, "--no-wandb"),
                *("--runs", str(self.folder), "--name", f"segment-{self.count}"),
            ],
            seed_everything_default=0,
            save_config_callback=None,
            auto_configure_optimizers=False,
            trainer_defaults=TRAINING_DEFAULTS,
        )

    def conventional(self, workers: int) -> float:
        """Lightning with torchvision's per-image transforms on PIL images, float32, logging each step."""
        with _drawn_to_nowhere():
            trainer = L.Trainer(
                **{**TRAINING_DEFAULTS, "precision": "32-true"},
                logger=CSVLogger(self.folder, name="conventional"),
                enable_checkpointing=False,
            )
        loader = DataLoader(PerImage(self.images), self.batch_size, shuffle=True, num_workers=workers, drop_last=True)
        return self._timed(trainer, Conventional(self.width), loader)

    def _timed(self, trainer: L.Trainer, model: L.LightningModule, data: Any) -> float:
        clock = StepClock(self.warmup)
        trainer.callbacks.append(clock)  # type: ignore[attr-defined]
        with _drawn_to_nowhere():
            trainer.fit(model, data)
        return self._rate(clock.seconds)

    def _rate(self, seconds: float) -> float:
        return self.steps * self.batch_size / seconds


class PerImage(Dataset[tuple[Tensor, int]]):
    """The images one by one, as torchvision's sets give them, with the usual transforms of CIFAR training."""

    def __init__(self, images: ImageSet) -> None:
        assert images.labels is not None
        self.images, self.labels = images.images, images.labels.tolist()
        steps = [transforms.RandomCrop(32, 4), transforms.RandomHorizontalFlip(), transforms.ToTensor()]
        self.transform = transforms.Compose([*steps, transforms.Normalize((0.5,) * 3, (0.25,) * 3)])

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        return self.transform(Image.fromarray(self.images[index])), self.labels[index]


class Conventional(L.LightningModule):
    """The same network and optimiser, trained as tutorials do."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.network = Classifier(width=width).network

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        logits = self.network(batch[0])
        loss = F.cross_entropy(logits, batch[1])
        self.log("loss", loss, prog_bar=True)
        self.log("accuracy", (logits.argmax(dim=1) == batch[1]).float().mean(), prog_bar=True)
        return loss

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), 0.1, momentum=0.9, nesterov=True, weight_decay=5e-4)


@contextlib.contextmanager
def _drawn_to_nowhere() -> Iterator[None]:
    """Let progress bars draw as on a terminal (that is part of what they cost), but out of sight; no advice either."""
    for logger in ("lightning.pytorch", "lightning.fabric"):
        logging.getLogger(logger).setLevel(logging.ERROR)
    before = {name: os.environ.get(name) for name in ("FORCE_COLOR", "TERM")}
    os.environ.update(FORCE_COLOR="1", TERM="xterm")
    try:
        with (
            open(os.devnull, "w") as nowhere,
            contextlib.redirect_stdout(nowhere),
            contextlib.redirect_stderr(nowhere),
            warnings.catch_warnings(),
        ):
            warnings.simplefilter("ignore")
            yield
    finally:
        for name, value in before.items():
            os.environ.pop(name) if value is None else os.environ.update({name: value})
