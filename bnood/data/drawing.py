"""Drawing with arithmetic that gives the same bits everywhere.

The synthetic sets are held by checksums, so their pixels may depend neither on a library's version nor on the
processor. Two rules make that so:

- Random numbers come from ``numpy.random.RandomState.random_sample`` alone, whose stream NumPy has frozen (NEP 19).
- Numbers are only added, subtracted, multiplied, divided, compared, floored and square-rooted, in float64 and
  element by element: operations that IEEE 754 rounds exactly. ``numpy.sin``, ``exp``, matrix products and sums over
  an axis are avoided, because their last bit varies with the version, the vector unit and the order of adding.

A *field* is a float64 array ``[n, 32, 32]``, one value per pixel of n images. Distances are negative inside.
"""

from collections.abc import Sequence
from itertools import pairwise

import numpy as np

IMAGE_SIZE = 32
Point = tuple[float, float]

_PIXELS = np.arange(IMAGE_SIZE) - (IMAGE_SIZE - 1) / 2
PIXEL_X, PIXEL_Y = np.meshgrid(_PIXELS, _PIXELS)
"""Pixel centres, ``[32, 32]`` each, from -15.5 to 15.5; x grows to the right and y downwards."""


def _sine_coefficients() -> list[float]:
    """Taylor's coefficients of sin(2 pi t) in t, (2 pi)^k / k! with alternating signs, for k = 1, 3, .., 13."""
    turn = 6.283185307179586  # 2 pi
    coefficients = [turn]
    for k in (3, 5, 7, 9, 11, 13):
        coefficients.append(-coefficients[-1] * turn * turn / (k * (k - 1)))
    return coefficients


_SINE = _sine_coefficients()


class Draws:
    """Uniform random numbers for n images, dealt out column by column.

    Row i belongs to image i, so what an image draws depends neither on how many images there are nor on how they
    are cut into chunks.

    Args:
        table: ``[n, columns]`` in [0, 1).
    """

    def __init__(self, table: np.ndarray) -> None:
        self.table = table
        self.used = 0

    def block(self, *shape: int) -> np.ndarray:
        """The next unused numbers as ``[n, *shape]``."""
        size = int(np.prod(shape))
        start, self.used = self.used, self.used + size
        return self.table[:, start : self.used].reshape(len(self.table), *shape)

    def between(self, low: float, high: float) -> np.ndarray:
        """One number per image in [low, high), ``[n, 1, 1]``: ready to meet a field."""
        return low + (high - low) * self.block(1, 1)

    def chance(self, probability: float) -> np.ndarray:
        """1.0 with this probability, else 0.0, ``[n, 1, 1]``."""
        return (self.block(1, 1) < probability).astype(np.float64)

    def choice(self, count: int) -> np.ndarray:
        """One of 0 .. count - 1 per image, int64 ``[n]``."""
        return np.floor(self.block() * count).astype(np.int64)

    def grid(self, size: int) -> np.ndarray:
        """``[n, size, size]`` in [0, 1), to be smoothed by :func:`value_noise`."""
        return self.block(size, size)

    def colour(self) -> np.ndarray:
        """A colour per image, ``[n, 3, 1, 1]``."""
        return self.block(3, 1, 1)

    def colour_unlike(self, colour: np.ndarray, distance: float) -> np.ndarray:
        """A colour that differs by at least ``distance`` in every channel, and is as uniform as the one given."""
        moved = colour + distance + (1 - 2 * distance) * self.block(3, 1, 1)
        return moved - np.floor(moved)

    def colour_near(self, colour: np.ndarray, distance: float) -> np.ndarray:
        """A colour that differs by at most ``distance`` in every channel."""
        return np.clip(colour + distance * (2 * self.block(3, 1, 1) - 1), 0, 1)


def sine(turns: np.ndarray) -> np.ndarray:
    """sin(2 pi * turns) by a polynomial of exactly rounded operations; the error stays below 1e-9."""
    t = turns - np.floor(turns + 0.5)
    t = np.minimum(np.maximum(t, -0.5 - t), 0.5 - t)  # folded to a quarter turn on either side
    square = t * t
    total = np.full_like(t, _SINE[-1])
    for coefficient in _SINE[-2::-1]:
        total = total * square + coefficient
    return total * t


def cosine(turns: np.ndarray) -> np.ndarray:
    """cos(2 pi * turns)."""
    return sine(turns + 0.25)


def arc(centre: Point, radii: Point, start: float, stop: float, pieces: int) -> list[Point]:
    """Points on an ellipse from ``start`` to ``stop``, in turns: 0 is right, 0.25 is down, 0.5 is left."""
    turns = start + (stop - start) * np.arange(pieces + 1) / pieces
    xs, ys = centre[0] + radii[0] * cosine(turns), centre[1] + radii[1] * sine(turns)
    return [(float(x), float(y)) for x, y in zip(xs, ys, strict=True)]


def rotated(turn: np.ndarray, x: np.ndarray = PIXEL_X, y: np.ndarray = PIXEL_Y) -> tuple[np.ndarray, np.ndarray]:
    """The coordinates in a frame turned by ``turn`` (``[n, 1, 1]``)."""
    c, s = cosine(turn), sine(turn)
    return c * x + s * y, c * y - s * x


def _squared_distance(x: np.ndarray, y: np.ndarray, start: Point, stop: Point) -> np.ndarray:
    """Squared distance to a straight piece."""
    ex, ey = stop[0] - start[0], stop[1] - start[1]
    wx, wy = x - start[0], y - start[1]
    along = np.clip((wx * ex + wy * ey) / (ex * ex + ey * ey), 0, 1)
    rx, ry = wx - ex * along, wy - ey * along
    return rx * rx + ry * ry


def polyline(x: np.ndarray, y: np.ndarray, points: Sequence[Point]) -> np.ndarray:
    """Distance to a chain of straight pieces."""
    nearest = np.full(x.shape, np.inf)
    for start, stop in pairwise(points):
        nearest = np.minimum(nearest, _squared_distance(x, y, start, stop))
    return np.sqrt(nearest)


def polygon(x: np.ndarray, y: np.ndarray, corners: Sequence[Point]) -> np.ndarray:
    """Signed distance to any simple polygon: a pixel is inside if a ray to its right crosses an odd number of edges."""
    inside = np.zeros(x.shape, bool)
    for start, stop in zip(corners, [*corners[1:], corners[0]], strict=True):
        if start[1] != stop[1]:
            straddles = (y >= start[1]) != (y >= stop[1])
            slope = (stop[0] - start[0]) / (stop[1] - start[1])
            inside ^= straddles & (x - start[0] < (y - start[1]) * slope)
    distance = polyline(x, y, [*corners, corners[0]])
    return np.where(inside, -distance, distance)


def disc(x: np.ndarray, y: np.ndarray, centre: Point, radius: float) -> np.ndarray:
    """Signed distance to a disc."""
    dx, dy = x - centre[0], y - centre[1]
    return np.sqrt(dx * dx + dy * dy) - radius


def coverage(distance: np.ndarray, softness: float | np.ndarray = 1.0) -> np.ndarray:
    """How much of each pixel is covered, 0 to 1, by what lies at this signed distance (in pixels).

    ``softness`` is the width of the edge in pixels: 1 is antialiased, more is blurred.
    """
    return np.clip(0.5 - distance / softness, 0, 1)


def value_noise(grid: np.ndarray) -> np.ndarray:
    """Random values on a coarse grid ``[n, g, g]``, interpolated smoothly to a field (Perlin's fade 3t^2 - 2t^3)."""
    position = (np.arange(IMAGE_SIZE) + 0.5) * ((grid.shape[-1] - 1) / IMAGE_SIZE)
    low = np.floor(position).astype(np.int64)
    t = position - low
    t = t * t * (3 - 2 * t)
    rows = grid[:, low] + (grid[:, low + 1] - grid[:, low]) * t[:, None]
    return rows[:, :, low] + (rows[:, :, low + 1] - rows[:, :, low]) * t


def between_colours(amount: np.ndarray, first: np.ndarray, second: np.ndarray) -> np.ndarray:
    """Mix two colours (or images) ``[n, 3, ..]`` by a field: 0 gives the first. Returns ``[n, 3, 32, 32]``."""
    return first + amount[:, None] * (second - first)


def to_uint8(image: np.ndarray) -> np.ndarray:
    """``[n, 3, 32, 32]`` in 0 to 1 (clipped) -> uint8 ``[n, 32, 32, 3]``, rounded half up."""
    return np.floor(np.clip(image, 0, 1) * 255 + 0.5).astype(np.uint8).transpose(0, 2, 3, 1)
