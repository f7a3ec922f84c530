"""What the synthetic sets draw: outlines of the ten classes, of ten unseen shapes, and strokes of the ten numerals.

An outline maps coordinates (fields; the shape spans about -1 to 1, y downwards) to a signed distance. Areas are kept
alike, so that the share of coloured pixels says little about the class.
"""

from collections.abc import Callable

import numpy as np

from bnood.data.drawing import Point, arc, disc, polygon, polyline

Outline = Callable[[np.ndarray, np.ndarray], np.ndarray]


def _polygon(*corners: Point) -> Outline:
    return lambda x, y: polygon(x, y, corners)


def _regular(corners: int, radius: float, inner: float | None = None) -> Outline:
    """A regular polygon that points up, or a star where an ``inner`` radius is given."""
    if inner is None:
        return _polygon(*arc((0, 0), (radius, radius), -0.25, 0.75, corners)[:-1])
    tips = arc((0, 0), (radius, radius), -0.25, 0.75, corners)[:-1]
    notches = arc((0, 0), (inner, inner), -0.25 + 0.5 / corners, 0.75 + 0.5 / corners, corners)[:-1]
    return _polygon(*(point for pair in zip(tips, notches, strict=True) for point in pair))


def _circle(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    return disc(x, y, (0, 0), 0.86)


def _ring(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    return np.abs(disc(x, y, (0, 0), 0.78)) - 0.22


def _crescent(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    return np.maximum(disc(x, y, (-0.1, 0), 1.0), -disc(x, y, (0.45, 0), 0.8))


def _heart(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    lobes = np.minimum(disc(x, y, (-0.48, -0.35), 0.54), disc(x, y, (0.48, -0.35), 0.54))
    return np.minimum(lobes, polygon(x, y, ((-0.92, -0.03), (0, -0.42), (0.92, -0.03), (0, 1.05))))


def _ellipse(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    return 0.55 * disc(x / 1.15, y / 0.5, (0, 0), 1.0)


def _half_disc(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    return np.maximum(disc(x, y, (0, 0.4), 1.05), y - 0.4)


def _trefoil(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    first, second, third = (disc(x, y, centre, 0.5) for centre in arc((0, 0), (0.58, 0.58), -0.25, 0.75, 3)[:-1])
    return np.minimum(np.minimum(first, second), third)


def _drop(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    return np.minimum(disc(x, y, (0, 0.35), 0.65), polygon(x, y, ((-0.6, 0.12), (0, -1.15), (0.6, 0.12))))


CLASSES: dict[str, Outline] = {
    "circle": _circle,
    "square": _polygon((-0.76, -0.76), (0.76, -0.76), (0.76, 0.76), (-0.76, 0.76)),
    "triangle": _regular(3, 1.15),
    "star": _regular(5, 1.2, 0.5),
    "cross": _polygon(
        *((-0.32, -1), (0.32, -1), (0.32, -0.32), (1, -0.32), (1, 0.32), (0.32, 0.32)),
        *((0.32, 1), (-0.32, 1), (-0.32, 0.32), (-1, 0.32), (-1, -0.32), (-0.32, -0.32)),
    ),
    "ring": _ring,
    "crescent": _crescent,
    "heart": _heart,
    "diamond": _polygon((0, -1.2), (0.75, 0), (0, 1.2), (-0.75, 0)),
    "arrow": _polygon((1.1, 0), (0.1, -0.9), (0.1, -0.36), (-1.05, -0.36), (-1.05, 0.36), (0.1, 0.36), (0.1, 0.9)),
}

UNSEEN: dict[str, Outline] = {
    "ellipse": _ellipse,
    "half_disc": _half_disc,
    "trefoil": _trefoil,
    "drop": _drop,
    "four_pointed_star": _regular(4, 1.25, 0.45),
    "bow_tie": _polygon((-1, -0.8), (0, -0.15), (1, -0.8), (1, 0.8), (0, 0.15), (-1, 0.8)),
    "ell": _polygon((-0.75, -1), (-0.15, -1), (-0.15, 0.4), (0.85, 0.4), (0.85, 1), (-0.75, 1)),
    "tee": _polygon(
        *((-0.95, -0.9), (0.95, -0.9), (0.95, -0.3), (0.3, -0.3)),
        *((0.3, 0.95), (-0.3, 0.95), (-0.3, -0.3), (-0.95, -0.3)),
    ),
    "chevron": _polygon((-0.9, -0.9), (-0.1, -0.9), (0.9, 0), (-0.1, 0.9), (-0.9, 0.9), (0.1, 0)),
    "bolt": _polygon((0.2, -1.2), (-0.75, 0.2), (-0.05, 0.2), (-0.3, 1.2), (0.75, -0.3), (0.05, -0.3)),
}

# Each numeral is a list of strokes in a box of about -0.45..0.45 by -0.78..0.78.
_SIX: list[list[Point]] = [
    arc((0, 0.33), (0.4, 0.45), 0, 1, 12),
    [(0.26, -0.78), (-0.05, -0.58), (-0.28, -0.22), (-0.4, 0.25)],
]
NUMERALS: list[list[list[Point]]] = [
    [arc((0, 0), (0.4, 0.78), 0, 1, 14)],
    [[(-0.26, -0.5), (0.06, -0.78), (0.06, 0.78)]],
    [[*arc((0, -0.36), (0.4, 0.42), -0.5, 0.08, 8), (-0.42, 0.78), (0.44, 0.78)]],
    [
        arc((-0.04, -0.39), (0.38, 0.39), -0.42, 0.25, 8),
        arc((-0.04, 0.38), (0.44, 0.4), -0.25, 0.42, 8),
    ],
    [[(0.2, 0.78), (0.2, -0.78), (-0.46, 0.3), (0.46, 0.3)]],
    [[(0.38, -0.78), (-0.3, -0.78), (-0.35, -0.05), *arc((-0.02, 0.28), (0.42, 0.5), -0.36, 0.4, 9)]],
    _SIX,
    [[(-0.43, -0.78), (0.43, -0.78), (-0.12, 0.78)]],
    [arc((0, -0.41), (0.34, 0.37), 0, 1, 10), arc((0, 0.37), (0.42, 0.41), 0, 1, 10)],
    [[(-x, -y) for x, y in stroke] for stroke in _SIX],
]


def numeral(digit: int, x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """Distance to the middle of the digit's strokes."""
    nearest = np.full(x.shape, np.inf)
    for stroke in NUMERALS[digit]:
        nearest = np.minimum(nearest, polyline(x, y, stroke))
    return nearest
