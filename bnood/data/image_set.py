"""A set of images as one array: the form in which every image of the project travels."""

from dataclasses import dataclass, replace

import numpy as np

from bnood.errors import UserError


@dataclass(frozen=True)
class ImageSet:
    """Images of one set, and their labels if it has any.

    Attributes:
        name: as in configs, tables and plots (``svhn``).
        images: uint8 ``[N, H, W, 3]``, RGB.
        labels: int64 ``[N]``, or None.

    Raises:
        UserError: if an array has another shape or type, or their lengths differ.
    """

    name: str
    images: np.ndarray
    labels: np.ndarray | None = None

    def __post_init__(self) -> None:
        images, labels = self.images, self.labels
        if images.dtype != np.uint8 or images.ndim != 4 or images.shape[-1] != 3:
            raise UserError(
                f"{self.name}: images are {images.dtype} {list(images.shape)}; "
                f"expected uint8 [N, H, W, 3] (RGB, 0 to 255)"
            )
        if labels is not None and (labels.dtype != np.int64 or labels.shape != (len(images),)):
            raise UserError(
                f"{self.name}: labels are {labels.dtype} {list(labels.shape)}; "
                f"expected int64 [{len(images)}], one per image"
            )

    def __len__(self) -> int:
        return len(self.images)

    def subset(self, index: np.ndarray) -> "ImageSet":
        """The images at ``index`` (integers), in that order."""
        labels = None if self.labels is None else self.labels[index]
        return replace(self, images=self.images[index], labels=labels)

    def at_most(self, count: int | None, seed: int) -> "ImageSet":
        """``count`` images chosen by ``seed``, in the order they had; all of them if ``count`` is None or no less."""
        if count is None or count >= len(self):
            return self
        return self.subset(np.sort(np.random.RandomState(seed).permutation(len(self))[:count]))
