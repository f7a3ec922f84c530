"""Shifted in-distribution images: Gaussian noise, Gaussian blur and lower contrast at five strengths, made on the fly.

The corruptions are those of Hendrycks & Dietterich (ICLR 2019), with the constants that ``make_cifar_c.py`` in the
authors' repository has for CIFAR-10-C, which are meant for 32 x 32 pixels. With pixels x between 0 and 1:

- ``noise``: x + sigma z, with z standard normal for every pixel and channel on its own;
- ``blur``: each channel convolved with a Gaussian of standard deviation sigma pixels, cut off at 4 sigma; pixels beyond
  the border are those of the border repeated;
- ``contrast``: c (x - m) + m, with m the mean of the image's channel.

Results are clipped to 0 .. 1 and rounded to the nearest grey level (CIFAR-10-C cuts the fraction off instead). Noise
is drawn image after image from ``numpy.random.RandomState``, whose stream is frozen (NEP 19): image i is given the same
noise whatever comes after it, and the strengths scale one and the same draw, so that they are paired.
"""

import zlib
from collections.abc import Callable

import numpy as np

from bnood.data.image_set import ImageSet
from bnood.errors import UserError

STRENGTHS = (1, 2, 3, 4, 5)

CONSTANTS: dict[str, tuple[float, ...]] = {
    "noise": (0.04, 0.06, 0.08, 0.09, 0.10),  # standard deviation, where white is 1
    "blur": (0.4, 0.6, 0.7, 0.8, 1.0),  # standard deviation of the Gaussian, in pixels
    "contrast": (0.75, 0.5, 0.4, 0.3, 0.15),  # factor on the distance from the mean
}
"""The constant of each corruption at each strength, from 1 to 5."""

CORRUPTIONS = tuple(CONSTANTS)

# Images worked on at a time, so that memory is bounded: 6 MB of float64 at 32 x 32 pixels.
_CHUNK = 256


def corrupt(images: ImageSet, corruption: str, strength: int, seed: int = 0) -> ImageSet:
    """The images of a set after a corruption, under the name ``<corruption>-<strength>``, with their labels.

    Raises:
        UserError: unless the corruption is ``noise``, ``blur`` or ``contrast``, the strength 1 to 5, the seed of the
            noise 0 to 2**32 - 1.
    """
    if corruption not in CONSTANTS:
        raise UserError(f"corruption {corruption!r}: choose from {', '.join(CORRUPTIONS)}")
    if isinstance(strength, bool) or strength not in STRENGTHS:
        raise UserError(f"{corruption}: the strength is {strength!r}; expected an integer from 1 to {len(STRENGTHS)}")
    if isinstance(seed, bool) or not isinstance(seed, int | np.integer) or not 0 <= seed < 2**32:
        raise UserError(f"{corruption}: the seed is {seed!r}; expected an integer from 0 to {2**32 - 1}")
    constant = CONSTANTS[corruption][strength - 1]
    if corruption == "noise":
        # The key keeps the noise apart from whatever else is drawn with the same seed.
        random = np.random.RandomState([int(seed), zlib.crc32(b"noise")])
        corrupted = _chunk_by_chunk(images.images, lambda x: x + constant * random.standard_normal(x.shape))
    elif corruption == "blur":
        kernel = gaussian_kernel(constant)
        corrupted = _chunk_by_chunk(images.images, lambda x: _along(_along(x, kernel, 1), kernel, 2))
    else:
        corrupted = _chunk_by_chunk(images.images, lambda x: _towards_mean(x, constant))
    return ImageSet(f"{corruption}-{strength}", corrupted, images.labels)


def gaussian_kernel(sigma: float) -> np.ndarray:
    """Weights ``[2 r + 1]`` of a Gaussian of ``sigma`` pixels at -r .. r, r = 4 sigma rounded; they sum to 1.

    >>> gaussian_kernel(0.4).round(4).tolist()
    [0.0, 0.0404, 0.9192, 0.0404, 0.0]
    """
    radius = int(4 * sigma + 0.5)
    weights = np.exp(-0.5 * (np.arange(-radius, radius + 1) / sigma) ** 2)
    return weights / weights.sum()


def _along(pixels: np.ndarray, kernel: np.ndarray, axis: int) -> np.ndarray:
    """``[n, H, W, 3]`` convolved with a symmetric kernel along one axis, the border repeated."""
    radius, length = len(kernel) // 2, pixels.shape[axis]
    widths = [(radius, radius) if each == axis else (0, 0) for each in range(pixels.ndim)]
    padded = np.moveaxis(np.pad(pixels, widths, mode="edge"), axis, 0)
    shifted = (weight * padded[start : start + length] for start, weight in enumerate(kernel))
    return np.moveaxis(sum(shifted, np.zeros_like(padded[:length])), 0, axis)


def _towards_mean(pixels: np.ndarray, factor: float) -> np.ndarray:
    means = pixels.mean(axis=(1, 2), keepdims=True)
    return factor * (pixels - means) + means


def _chunk_by_chunk(images: np.ndarray, change: Callable[[np.ndarray], np.ndarray]) -> np.ndarray:
    """uint8 ``[N, H, W, 3]`` -> uint8: ``change`` maps float64 between 0 and 1, some images at a time, in order."""
    changed = np.empty_like(images)
    for start in range(0, len(images), _CHUNK):
        rows = slice(start, start + _CHUNK)
        changed[rows] = np.rint(np.clip(255 * change(images[rows] / 255.0), 0, 255))
    return changed
