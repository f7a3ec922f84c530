"""The embedded data sets: images without a download, the same bits everywhere.

``shapes`` is the in-distribution set: ten classes of textured, coloured shapes among clutter, under noise. Position,
size, turn, colours and textures are drawn alike for every class, so only the outline tells the class. The others are
out of distribution: ``digits`` plays SVHN's part (numerals of house-number style, drawn from strokes), ``textures``
DTD's, ``unseen_shapes`` is near (the same pictures around ten other outlines), and ``gaussian_noise`` and
``uniform_noise`` are pixels without a picture. How the bits are kept the same: :mod:`bnood.data.drawing`.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np

from bnood.data.drawing import (
    IMAGE_SIZE,
    PIXEL_X,
    PIXEL_Y,
    Draws,
    between_colours,
    coverage,
    rotated,
    sine,
    to_uint8,
    value_noise,
)
from bnood.data.image_set import ImageSet
from bnood.data.outlines import CLASSES, UNSEEN, Outline, numeral
from bnood.data.textures import TEXTURES, texture
from bnood.errors import UserError

CLASS_NAMES: tuple[str, ...] = tuple(CLASSES)
"""The classes of ``shapes``, by label."""

# Images drawn at a time: one field of a chunk is 2 MB, which keeps the work near the processor's cache.
_CHUNK = 250
_COLUMNS = 512
_PIXEL_NUMBERS = 3 * IMAGE_SIZE * IMAGE_SIZE

Render = Callable[[np.ndarray, Draws, np.ndarray], np.ndarray]
"""(labels [n], per-image numbers, per-pixel numbers [n, 3, 32, 32] in [0, 1)) -> uint8 [n, 32, 32, 3]."""


@dataclass(frozen=True)
class SyntheticSet:
    """How a set is made.

    Attributes:
        key: starts the set's own random stream; two sets never share one.
        splits: name of a split -> its number of images.
        kinds: what the labels stand for, by label; empty for a set without labels.
        render: draws the images.
    """

    key: int
    splits: Mapping[str, int]
    kinds: tuple[str, ...]
    render: Render


def synthetic_images(name: str, split: str, *, seed: int = 0, count: int | None = None) -> ImageSet:
    """Draw an embedded set.

    Args:
        name: one of :data:`SYNTHETIC`.
        split: one of the set's splits. Splits, sets and seeds have separate random streams.
        seed: 0 to 2**32 - 1. The same seed gives the same bits on every machine.
        count: how many images; the split's own number by default. The first n images do not depend on it.

    Returns:
        ``images`` uint8 ``[count, 32, 32, 3]``; labels go round the kinds (0, 1, 2, ..), so classes are balanced.

    Raises:
        UserError: for an unknown set or split, a seed out of range or a count below 1.
    """
    if name not in SYNTHETIC:
        raise UserError(f"no embedded data set {name!r}: choose one of {', '.join(SYNTHETIC)}")
    recipe = SYNTHETIC[name]
    if split not in recipe.splits:
        raise UserError(
            f"the embedded data set {name!r} has no split {split!r}: choose one of {', '.join(recipe.splits)}"
        )
    if not 0 <= seed < 2**32:
        raise UserError(f"seed {seed} of the embedded data set {name!r}: expected 0 to {2**32 - 1}")
    count = recipe.splits[split] if count is None else count
    if count < 1:
        raise UserError(f"count {count} of the embedded data set {name!r}: expected 1 or more")

    random = np.random.RandomState([seed, recipe.key, list(recipe.splits).index(split)])
    images = np.empty((count, IMAGE_SIZE, IMAGE_SIZE, 3), np.uint8)
    labels = np.arange(count, dtype=np.int64) % max(1, len(recipe.kinds))
    for start in range(0, count, _CHUNK):
        part = slice(start, min(start + _CHUNK, count))
        numbers = random.random_sample((part.stop - start, _COLUMNS + _PIXEL_NUMBERS))
        pixels = numbers[:, _COLUMNS:].reshape(-1, 3, IMAGE_SIZE, IMAGE_SIZE)
        images[part] = recipe.render(labels[part], Draws(numbers[:, :_COLUMNS]), pixels)
    return ImageSet(name, images, labels if recipe.kinds else None)


def _grain(pixels: np.ndarray, strength: np.ndarray) -> np.ndarray:
    """Uniform noise of mean 0 and the standard deviation ``strength`` (``[n, 1, 1]``), ``[n, 3, 32, 32]``."""
    return (pixels - 0.5) * (strength * np.sqrt(12.0))[:, None]


def _surface(draws: Draws) -> np.ndarray:
    """What fills a shape or its ground, a field in 0 to 1: shaded, striped, checked or clouded, one kind per image."""
    kind = draws.choice(4)
    x, y = rotated(draws.between(0, 1))
    frequency = draws.between(0.08, 0.28)
    phase, other_phase = draws.between(0, 1), draws.between(0, 1)
    clouds = value_noise(draws.grid(9))
    field = np.empty((len(kind), IMAGE_SIZE, IMAGE_SIZE))
    for number in range(4):
        at = np.flatnonzero(kind == number)
        if number == 0:
            field[at] = 0.5 + x[at] / 32
        elif number == 3:
            field[at] = clouds[at]
        else:
            wave = sine(x[at] * frequency[at] + phase[at])
            if number == 2:
                wave = wave * sine(y[at] * frequency[at] + other_phase[at])
            field[at] = np.clip(0.5 + wave, 0, 1)
    return field


def _strip(draws: Draws, reach: float, low: float, high: float) -> np.ndarray:
    """Signed distance to a straight strip across the image, ``low`` to ``high`` pixels wide."""
    x, _ = rotated(draws.between(0, 1))
    return np.abs(x - draws.between(-reach, reach)) - draws.between(low / 2, high / 2)


def _speck(draws: Draws) -> np.ndarray:
    """Signed distance to a short rounded bar anywhere in the image."""
    x, y = rotated(draws.between(0, 1), PIXEL_X - draws.between(-16, 16), PIXEL_Y - draws.between(-16, 16))
    x = np.maximum(np.abs(x) - draws.between(0, 5), 0)
    return np.sqrt(x * x + y * y) - draws.between(0.8, 3)


def _outline(outlines: tuple[Outline, ...], labels: np.ndarray, draws: Draws) -> np.ndarray:
    """Signed distance in pixels to each image's own outline: moved, scaled, turned and a little stretched."""
    size = draws.between(9, 13)
    x, y = rotated(draws.between(-0.08, 0.08), PIXEL_X - draws.between(-3.5, 3.5), PIXEL_Y - draws.between(-3.5, 3.5))
    stretch = draws.between(0.9, 1.1)
    x, y = x / (size * stretch), y * stretch / size
    distance = np.empty_like(x)
    for label, outline in enumerate(outlines):
        at = np.flatnonzero(labels == label)
        distance[at] = outline(x[at], y[at]) * size[at]
    return distance


def _render_outlines(outlines: tuple[Outline, ...], labels: np.ndarray, draws: Draws, pixels: np.ndarray) -> np.ndarray:
    """A textured shape on a textured ground, with specks behind it and strips in front."""
    ground, contrast = draws.colour(), 0.3
    figure = draws.colour_unlike(ground, contrast)
    image = between_colours(_surface(draws), ground, draws.colour_near(ground, 0.22))
    inside = between_colours(_surface(draws), figure, draws.colour_near(figure, 0.22))
    for _ in range(3):
        image = between_colours(coverage(_speck(draws)) * draws.chance(0.35), image, draws.colour())
    shape = coverage(_outline(outlines, labels, draws), draws.between(1, 2))
    image = between_colours(shape, image, inside)
    for _ in range(2):
        strip = coverage(_strip(draws, 11, 1, 3.2))
        image = between_colours(strip * draws.chance(0.2), image, draws.colour())
    return to_uint8(image + _grain(pixels, draws.between(0, 0.05)))


def _render_shapes(labels: np.ndarray, draws: Draws, pixels: np.ndarray) -> np.ndarray:
    return _render_outlines(tuple(CLASSES.values()), labels, draws, pixels)


def _render_unseen(labels: np.ndarray, draws: Draws, pixels: np.ndarray) -> np.ndarray:
    return _render_outlines(tuple(UNSEEN.values()), labels, draws, pixels)


def _render_digits(labels: np.ndarray, draws: Draws, pixels: np.ndarray) -> np.ndarray:
    """A numeral in the middle, often with neighbours in the same hand that the edge cuts off, a little blurred."""
    size, width = draws.between(8, 14), draws.between(0.65, 1.05)
    x, y = rotated(draws.between(-0.03, 0.03), PIXEL_X - draws.between(-2, 2), PIXEL_Y - draws.between(-2, 2))
    y = y / size
    x = x / (size * width) + draws.between(-0.3, 0.3) * y
    stroke, gap = draws.between(0.08, 0.2), draws.between(1.15, 1.5)
    distance = np.full(x.shape, np.inf)
    for side in (-1, 0, 1):
        digits, present = draws.choice(10), draws.chance(0.65)[:, 0, 0] == 1
        if side == 0:
            digits, present = labels, np.ones(len(labels), bool)
        for digit in range(10):
            at = np.flatnonzero(present & (digits == digit))
            distance[at] = np.minimum(distance[at], numeral(digit, x[at] - side * gap[at], y[at]))
    ink = coverage((distance - stroke) * size, draws.between(1, 3.5))

    ground = draws.colour()
    colour = draws.colour_unlike(ground, 0.2)
    slope, _ = rotated(draws.between(0, 1))
    light = np.clip(0.5 + slope / 32 + 0.8 * (value_noise(draws.grid(5)) - 0.5), 0, 1)
    image = between_colours(light, ground, draws.colour_near(ground, 0.3))
    image = between_colours(ink, image, between_colours(light, colour, draws.colour_near(colour, 0.2)))
    return to_uint8(image + _grain(pixels, draws.between(0, 0.04)))


def _render_textures(labels: np.ndarray, draws: Draws, pixels: np.ndarray) -> np.ndarray:
    """A texture as a ramp over three colours, under uneven light."""
    amount = texture(labels, draws)
    first, third = draws.colour(), draws.colour()
    second = draws.colour_unlike(first, 0.15)
    ramp = between_colours(np.minimum(2 * amount, 1), first, second)
    image = between_colours(np.maximum(2 * amount - 1, 0) * draws.between(0, 1), ramp, third)
    slope, _ = rotated(draws.between(0, 1))
    light = 1 + draws.between(0, 0.4) * slope / 16
    return to_uint8(image * light[:, None] + _grain(pixels, draws.between(0, 0.05)))


def _normal_share_below(z: float) -> float:
    """The standard normal distribution function by its power series, in exactly rounded steps (for |z| <= 2)."""
    term = total = z
    for n in range(1, 40):
        term = -term * z * z / (2 * n)
        total += term / (2 * n + 1)
    return 0.5 + total * 0.3989422804014327  # 1 / sqrt(2 pi)


# The upper bound, on the uniform's scale, of each grey level but the last of a normal variable of mean 127.5 and
# standard deviation 63.75 that is rounded and clipped.
_GAUSSIAN_LEVELS = np.array([_normal_share_below((level + 0.5 - 127.5) / 63.75) for level in range(255)])


def _render_gaussian(labels: np.ndarray, draws: Draws, pixels: np.ndarray) -> np.ndarray:
    """Gaussian noise of mean 127.5 and standard deviation 63.75, rounded and clipped.

    Each value is looked up by its uniform number (inversion), so the distribution is exact and takes no logarithm.
    """
    return np.searchsorted(_GAUSSIAN_LEVELS, pixels, side="right").astype(np.uint8).transpose(0, 2, 3, 1)


def _render_uniform(labels: np.ndarray, draws: Draws, pixels: np.ndarray) -> np.ndarray:
    """Every grey level equally often."""
    return np.floor(pixels * 256).astype(np.uint8).transpose(0, 2, 3, 1)


SYNTHETIC: dict[str, SyntheticSet] = {
    "shapes": SyntheticSet(1, {"train": 10_000, "test": 2_000}, CLASS_NAMES, _render_shapes),
    "digits": SyntheticSet(2, {"test": 2_000}, tuple("0123456789"), _render_digits),
    "textures": SyntheticSet(3, {"test": 2_000}, tuple(TEXTURES), _render_textures),
    "unseen_shapes": SyntheticSet(4, {"test": 2_000}, tuple(UNSEEN), _render_unseen),
    "gaussian_noise": SyntheticSet(5, {"test": 2_000}, (), _render_gaussian),
    "uniform_noise": SyntheticSet(6, {"test": 2_000}, (), _render_uniform),
}
"""The embedded sets, by the name that a config uses."""
