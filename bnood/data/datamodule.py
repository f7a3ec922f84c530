"""The LightningDataModule: one uint8 array in memory, batches cut by indexing, augmentation by the batch."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal

import lightning as L
import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, Sampler

from bnood.data.augmentation import crop_and_flip
from bnood.data.image_set import ImageSet
from bnood.data.sources import TORCHVISION, check_known, data_root, load_images
from bnood.data.splits import stratified_split
from bnood.data.synthetic import SYNTHETIC
from bnood.errors import UserError

Batch = tuple[Tensor, Tensor]


class Images(Dataset[Batch]):
    """Images and labels that are fetched a whole batch at a time (no per-image Python, nothing to collate)."""

    def __init__(self, images: ImageSet) -> None:
        if images.labels is None:
            raise UserError(f"{images.name}: training and validation need labels, but the set has none")
        self.images, self.labels = torch.from_numpy(images.images), torch.from_numpy(images.labels)

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: int) -> Batch:
        return self.images[index], self.labels[index]

    def __getitems__(self, indices: list[int]) -> Batch:
        index = torch.tensor(indices)
        return self.images[index], self.labels[index]


class EpochShuffle(Sampler[int]):
    """A shuffle that depends on the seed and the epoch alone, so that a resumed run sees the same batches."""

    def __init__(self, count: int, seed: int) -> None:
        self.count, self.seed, self.epoch = count, seed, 0

    def set_epoch(self, epoch: int) -> None:
        """Called by Lightning before each epoch."""
        self.epoch = epoch

    def __len__(self) -> int:
        return self.count

    def __iter__(self) -> Iterator[int]:
        return iter(np.random.RandomState([self.seed, self.epoch]).permutation(self.count).tolist())


def channel_constants(images: np.ndarray) -> tuple[list[float], list[float]]:
    """Mean and standard deviation of each colour channel of uint8 ``[N, H, W, 3]``, on the scale 0 to 255."""
    pixels = images.reshape(-1, 3)
    counts = np.stack([np.bincount(pixels[:, channel], minlength=256) for channel in range(3)]).astype(np.float64)
    values, total = np.arange(256.0), counts.sum(axis=1)
    mean = counts @ values / total
    variance = (counts * (values - mean[:, None]) ** 2).sum(axis=1) / total
    return mean.tolist(), np.sqrt(variance).tolist()


def has_test_images(name: str, root: Path | None = None) -> bool:
    """Whether a set's ``test`` images are others than its ``train`` images.

    A path, and ``<root>/<name>/images/**``, have no splits (:func:`bnood.data.sources.load_images`): asked for test
    images, they give the very images that a network was trained on.
    """
    if name in SYNTHETIC:
        return True
    if name.lower().endswith(".npz") or Path(name).name != name:
        return False
    folder = data_root(root) / name
    if any((folder / f"{split}.npz").exists() for split in ("train", "test")):
        return True
    return name in TORCHVISION and not (folder / "images").is_dir()


class ImageDataModule(L.LightningDataModule):
    """In-distribution images for training and validation.

    Args:
        in_distribution: name of the set (see :func:`bnood.data.sources.load_images`): ``shapes`` (built in),
            ``cifar10``, ``cifar100``, ..., ``path/to/file.npz`` or ``path/to/folder``.
        root: folder of the data sets; else the environment's ``BNOOD_DATA``, else ``./data``.
        ood: the out-of-distribution sets that ``eval_ood.py`` scores by default. Training never opens them.
        validation: how many training images are held out for validation, stratified by class.
        split_seed: decides which ones; kept apart from the run's seed, so that all seeds share one split.
        batch_size: training images per step.
        evaluation_batch_size: images per forward pass in validation.
        augmentation: ``crop_flip`` (zero-pad by 4, crop, mirror), ``flip`` (mirror only) or ``none``.
        download: let torchvision download what is missing.
        image_size: side of the square images, in pixels.
        train_count: use only so many training images, drawn by ``split_seed`` (after the split); None for all.
        seed: of shuffling and augmentation; set from ``seed_everything``.
    """

    def __init__(
        self,
        in_distribution: str = "shapes",
        root: Path | None = None,
        ood: tuple[str, ...] = ("digits", "textures", "unseen_shapes"),
        validation: int = 1000,
        split_seed: int = 0,
        batch_size: int = 128,
        evaluation_batch_size: int = 500,
        augmentation: Literal["crop_flip", "flip", "none"] = "crop_flip",
        download: bool = False,
        image_size: int = 32,
        train_count: int | None = None,
        seed: int = 0,
    ) -> None:
        super().__init__()
        for name, value in (
            ("batch_size", batch_size),
            ("evaluation_batch_size", evaluation_batch_size),
            ("image_size", image_size),
            ("train_count", train_count),
        ):
            if value is not None and value < 1:
                raise UserError(f"data.{name} is {value}; expected a whole number from 1 up")
        self.in_distribution, self.root, self.ood = in_distribution, root, ood
        self.validation, self.split_seed = validation, split_seed
        self.batch_size, self.evaluation_batch_size = batch_size, evaluation_batch_size
        self.augmentation, self.download, self.image_size = augmentation, download, image_size
        self.train_count, self.seed = train_count, seed
        self.train_set: ImageSet | None = None
        self.validation_set: ImageSet | None = None

    def setup(self, stage: str | None = None) -> None:
        """Load the training images and split the validation images off (once)."""
        if self.train_set is not None:
            return
        # The OOD sets are not opened here, but a misspelt one should not come to light after hours of training.
        for key, names in (("in_distribution", (self.in_distribution,)), ("ood", self.ood)):
            for name in names:
                try:
                    check_known(name, self.root)
                except UserError as error:
                    raise UserError(f"data.{key}: {error}") from error
        self.train_set, self.validation_set = self.split()
        if len(self.train_set) < self.batch_size:
            raise UserError(
                f"{self.in_distribution}: {len(self.train_set)} training images do not fill one batch "
                f"(data.batch_size={self.batch_size}): choose a smaller batch"
            )

    def split(self) -> tuple[ImageSet, ImageSet]:
        """The training images that are trained on, and those held out for validation."""
        images = load_images(
            self.in_distribution, "train", self.root, download=self.download, image_size=self.image_size
        )
        if images.labels is None:
            raise UserError(
                f"{self.in_distribution}: training needs labels (in an .npz: int64 [N]), but the set has none"
            )
        train, validation = stratified_split(images.labels, self.validation, self.split_seed, images.name)
        if self.train_count is not None:
            # An arbitrary but fixed subset that keeps no class order of the source.
            train = np.sort(np.random.RandomState(self.split_seed).permutation(train)[: self.train_count])
        return images.subset(train), images.subset(validation)

    def train_dataloader(self) -> DataLoader[Batch]:
        """Shuffled full batches; the last short one is left out (it would have other BatchNorm statistics)."""
        assert self.train_set is not None
        images = Images(self.train_set)
        sampler = EpochShuffle(len(images), self.seed)
        return DataLoader(images, self.batch_size, sampler=sampler, drop_last=True, collate_fn=_as_is)

    def val_dataloader(self) -> DataLoader[Batch]:
        """The validation images in order."""
        assert self.validation_set is not None
        return DataLoader(Images(self.validation_set), self.evaluation_batch_size, collate_fn=_as_is)

    def on_after_batch_transfer(self, batch: Batch, dataloader_idx: int) -> Batch:
        """Augment training batches, on whatever device they are now."""
        assert self.trainer is not None
        images, labels = batch
        if self.trainer.training and self.augmentation != "none":
            # Seeded by the step: a resumed run draws what the uninterrupted one would have drawn.
            step = self.trainer.fit_loop.total_batch_idx
            generator = torch.Generator().manual_seed(self.seed * 1_000_003 + step)
            images = crop_and_flip(images, generator, crop=self.augmentation == "crop_flip")
        return images, labels


def _as_is(batch: Any) -> Any:
    """Collate function: a batch comes ready from :class:`Images`."""
    return batch
