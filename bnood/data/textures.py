"""Procedural textures: what the embedded set ``textures`` is made of, in DTD's (Cimpoi et al. 2014) place."""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from bnood.data.drawing import IMAGE_SIZE, Draws, coverage, rotated, sine, value_noise


@dataclass(frozen=True)
class Weft:
    """What the textures of n images are woven from; every field is ``[n, 32, 32]``, every number ``[n, 1, 1]``.

    Attributes:
        x, y: pixel coordinates, turned.
        period: the pattern's length in pixels.
        phase, share: numbers in 0 to 1 (share stays away from the ends).
        coarse, fine, grit: smooth noise in 0 to 1 at about 8, 4 and 2 pixels.
        points: ``[n, 14, 2]``, positions in pixels.
    """

    x: np.ndarray
    y: np.ndarray
    period: np.ndarray
    phase: np.ndarray
    share: np.ndarray
    coarse: np.ndarray
    fine: np.ndarray
    grit: np.ndarray
    points: np.ndarray

    def at(self, index: np.ndarray) -> "Weft":
        """The images at ``index``."""
        return Weft(**{name: value[index] for name, value in vars(self).items()})


def _fraction(value: np.ndarray) -> np.ndarray:
    return value - np.floor(value)


def _sharpened(wave: np.ndarray, w: Weft) -> np.ndarray:
    """A wave of -1 to 1 as 0 to 1, from soft to hard-edged by the image's share."""
    return np.clip(0.5 + wave * (0.5 + 2 * w.share), 0, 1)


def _stripes(w: Weft) -> np.ndarray:
    return _sharpened(sine(w.x / w.period + w.phase), w)


def _checks(w: Weft) -> np.ndarray:
    return _sharpened(sine(w.x / (2 * w.period) + w.phase) * sine(w.y / (2 * w.period)) * 2, w)


def _dots(w: Weft) -> np.ndarray:
    row = w.y / w.period + w.phase
    u = _fraction(w.x / w.period + _fraction(np.floor(row) / 2)) - 0.5  # every other row is shifted
    v = _fraction(row) - 0.5
    return coverage((np.sqrt(u * u + v * v) - (0.2 + 0.2 * w.share)) * w.period, 1.2)


def _clouds(w: Weft) -> np.ndarray:
    return np.clip((0.55 * w.coarse + 0.3 * w.fine + 0.15 * w.grit - 0.5) * 1.8 + 0.5, 0, 1)


def _marble(w: Weft) -> np.ndarray:
    vein = 1 - np.abs(sine(w.x / (5 * w.period) + w.phase + 0.9 * w.coarse + 0.4 * w.fine))
    return np.clip(1.1 - vein * vein * (1.1 + w.share) + 0.3 * (w.grit - 0.5), 0, 1)


def _cells(w: Weft) -> np.ndarray:
    """Voronoi cells: bright within, dark where the nearest two points are equally far."""
    first = np.full(w.x.shape, np.inf)
    second = first
    for number in range(w.points.shape[1]):
        dx = w.x - w.points[:, number, 0][:, None, None]
        dy = w.y - w.points[:, number, 1][:, None, None]
        distance = np.sqrt(dx * dx + dy * dy)
        second = np.minimum(second, np.maximum(first, distance))
        first = np.minimum(first, distance)
    return np.clip((second - first) / (1.5 + 4 * w.share), 0, 1)


def _weave(w: Weft) -> np.ndarray:
    """Threads that pass over and under each other in turn, each rounded by its shading."""
    u, v = w.x / w.period + w.phase, w.y / w.period
    over = _fraction((np.floor(u) + np.floor(v)) / 2) < 0.25
    across, along = np.abs(_fraction(u) - 0.5), np.abs(_fraction(v) - 0.5)
    thread = np.where(over, across, along)
    return np.clip(1.15 - 2 * thread - 0.35 * over, 0, 1)


def _bricks(w: Weft) -> np.ndarray:
    row = w.y / w.period + w.phase
    brick = w.x / (2 * w.period) + _fraction(np.floor(row) / 2)
    to_joint = np.minimum(
        (0.5 - np.abs(_fraction(row) - 0.5)) * w.period, (0.5 - np.abs(_fraction(brick) - 0.5)) * 2 * w.period
    )
    return coverage(0.6 - to_joint) * (0.75 + 0.4 * (w.fine - 0.5))


def _wood(w: Weft) -> np.ndarray:
    dx, dy = w.x - w.points[:, 0, 0][:, None, None], w.y - w.points[:, 0, 1][:, None, None]
    radius = np.sqrt(dx * dx + dy * dy / 4)
    return np.clip(_fraction(radius / w.period + w.phase + 0.8 * w.coarse) + 0.4 * (w.grit - 0.5), 0, 1)


def _zigzag(w: Weft) -> np.ndarray:
    fold = np.abs(_fraction(w.y / (2 * w.period) + w.phase) - 0.5) * 2 * w.period
    return _sharpened(sine((w.x + fold) / w.period), w)


def _scales(w: Weft) -> np.ndarray:
    """Overlapping round scales, as of a fish: each row hides the lower part of the one above."""
    shade = np.zeros(w.x.shape)
    row = w.y / w.period + w.phase
    for behind in (2, 1, 0):
        number = np.floor(row) - behind
        u = _fraction(w.x / (2 * w.period) + 0.5 * number) - 0.5  # every other row is shifted
        v = (row - number) / 2
        radius = np.sqrt(u * u + v * v)
        shade = np.where(radius < 0.56, np.clip(1.1 - 1.7 * radius, 0, 1), shade)
    return shade


def _speckles(w: Weft) -> np.ndarray:
    return np.clip((0.5 * w.fine + 0.5 * w.grit - 0.4 - 0.25 * w.share) * 9, 0, 1)


TEXTURES: dict[str, Callable[[Weft], np.ndarray]] = {
    "stripes": _stripes,
    "checks": _checks,
    "dots": _dots,
    "clouds": _clouds,
    "marble": _marble,
    "cells": _cells,
    "weave": _weave,
    "bricks": _bricks,
    "wood": _wood,
    "zigzag": _zigzag,
    "scales": _scales,
    "speckles": _speckles,
}


def texture(labels: np.ndarray, draws: Draws) -> np.ndarray:
    """Each image's texture, by the label's place in :data:`TEXTURES`: a field in 0 to 1.

    All coordinates are bent a little by smooth noise, because no cloth and no wall is ruled.
    """
    turn, bend = draws.between(0, 1), draws.between(0, 3)
    x, y = rotated(turn)
    x = x + bend * (value_noise(draws.grid(4)) - 0.5) * 2
    y = y + bend * (value_noise(draws.grid(4)) - 0.5) * 2
    period, phase, share = draws.between(3.5, 8), draws.between(0, 1), draws.between(0.1, 0.9)
    coarse, fine, grit = (value_noise(draws.grid(size)) for size in (5, 9, 17))
    points = (draws.block(14, 2) - 0.5) * 1.3 * IMAGE_SIZE
    weft = Weft(x, y, period, phase, share, coarse, fine, grit, points)
    field = np.empty(x.shape)
    for label, draw in enumerate(TEXTURES.values()):
        at = np.flatnonzero(labels == label)
        field[at] = draw(weft.at(at))
    return field
