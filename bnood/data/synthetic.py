"""The built-in sets: images without a download. Only the noise has the same bits everywhere.

``shapes`` is the ID set: ten classes of textured shapes among clutter, told by their outline alone. OOD are ``digits``
(as SVHN), ``textures`` (as DTD), ``unseen_shapes`` (near: other outlines), ``gaussian_noise`` and ``uniform_noise``.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from statistics import NormalDist
from typing import NamedTuple

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from bnood.data.image_set import ImageSet
from bnood.errors import UserError

_CHUNK = 250  # images drawn at a time
_COLUMNS = 512  # numbers that an image draws before those of its pixels
IMAGE_SIZE = 32
_FINE = 4  # masks are drawn so many times larger and averaged, which smooths their edges
_AREA = 1.9  # of every outline, so that the share of coloured pixels does not tell the class
_PIXELS = np.arange(IMAGE_SIZE) - (IMAGE_SIZE - 1) / 2
PIXEL_X, PIXEL_Y = np.meshgrid(_PIXELS, _PIXELS)

# Polygons [corners, 2] drawn one over the other, filled (True) or cut out (False); y points downwards.
Outline = list[tuple[np.ndarray, bool]]


@dataclass
class Draws:
    """Uniform random numbers for n images, dealt out column by column: row i of the table belongs to image i."""

    table: np.ndarray
    used: int = 0

    def block(self, *shape: int) -> np.ndarray:
        """The next numbers in [0, 1), as ``[n, *shape]``."""
        start, self.used = self.used, self.used + int(np.prod(shape))
        return self.table[:, start : self.used].reshape(-1, *shape)

    def between(self, low: float, high: float) -> np.ndarray:
        """One number per image, ``[n, 1, 1]``."""
        return low + (high - low) * self.block(1, 1)


def rotated(turn: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Pixel coordinates in frames turned by ``turn`` (1 is a full turn)."""
    c, s = np.cos(2 * np.pi * turn), np.sin(2 * np.pi * turn)
    return c * PIXEL_X + s * PIXEL_Y, c * PIXEL_Y - s * PIXEL_X


def smooth_noise(draws: Draws, size: int) -> np.ndarray:
    """Random values on a grid of ``size`` x ``size`` points, interpolated to a field."""
    grid = draws.block(size, size)
    position = (np.arange(IMAGE_SIZE) + 0.5) * ((size - 1) / IMAGE_SIZE)
    low = position.astype(int)
    t = position - low
    rows = grid[:, low] * (1 - t)[:, None] + grid[:, low + 1] * t[:, None]
    return rows[:, :, low] * (1 - t) + rows[:, :, low + 1] * t


def _arc(x: float, y: float, radius: float, start: float = 0, stop: float = 1, flatten: float = 1) -> np.ndarray:
    """Points on a circle, in turns: 0 is right, 0.25 is down."""
    angle = 2 * np.pi * np.linspace(start, stop, 41)
    return np.stack([x + radius * np.cos(angle), y + flatten * radius * np.sin(angle)], axis=1)


def _star(corners: int, inner: float) -> np.ndarray:
    """A star that points up, its notches at the radius ``inner``."""
    angle = 2 * np.pi * (np.arange(2 * corners) / (2 * corners) - 0.25)
    return np.tile([1, inner], corners)[:, None] * np.stack([np.cos(angle), np.sin(angle)], axis=1)


def _filled(*polygons: np.ndarray | Sequence[tuple[float, float]], cut: np.ndarray | None = None) -> Outline:
    """An outline of the given polygons, scaled to the common area."""
    outline = [(np.asarray(polygon, float), True) for polygon in polygons]
    outline += [] if cut is None else [(cut, False)]
    area = _mask(outline, 10 * np.eye(2), np.zeros(2)).sum() / 10**2
    return [(polygon * np.sqrt(_AREA / area), fill) for polygon, fill in outline]


def _mask(outline: Outline, matrix: np.ndarray, centre: np.ndarray) -> np.ndarray:
    """An outline under a linear map to pixels, around ``centre`` (from the middle of the image): ``[32, 32]``."""
    picture = Image.new("L", (IMAGE_SIZE * _FINE,) * 2)
    pen = ImageDraw.Draw(picture)
    for polygon, fill in outline:
        pen.polygon(((polygon @ matrix.T + centre + IMAGE_SIZE / 2) * _FINE).ravel().tolist(), 255 if fill else 0)
    return np.asarray(picture.reduce(_FINE)) / 255


def outlines(labels: np.ndarray, draws: Draws, kinds: Mapping[str, Outline]) -> np.ndarray:
    """Each image's own outline, by the label's position in ``kinds``: moved, scaled, turned and a little stretched."""
    size, turn, stretch = draws.between(9, 12), draws.between(-0.5, 0.5), draws.between(0.9, 1.1)
    along, across, centres = size * stretch, size / stretch, 7 * draws.block(2) - 3.5
    entries = [np.cos(turn) * along, -np.sin(turn) * across, np.sin(turn) * along, np.cos(turn) * across]
    matrices = np.concatenate(entries, axis=1).reshape(-1, 2, 2)
    by_label, each = list(kinds.values()), zip(labels, matrices, centres, strict=True)
    return np.stack([_mask(by_label[label], matrix, centre) for label, matrix, centre in each])


def numerals(labels: np.ndarray, draws: Draws) -> np.ndarray:
    """A numeral in Pillow's own font, often with neighbours that the edge cuts off."""
    fonts = [ImageFont.load_default(_FINE * points) for points in range(18, 34, 2)]
    masks = []
    for digit, (left, right, size, turn, x, y) in zip(labels, draws.block(6), strict=True):
        before, after = ("0123456789      "[int(16 * neighbour)] for neighbour in (left, right))
        picture = Image.new("L", (IMAGE_SIZE * _FINE,) * 2)
        middle = (_FINE * (14 + 4 * x), _FINE * (14 + 4 * y))
        ImageDraw.Draw(picture).text(middle, f"{before}{digit}{after}", 255, fonts[int(8 * size)], anchor="mm")
        masks.append(np.asarray(picture.rotate(16 * turn - 8, Image.Resampling.BILINEAR).reduce(_FINE)) / 255)
    return np.stack(masks)


def textures(labels: np.ndarray, draws: Draws) -> np.ndarray:
    """Each image's texture, by the label's position in :data:`TEXTURES`."""
    x, y = rotated(draws.between(0, 1))
    bend, period = draws.between(0, 6), draws.between(3.5, 8)
    x, y = (axis + bend * (smooth_noise(draws, 4) - 0.5) for axis in (x, y))
    cloud = 0.6 * smooth_noise(draws, 6) + 0.4 * smooth_noise(draws, 12)
    field = np.empty(x.shape)
    for label, draw in enumerate(TEXTURES.values()):
        at = labels == label
        field[at] = draw(x[at] / period[at], y[at] / period[at], cloud[at])
    return field


def _wave(turns: np.ndarray) -> np.ndarray:
    return 0.5 + 0.5 * np.sin(2 * np.pi * turns)


TEXTURES: dict[str, Callable[[np.ndarray, np.ndarray, np.ndarray], np.ndarray]] = {
    "stripes": lambda x, y, cloud: _wave(x),
    "checks": lambda x, y, cloud: np.where((np.floor(x) + np.floor(y)) % 2 == 0, 0.1, 0.9),
    "dots": lambda x, y, cloud: np.clip(2.5 - 5 * np.hypot(x % 1 - 0.5, y % 1 - 0.5), 0, 1),
    "clouds": lambda x, y, cloud: np.clip(2 * cloud - 0.5, 0, 1),
    "wood": lambda x, y, cloud: (np.hypot(x + 2, y / 2) + 0.5 * cloud) % 1,
    "zigzag": lambda x, y, cloud: _wave(x + np.abs(y % 2 - 1)),
}

_circle = _arc(0, 0, 1)
CLASSES: dict[str, Outline] = {
    "circle": _filled(_circle), "square": _filled([(-1, -1), (1, -1), (1, 1), (-1, 1)]),
    "triangle": _filled([(0, -1), (0.87, 0.5), (-0.87, 0.5)]), "star": _filled(_star(5, 0.42)),
    "cross": _filled([(-1, -0.3), (1, -0.3), (1, 0.3), (-1, 0.3)], [(-0.3, -1), (0.3, -1), (0.3, 1), (-0.3, 1)]),
    "ring": _filled(_circle, cut=_arc(0, 0, 0.56)), "crescent": _filled(_circle, cut=_arc(0.55, 0, 0.8)),
    "heart": _filled(_arc(-0.5, -0.35, 0.55), _arc(0.5, -0.35, 0.55), [(-1, -0.1), (0, -0.5), (1, -0.1), (0, 1)]),
    "diamond": _filled([(0, -1.2), (0.7, 0), (0, 1.2), (-0.7, 0)]),
    "arrow": _filled([(1, 0), (0, -0.9), (0, -0.36), (-1, -0.36), (-1, 0.36), (0, 0.36), (0, 0.9)]),
}  # fmt: skip
UNSEEN: dict[str, Outline] = {
    "ellipse": _filled(_arc(0, 0, 1, flatten=0.45)),
    "half_disc": _filled(_arc(0, 0.4, 1, 0.5, 1)),
    "drop": _filled(_arc(0, 0.35, 0.65), [(-0.6, 0.12), (0, -1.2), (0.6, 0.12)]),
    "four_pointed_star": _filled(_star(4, 0.4)),
    "bow_tie": _filled([(-1, -0.8), (0, -0.15), (1, -0.8), (1, 0.8), (0, 0.15), (-1, 0.8)]),
    "chevron": _filled([(-0.9, -0.9), (-0.1, -0.9), (0.9, 0), (-0.1, 0.9), (-0.9, 0.9), (0.1, 0)]),
    "bolt": _filled([(0.2, -1.2), (-0.75, 0.2), (-0.05, 0.2), (-0.3, 1.2), (0.75, -0.3), (0.05, -0.3)]),
}


class SyntheticSet(NamedTuple):
    key: int  # of its random stream
    classes: int  # 0: no labels
    render: Callable[[np.ndarray, Draws, np.ndarray], np.ndarray]  # labels, draws, uniform pixels -> grey levels
    splits: tuple[str, ...] = ("test",)


def synthetic_images(name: str, split: str, count: int | None = None) -> ImageSet:
    """Draw one of :data:`SYNTHETIC`, uint8 ``[count, 32, 32, 3]``; labels are 0, 1, 2, .. in turn, so balanced.

    By default 10,000 images for training, 2,000 for testing, each from a stream of its own; the first n do not depend
    on ``count``. UserError for a split that the set lacks, or a count out of range.
    """
    recipe = SYNTHETIC[name]
    if split not in recipe.splits:
        raise UserError(f"the built-in set {name!r} has no split {split!r}: choose one of {', '.join(recipe.splits)}")
    count = {"train": 10_000, "test": 2_000}[split] if count is None else count
    if not 1 <= count <= 10**6:
        raise UserError(f"count {count} of the built-in set {name!r}: expected a whole number from 1 to 1000000")
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
    stripes = _wave(x * draws.between(0.02, 0.25) + draws.between(0, 1))
    return _mix(np.where(draws.between(0, 1) < 0.33, smooth_noise(draws, 8), stripes), colour, near)


def _picture(
    labels: np.ndarray, draws: Draws, pixels: np.ndarray, figure: Callable[..., np.ndarray], clutter: bool = False
) -> np.ndarray:
    """A figure on a ground of another colour, sometimes with a disc behind it and a strip in front, under noise."""
    ground = draws.block(3, 1, 1)
    unlike = (ground + 0.25 + 0.5 * draws.block(3, 1, 1)) % 1  # as uniform as the ground, and never close to it
    inside, image = _shaded(unlike, draws), _shaded(ground, draws)
    if clutter:
        x, y, radius = draws.between(-16, 16), draws.between(-16, 16), draws.between(1, 5)
        disc = np.clip(radius - np.hypot(PIXEL_X - x, PIXEL_Y - y), 0, 1)
        image = _mix(disc * (draws.between(0, 1) < 0.5), image, draws.block(3, 1, 1))
    image = _mix(figure(labels, draws), image, inside)
    if clutter:
        x, _ = rotated(draws.between(0, 1))
        strip = np.clip(draws.between(0.8, 2) - np.abs(x - draws.between(-11, 11)), 0, 1)
        image = _mix(strip * (draws.between(0, 1) < 0.35), image, draws.block(3, 1, 1))
    return np.rint(255 * np.clip(image + (pixels - 0.5) * (draws.between(0, 0.05) * np.sqrt(12))[:, None], 0, 1))


# Uniform numbers below each bound give this grey level or a darker one: a normal variable, rounded and clipped.
_GAUSSIAN_LEVELS = np.array([NormalDist(127.5, 63.75).cdf(level + 0.5) for level in range(255)])
_cluttered = partial(_picture, clutter=True)

SYNTHETIC: dict[str, SyntheticSet] = {
    "shapes": SyntheticSet(1, 10, partial(_cluttered, figure=partial(outlines, kinds=CLASSES)), ("train", "test")),
    "digits": SyntheticSet(2, 10, partial(_picture, figure=numerals)),
    "textures": SyntheticSet(3, len(TEXTURES), partial(_picture, figure=textures)),
    "unseen_shapes": SyntheticSet(4, len(UNSEEN), partial(_cluttered, figure=partial(outlines, kinds=UNSEEN))),
    "gaussian_noise": SyntheticSet(5, 0, lambda _, __, pixels: np.searchsorted(_GAUSSIAN_LEVELS, pixels, "right")),
    "uniform_noise": SyntheticSet(6, 0, lambda _, __, pixels: np.floor(256 * pixels)),
}
