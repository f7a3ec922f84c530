"""The LightningDataModule: one uint8 array, on the device where it fits; batches are cut and augmented there."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Literal

import lightning as L
import numpy as np
import torch
from torch import Tensor

from bnood.data.image_set import ImageSet
from bnood.data.reading import PADDING, crop_and_flip, draw_crops, padded
from bnood.data.sources import check_known, training_split
from bnood.errors import UserError

Batch = tuple[Tensor, Tensor]
Augmentation = Literal["crop_flip", "flip", "none"]

PADDINGS = {"crop_flip": PADDING, "flip": 0, "none": None}
DEVICE_SHARE = 0.25  # of an accelerator's free memory: images that need more stay in main memory


class Batches:
    """What Lightning takes for a DataLoader: a number of batches, and how to make them for an epoch."""

    def __init__(self, count: int, make: Callable[[], Iterator[Batch]]) -> None:
        self.count, self.make = count, make

    def __len__(self) -> int:
        return self.count

    def __iter__(self) -> Iterator[Batch]:
        return self.make()


def epoch_plan(images: int, batch_size: int, seed: int, epoch: int, first_step: int, padding: int | None) -> Tensor:
    """All that is drawn for one epoch, by the seed, the epoch and the step alone: a resumed run draws the same.

    int64 ``[steps, 1 or 4, batch_size]`` on the CPU: indices of images and, unless ``padding`` is None,
    :func:`draw_crops`. The last short batch, which would have other BatchNorm statistics, is left out.
    """
    steps = images // batch_size
    order = torch.from_numpy(np.random.RandomState([seed, epoch]).permutation(images)[: steps * batch_size])
    index = order.view(steps, 1, batch_size)
    if padding is None:
        return index
    generator = torch.Generator()
    first_seed = seed * 1_000_003 + first_step - 1  # version 0.1 numbered a run's first step -1: its runs are repeated
    draws = [draw_crops(batch_size, generator.manual_seed(first_seed + step), padding) for step in range(steps)]
    return torch.cat([index, torch.stack(draws)], dim=1)


def channel_constants(images: np.ndarray) -> tuple[Tensor, Tensor]:
    """Mean and standard deviation (at least 0.001) of each channel of uint8 ``[N, H, W, 3]``: float32 ``[3]``."""
    counts = np.stack([np.bincount(images[..., c].ravel(), minlength=256) for c in range(3)]).astype(np.float64)
    values, total = np.arange(256.0), counts.sum(axis=1)
    mean = counts @ values / total
    variance = (counts * (values - mean[:, None]) ** 2).sum(axis=1) / total
    return torch.from_numpy(mean).float(), torch.from_numpy(np.sqrt(variance)).float().clamp_min(1e-3)


@dataclass(eq=False)
class ImageDataModule(L.LightningDataModule):
    """In-distribution images for training and validation.

    Args:
        in_distribution: a set: ``shapes`` (built in), ``cifar10``, ..., ``path/to/file.npz`` or ``path/to/folder``.
        root: folder of the data sets; else the environment's ``BNOOD_DATA``, else ``./data``.
        ood: the out-of-distribution sets that ``eval_ood.py`` scores by default. Training never opens them.
        validation: how many training images are held out for validation, stratified by class.
        split_seed: decides which ones, so that runs of all seeds share one split.
        batch_size: training images per step, over all devices together.
        evaluation_batch_size: images per forward pass in validation.
        augmentation: ``crop_flip`` (zero-pad by 4, crop, mirror), ``flip`` (mirror only) or ``none``.
        download: let torchvision download what is missing.
        image_size: side of the square images, in pixels.
        train_count: use only so many training images, drawn by ``split_seed`` (after the split); None for all.
        seed: of shuffling and augmentation; set from ``seed_everything``.
    """

    in_distribution: str = "shapes"
    root: Path | None = None
    ood: tuple[str, ...] = ("digits", "textures", "unseen_shapes")
    validation: int = 1000
    split_seed: int = 0
    batch_size: int = 128
    evaluation_batch_size: int = 500
    augmentation: Augmentation = "crop_flip"
    download: bool = False
    image_size: int = 32
    train_count: int | None = None
    seed: int = 0
    train_set: ImageSet | None = field(default=None, init=False)
    validation_set: ImageSet | None = field(default=None, init=False)

    def __post_init__(self) -> None:
        super().__init__()
        for name in ("batch_size", "evaluation_batch_size", "image_size", "train_count"):
            if (value := getattr(self, name)) is not None and value < 1:
                raise UserError(f"data.{name} is {value}; expected a whole number from 1 up")

    def setup(self, stage: str | None = None) -> None:
        """Load the training images and split the validation images off (once)."""
        if self.train_set is not None:
            return
        for name in (self.in_distribution, *self.ood):  # a misspelt OOD set should not come to light after training
            check_known(name, self.root)
        train_set, self.validation_set = training_split(vars(self))
        wrong, classes = "", np.unique(train_set.labels)  # type: ignore[arg-type]
        if len(train_set) < self.batch_size:
            wrong = f"{len(train_set)} training images do not fill one batch: choose a smaller data.batch_size"
        elif len(classes) < 2:
            wrong = f"all training images have the label {classes[0]}; expected two classes or more"
        if wrong:
            raise UserError(f"{self.in_distribution}: {wrong}")
        self.train_set = train_set

    def train_dataloader(self) -> Batches:
        """Shuffled, augmented full batches, this device's share of each: uint8 ``[n, H, W, 3]``, int64 ``[n]``."""
        assert self.train_set is not None
        padding = PADDINGS[self.augmentation]
        images, labels = self._on_device(self.train_set, padding or 0)
        return Batches(len(images) // self.batch_size, partial(self._training_batches, images, labels, padding))

    def _training_batches(self, images: Tensor, labels: Tensor, padding: int | None) -> Iterator[Batch]:
        assert self.trainer is not None
        trainer = self.trainer
        rank, share = trainer.global_rank, self.batch_size // trainer.world_size
        first_step = trainer.fit_loop.total_batch_idx + 1
        plan = epoch_plan(len(images), self.batch_size, self.seed, trainer.current_epoch, first_step, padding)
        plan = plan[:, :, rank * share : (rank + 1) * share]
        if images.device.type == "cuda":  # one copy for the epoch, which nothing waits for
            plan = plan.contiguous().pin_memory()
        plan = plan.to(images.device, non_blocking=True)
        to_copy = images.device.type == "cpu" and trainer.strategy.root_device.type == "cuda"
        for step in plan:
            index, draws = step[0], step[1:]
            batch = images[index] if padding is None else crop_and_flip(images, index, draws, padding)
            yield batch.pin_memory() if to_copy else batch, labels[index]

    def val_dataloader(self) -> Batches:
        """The validation images in order; each of several devices gets as many batches, no image twice."""
        assert self.validation_set is not None and self.trainer is not None
        shares = np.array_split(np.arange(len(self.validation_set)), self.trainer.world_size)
        count = -(-len(shares[0]) // self.evaluation_batch_size)
        own = self._on_device(self.validation_set.subset(shares[self.trainer.global_rank]))
        images, labels = (each.tensor_split(count) for each in own)
        return Batches(count, lambda: zip(images, labels, strict=True))

    def _on_device(self, images: ImageSet, padding: int = 0) -> Batch:
        """Images and labels where batches are to be cut: on the device of this process, if they fit there."""
        assert self.trainer is not None and images.labels is not None
        pixels, labels = padded(torch.from_numpy(images.images), padding), torch.from_numpy(images.labels)
        device = self.trainer.strategy.root_device
        if device.type == "cuda" and pixels.nbytes > DEVICE_SHARE * torch.cuda.mem_get_info(device)[0]:
            return pixels, labels
        return pixels.to(device), labels.to(device)
