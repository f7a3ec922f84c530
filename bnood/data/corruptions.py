"""Shifted in-distribution images: Gaussian noise, Gaussian blur and lower contrast at five strengths, made on the fly.

The corruptions are those of Hendrycks & Dietterich (ICLR 2019), with the constants of CIFAR-10-C (``make_cifar_c.py``
in the authors' repository), meant for 32 x 32 pixels. With pixels x between 0 and 1:

- ``noise``: x + sigma z, with z standard normal for every pixel and channel on its own;
- ``blur``: each channel convolved with a Gaussian of sigma pixels, cut off at 4 sigma, the border pixels repeated;
- ``contrast``: c (x - m) + m, with m the mean of the image's channel.

Results are clipped to 0 .. 1 and rounded to the nearest grey level (CIFAR-10-C cuts the fraction off instead).
"""

import zlib

import numpy as np

from bnood.data.image_set import ImageSet
from bnood.data.splits import check_seed
from bnood.errors import UserError

CONSTANTS: dict[str, tuple[float, ...]] = {
    "noise": (0.04, 0.06, 0.08, 0.09, 0.10),  # standard deviation, where white is 1
    "blur": (0.4, 0.6, 0.7, 0.8, 1.0),  # standard deviation of the Gaussian, in pixels
    "contrast": (0.75, 0.5, 0.4, 0.3, 0.15),  # factor on the distance from the mean
}
"""The constant of each corruption at each strength, from 1 to 5."""

CORRUPTIONS = tuple(CONSTANTS)

_CHUNK = 256  # images worked on at a time, which bounds memory: 6 MB of float64 at 32 x 32 pixels


def corrupt(images: ImageSet, corruption: str, strength: int, seed: int = 0) -> ImageSet:
    """The images of a set after a corruption, under the name ``<corruption>-<strength>``, with their labels.

    The noise of image i depends on ``seed`` and i alone, and all strengths scale the same draw, so they are paired.
    UserError for an unknown corruption, a strength other than 1 to 5, or a seed other than 0 to 2**32 - 1.
    """
    if corruption not in CONSTANTS:
        raise UserError(f"corruption {corruption!r}: choose from {', '.join(CORRUPTIONS)}")
    if isinstance(strength, bool) or strength not in range(1, 6):
        raise UserError(f"{corruption}: the strength is {strength!r}; expected an integer from 1 to 5")
    check_seed(seed, corruption)
    from scipy.ndimage import gaussian_filter  # slow to import, and needed here alone

    constant = CONSTANTS[corruption][strength - 1]
    # The key keeps the noise apart from whatever else is drawn with the same seed.
    random = np.random.RandomState([int(seed), zlib.crc32(b"noise")])
    corrupted = np.empty_like(images.images)
    for start in range(0, len(images), _CHUNK):
        rows = slice(start, start + _CHUNK)
        pixels = images.images[rows] / 255.0
        if corruption == "noise":
            pixels += constant * random.standard_normal(pixels.shape)
        elif corruption == "blur":
            pixels = gaussian_filter(pixels, (0, constant, constant, 0), mode="nearest", truncate=4)
        else:
            means = pixels.mean(axis=(1, 2), keepdims=True)
            pixels = constant * (pixels - means) + means
        corrupted[rows] = np.rint(np.clip(255 * pixels, 0, 255))
    return ImageSet(f"{corruption}-{strength}", corrupted, images.labels)
