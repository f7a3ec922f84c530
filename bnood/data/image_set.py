"""Sets of images: whole arrays in memory, or items that are decoded when they are read."""

from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
from typing_extensions import Self

from bnood.errors import UserError


class _Selectable:
    """What both kinds of image set can do; ``_rows`` names the attribute with one entry per image."""

    name: str
    labels: np.ndarray | None
    _rows: str

    def __len__(self) -> int:
        return len(getattr(self, self._rows))

    def subset(self, index: np.ndarray) -> Self:
        """The images at ``index`` (integers), in that order."""
        labels = None if self.labels is None else self.labels[index]
        return replace(self, labels=labels, **{self._rows: getattr(self, self._rows)[index]})  # type: ignore[type-var]

    def at_most(self, count: int | None, seed: int) -> Self:
        """``count`` images drawn by ``seed``, in their order; all of them if ``count`` is None or no less."""
        if count is not None and count < 1:
            raise UserError(f"{self.name}: {count} images were asked for; expected a whole number from 1 up")
        if count is None or count >= len(self):
            return self
        return self.subset(np.sort(np.random.RandomState(seed).permutation(len(self))[:count]))

    def renamed(self, name: str) -> Self:
        """The same images under another name."""
        return replace(self, name=name)  # type: ignore[type-var]

    def _check_labels(self) -> None:
        """Make integer labels int64; refuse any that are no class indices, or not one per image."""
        if (labels := self.labels) is None:
            return
        if labels.dtype.kind not in "iu" or labels.shape != (len(self),):
            found = f"{labels.dtype} {list(labels.shape)}"
            raise UserError(f"{self.name}: labels are {found}; expected int64 [{len(self)}], one per image")
        if len(self) and not 0 <= labels.min() <= labels.max() < 2**63:
            found = f"{labels.min()} to {labels.max()}"
            raise UserError(f"{self.name}: labels are {found}; expected class indices from 0 up, within int64")
        object.__setattr__(self, "labels", np.ascontiguousarray(labels, np.int64))


@dataclass(frozen=True)
class ImageSet(_Selectable):
    """Images in memory, all of one size.

    Attributes:
        name: as in configs, tables and plots (``svhn``).
        images: uint8 ``[N, H, W, 3]``, RGB; for reading only.
        labels: int64 ``[N]`` (other integers are converted), class indices from 0, or None.
        folders: the sorted folder names, if labels only number these (:func:`bnood.data.labels.folder_labels`).

    Raises ``UserError`` for arrays of another shape, type or length, and for negative labels.
    """

    _rows = "images"
    name: str
    images: np.ndarray
    labels: np.ndarray | None = None
    folders: tuple[str, ...] | None = None

    def __post_init__(self) -> None:
        if (
            self.images.dtype != np.uint8
            or self.images.ndim != 4
            or self.images.shape[3] != 3
            or not min(self.images.shape[1:])
        ):
            raise UserError(
                f"{self.name}: images are {self.images.dtype} {list(self.images.shape)}; "
                f"expected uint8 [N, H, W, 3] (RGB, 0 to 255)"
            )
        self._check_labels()


@dataclass(frozen=True, eq=False)
class StreamedSet(_Selectable):
    """Images of a map-style dataset, read item by item whenever they are needed and never kept.

    An item is an image, or a tuple or list that starts with one. An image is the path of an image file, a PIL image, a
    uint8 array ``[H, W, 3]``, a uint8 tensor ``[3, H, W]``, or a float tensor ``[3, h, w]``, which counts as
    transformed already.

    Attributes:
        name, labels, folders: as in :class:`ImageSet`.
        dataset: has ``__len__`` and ``__getitem__``; it must give the same item whenever it is asked.
        index: int64 ``[N]``, the items of the dataset that belong to the set; all of them by default.
        checked: the transforms under which items were found to be the same when read twice.

    Raises ``UserError`` if the dataset is not map-style, or labels do not fit.
    """

    _rows = "index"
    name: str
    dataset: Any
    labels: np.ndarray | None = None
    index: np.ndarray = None  # type: ignore[assignment]  # filled in below
    folders: tuple[str, ...] | None = None
    checked: list[Any] = field(default_factory=list, repr=False)

    def __post_init__(self) -> None:
        if not hasattr(self.dataset, "__len__") or not hasattr(self.dataset, "__getitem__"):
            raise UserError(
                f"{self.name}: it is a {type(self.dataset).__name__}; expected the name or path of a set, or a "
                "map-style dataset (with __len__ and __getitem__)"
            )
        if self.index is None:
            object.__setattr__(self, "index", np.arange(len(self.dataset)))
        self._check_labels()


Images = ImageSet | StreamedSet
