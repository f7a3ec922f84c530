"""The built-in sets: images without a download.

``shapes`` is the in-distribution set: ten classes of textured, coloured shapes among clutter, under noise. Everything
but the outline is drawn alike for every class. The others are out of distribution: ``digits`` plays SVHN's part,
``textures`` DTD's, ``unseen_shapes`` is near (the same pictures around other outlines), and ``gaussian_noise`` and
``uniform_noise`` are pixels without a picture. The noise sets have the same bits everywhere; a drawn pixel may differ
by a grey level between versions of NumPy and Pillow.
"""

import math
from collections.abc import Callable
from statistics import NormalDist
from typing import NamedTuple

import numpy as np

from bnood.data import drawing
from bnood.data.drawing import CLASSES, IMAGE_SIZE, UNSEEN, Draws, Figure, rotated, wave
from bnood.data.image_set import ImageSet
from bnood.errors import UserError

_CHUNK = 250  # images drawn at a time
_COLUMNS = 512  # numbers that an image draws before those of its pixels

Render = Callable[[np.ndarray, Draws, np.ndarray], np.ndarray]
"""(labels [n], per-image numbers, per-pixel numbers [n, 3, 32, 32] in [0, 1)) -> grey levels 0 to 255, same shape."""


class SyntheticSet(NamedTuple):
    """How a set is made: the key of its random stream, the number of its classes (0: no labels), its drawing."""

    key: int
    classes: int
    render: Render
    splits: tuple[str, ...] = ("test",)


SIZES = {"train": 10_000, "test": 2_000}
"""Images of each split."""


def synthetic_images(name: str, split: str, count: int | None = None) -> ImageSet:
    """Draw one of :data:`SYNTHETIC`, uint8 ``[count, 32, 32, 3]``; labels are 0, 1, 2, .. in turn, so balanced.

    Sets and splits have separate random streams. The first n images do not depend on ``count``.
    UserError for a split that the set lacks, or a count below 1.
    """
    recipe = SYNTHETIC[name]
    if split not in recipe.splits:
        raise UserError(f"the built-in set {name!r} has no split {split!r}: choose one of {', '.join(recipe.splits)}")
    count = SIZES[split] if count is None else count
    if count < 1:
        raise UserError(f"count {count} of the built-in set {name!r}: expected 1 or more")

    random = np.random.RandomState([0, recipe.key, recipe.splits.index(split)])
    images = np.empty((count, IMAGE_SIZE, IMAGE_SIZE, 3), np.uint8)
    labels = np.arange(count) % max(1, recipe.classes)
    for start in range(0, count, _CHUNK):
        part = slice(start, min(start + _CHUNK, count))
        numbers = random.random_sample((part.stop - start, _COLUMNS + images[0].size))
        pixels = numbers[:, _COLUMNS:].reshape(-1, 3, IMAGE_SIZE, IMAGE_SIZE)
        images[part] = recipe.render(labels[part], Draws(numbers[:, :_COLUMNS]), pixels).transpose(0, 2, 3, 1)
    return ImageSet(name, images, labels if recipe.classes else None)


def _mix(amount: np.ndarray, first: np.ndarray, second: np.ndarray) -> np.ndarray:
    """Two colours or images ``[n, 3, ..]`` mixed by a field: 0 gives the first."""
    return first + amount[:, None] * (second - first)


def _shaded(colour: np.ndarray, draws: Draws) -> np.ndarray:
    """A colour, striped or clouded with one close to it: ``[n, 3, 32, 32]``."""
    near = np.clip(colour + 0.44 * (draws.block(3, 1, 1) - 0.5), 0, 1)
    x, _ = rotated(draws.between(0, 1))
    stripes = wave(x * draws.between(0.02, 0.25) + draws.between(0, 1))
    return _mix(np.where(draws.between(0, 1) < 0.33, drawing.smooth_noise(draws, 8), stripes), colour, near)


def _picture(figure: Figure, clutter: bool = False) -> Render:
    """A figure on a ground of another colour, sometimes with a disc behind it and a strip in front, under noise."""

    def render(labels: np.ndarray, draws: Draws, pixels: np.ndarray) -> np.ndarray:
        ground = draws.block(3, 1, 1)
        unlike = (ground + 0.25 + 0.5 * draws.block(3, 1, 1)) % 1  # as uniform as the ground, and never close to it
        inside, image = _shaded(unlike, draws), _shaded(ground, draws)
        if clutter:
            x, y, radius = draws.between(-16, 16), draws.between(-16, 16), draws.between(1, 5)
            disc = np.clip(radius - np.hypot(drawing.PIXEL_X - x, drawing.PIXEL_Y - y), 0, 1)
            image = _mix(disc * (draws.between(0, 1) < 0.5), image, draws.block(3, 1, 1))
        image = _mix(figure(labels, draws), image, inside)
        if clutter:
            x, _ = rotated(draws.between(0, 1))
            strip = np.clip(draws.between(0.8, 2) - np.abs(x - draws.between(-11, 11)), 0, 1)
            image = _mix(strip * (draws.between(0, 1) < 0.35), image, draws.block(3, 1, 1))
        noise = (pixels - 0.5) * (draws.between(0, 0.05) * math.sqrt(12))[:, None]
        return np.rint(255 * np.clip(image + noise, 0, 1))

    return render


# Uniform numbers below each bound give this grey level or a darker one: a normal variable, rounded and clipped.
_GAUSSIAN_LEVELS = np.array([NormalDist(127.5, 63.75).cdf(level + 0.5) for level in range(255)])

SYNTHETIC: dict[str, SyntheticSet] = {
    "shapes": SyntheticSet(1, 10, _picture(drawing.outlines(CLASSES), clutter=True), ("train", "test")),
    "digits": SyntheticSet(2, 10, _picture(drawing.numerals)),
    "textures": SyntheticSet(3, len(drawing.TEXTURES), _picture(drawing.textures)),
    "unseen_shapes": SyntheticSet(4, len(UNSEEN), _picture(drawing.outlines(UNSEEN), clutter=True)),
    "gaussian_noise": SyntheticSet(5, 0, lambda _, __, pixels: np.searchsorted(_GAUSSIAN_LEVELS, pixels, "right")),
    "uniform_noise": SyntheticSet(6, 0, lambda _, __, pixels: np.floor(256 * pixels)),
}
"""The built-in sets, by the name that a config uses."""
