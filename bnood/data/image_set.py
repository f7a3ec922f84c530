"""Sets of images: whole arrays in memory, or items that are decoded when they are read."""

from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
from typing_extensions import Self

from bnood.errors import UserError


class _Selectable:
    """What both kinds of image set can do."""

    name: str

    def __len__(self) -> int:
        raise NotImplementedError

    def subset(self, index: np.ndarray) -> Self:
        """The images at ``index`` (integers), in that order."""
        raise NotImplementedError

    def at_most(self, count: int | None, seed: int) -> Self:
        """``count`` images drawn by ``seed``, in their order; all of them if ``count`` is None or no less."""
        if count is None or count >= len(self):
            return self
        return self.subset(np.sort(np.random.RandomState(seed).permutation(len(self))[:count]))

    def renamed(self, name: str) -> Self:
        """The same images under another name."""
        return replace(self, name=name)  # type: ignore[type-var]


@dataclass(frozen=True)
class ImageSet(_Selectable):
    """Images in memory, all of one size.

    Attributes:
        name: as in configs, tables and plots (``svhn``).
        images: uint8 ``[N, H, W, 3]``, RGB; for reading only.
        labels: int64 ``[N]``, class indices from 0, or None.
        folders: the sorted folder names, if the labels only number these folders
            (:func:`bnood.data.labels.folder_labels` decides whether they fit a network's classes).

    Raises:
        UserError: if an array has another shape or type, their lengths differ, or a label is negative.
    """

    name: str
    images: np.ndarray
    labels: np.ndarray | None = None
    folders: tuple[str, ...] | None = None

    def __post_init__(self) -> None:
        if self.images.dtype != np.uint8 or self.images.ndim != 4 or self.images.shape[-1] != 3:
            raise UserError(
                f"{self.name}: images are {self.images.dtype} {list(self.images.shape)}; "
                f"expected uint8 [N, H, W, 3] (RGB, 0 to 255)"
            )
        check_labels(self.labels, len(self.images), self.name)

    def __len__(self) -> int:
        return len(self.images)

    def subset(self, index: np.ndarray) -> "ImageSet":
        """The images at ``index`` (integers), in that order."""
        labels = None if self.labels is None else self.labels[index]
        return replace(self, images=self.images[index], labels=labels)


@dataclass(frozen=True, eq=False)
class StreamedSet(_Selectable):
    """Images of a map-style dataset, read item by item whenever they are needed and never kept.

    An item is an image, or a tuple or list that starts with one. An image is a PIL image, a uint8 array ``[H, W, 3]``,
    a uint8 tensor ``[3, H, W]``, or a float tensor ``[3, h, w]``, which counts as transformed already.

    Attributes:
        name: as in configs, tables and plots.
        dataset: has ``__len__`` and ``__getitem__``; it must give the same item whenever it is asked.
        labels: int64 ``[N]``, one per entry of ``index``, or None.
        index: int64 ``[N]``, which items of the dataset belong to the set; None for all.
        folders: as in :class:`ImageSet`.
        transforms_checked: transforms under which :mod:`bnood.data.reading` found the items repeatable.

    Raises:
        UserError: if the dataset is not map-style, an index lies outside it, or labels do not fit.
    """

    name: str
    dataset: Any
    labels: np.ndarray | None = None
    index: np.ndarray | None = None
    folders: tuple[str, ...] | None = None
    transforms_checked: list[Any] = field(default_factory=list, repr=False)

    def __post_init__(self) -> None:
        if not hasattr(self.dataset, "__len__") or not hasattr(self.dataset, "__getitem__"):
            raise UserError(
                f"{self.name}: the dataset is a {type(self.dataset).__name__} without __len__ and __getitem__; "
                "expected a map-style dataset (iterable datasets cannot be read by index)"
            )
        count = len(self.dataset)
        index = np.arange(count) if self.index is None else np.asarray(self.index)
        if (
            index.ndim != 1
            or index.dtype.kind not in "iu"
            or (len(index) and not 0 <= index.min() <= index.max() < count)
        ):
            raise UserError(f"{self.name}: the index must be integers [N] from 0 to {count - 1}")
        object.__setattr__(self, "index", index.astype(np.int64))
        check_labels(self.labels, len(index), self.name)

    def __len__(self) -> int:
        assert self.index is not None
        return len(self.index)

    def subset(self, index: np.ndarray) -> "StreamedSet":
        """The images at ``index`` (integers), in that order."""
        assert self.index is not None
        labels = None if self.labels is None else self.labels[index]
        return replace(self, index=self.index[index], labels=labels)


Images = ImageSet | StreamedSet
"""Either kind of set: both have ``name``, ``labels``, ``len``, ``subset``, ``at_most`` and ``renamed``."""


def check_labels(labels: np.ndarray | None, count: int, where: str) -> None:
    """Refuse labels that are not int64 ``[count]`` from 0 up; None passes."""
    if labels is None:
        return
    if labels.dtype != np.int64 or labels.shape != (count,):
        raise UserError(
            f"{where}: labels are {labels.dtype} {list(labels.shape)}; expected int64 [{count}], one per image"
        )
    if count and labels.min() < 0:
        raise UserError(f"{where}: a label is {labels.min()}; expected class indices from 0 up")
