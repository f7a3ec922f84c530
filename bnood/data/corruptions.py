"""Shifted in-distribution images, made on the fly: noise, blur and lower contrast at five strengths, and grey.

They are Hendrycks & Dietterich's (ICLR 2019) with CIFAR-10-C's constants, for 32 x 32 pixels, but rounded.
"""

import zlib
from dataclasses import replace

import numpy as np
from PIL import Image

from bnood.data.image_set import Images, ImageSet, check_seed
from bnood.data.reading import as_image
from bnood.errors import UserError

CONSTANTS: dict[str, tuple[float, ...]] = {  # c of each corruption at each strength, from 1 to 5
    "noise": (0.04, 0.06, 0.08, 0.09, 0.10),  # x + c z, z standard normal for every pixel and channel, white is 1
    "blur": (0.4, 0.6, 0.7, 0.8, 1.0),  # a Gaussian of c pixels, cut off at 4 c, the border pixels repeated
    "contrast": (0.75, 0.5, 0.4, 0.3, 0.15),  # c (x - m) + m, m the mean of the image's channel
}


def is_made_here(shift: str) -> bool:
    """Whether the name of a shift is ``grey`` or begins with a corruption; other shifts are sets of their own."""
    return shift == "grey" or shift.rpartition("-")[0] in CONSTANTS


def check_shift(shift: str) -> None:
    """Refuse a corruption without one of its strengths."""
    kind, _, strength = shift.rpartition("-")
    if kind in CONSTANTS and strength not in ("1", "2", "3", "4", "5"):
        raise UserError(f"shift {shift!r}: the strength is {strength!r}; expected one from 1 to 5")


def shifted(images: Images, shift: str, seed: int = 0) -> Images:
    """The images after a shift, named as in configs (``noise-3``, ``grey``), with their labels.

    ``grey`` is the luma of ITU-R 601 in all three channels. The noise of image i depends on ``seed`` and i alone, and
    all strengths scale the same draw. UserError for an unknown shift, and a corruption of images not held in memory.
    """
    check_shift(shift)
    check_seed(seed, shift)
    if shift == "grey":
        grey = _GreyDataset(images)
        if isinstance(images, ImageSet):
            return replace(images, name=shift, images=np.stack([grey[index] for index in range(len(images))]))
        return replace(images, name=shift, dataset=grey, checked=[])
    if not is_made_here(shift):
        raise UserError(f"shift {shift!r}: expected grey, or {', '.join(CONSTANTS)} with a strength (noise-3)")
    if not isinstance(images, ImageSet):
        raise UserError(f"shift {shift!r} is for images held in memory: give image_size, or choose grey")
    return replace(images, name=shift, images=_corrupted(images.images, shift, seed))


class _GreyDataset:
    """The items of a set without their colour."""

    def __init__(self, images: Images) -> None:
        self.name, self.items = images.name, images.images if isinstance(images, ImageSet) else images.dataset

    def __len__(self) -> int:
        return len(self.items)

    def __getitem__(self, index: int) -> np.ndarray:
        image = as_image(self.items[index], f"{self.name}: item {index}")
        if not isinstance(image, Image.Image):
            raise UserError(f"shift 'grey': {self.name} holds float tensors, which are transformed already")
        return np.asarray(image.convert("L").convert("RGB"))


def _corrupted(images: np.ndarray, shift: str, seed: int) -> np.ndarray:
    from scipy.ndimage import gaussian_filter  # slow to import, and needed here alone

    corruption, _, strength = shift.rpartition("-")
    constant = CONSTANTS[corruption][int(strength) - 1]
    # The key keeps the noise apart from whatever else is drawn with the same seed.
    random = np.random.RandomState([int(seed), zlib.crc32(b"noise")])
    pixels = images / 255.0
    if corruption == "noise":
        pixels += constant * random.standard_normal(pixels.shape)
    elif corruption == "blur":
        pixels = gaussian_filter(pixels, (0, constant, constant, 0), mode="nearest", truncate=4)
    else:
        means = pixels.mean(axis=(1, 2), keepdims=True)
        pixels = constant * (pixels - means) + means
    return np.rint(np.clip(255 * pixels, 0, 255)).astype(np.uint8)
