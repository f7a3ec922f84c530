"""Intervals: over images by the bootstrap, and over seeds *and* images.

A resample of n images is one row of *counts*, how often each was drawn. Drawn once per set, by the set's name, the same
counts serve every condition, score and network, so that differences are *paired*.
"""

import math
import zlib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import scipy.special
import torch

from bnood.errors import UserError

# Resamples are used some rows at a time: with smaller steps, threads wait for the interpreter; larger ones take memory.
_VALUES_PER_CHUNK, _ROWS_PER_PRODUCT = 1 << 18, 64


def set_counts(name: str, n: int, resamples: int, seed: int) -> np.ndarray:
    """The set ``name`` as it is, every image once, then its resamples: ``[1 + resamples, n]`` uint8."""
    resampled = resample_counts(n, resamples, [seed, zlib.crc32(name.encode())])
    return np.concatenate([np.ones((1, n), np.uint8), resampled])


def resample_counts(n: int, resamples: int, seed: int | Sequence[int]) -> np.ndarray:
    """How often each of ``n`` images is drawn in each resample: ``[resamples, n]`` uint8, every row sums to ``n``.

    Every version of NumPy gives the same counts: ``RandomState``'s stream is frozen (NumPy Enhancement Proposal 19).
    """
    random = np.random.RandomState(seed)
    counts = np.empty((resamples, n), np.uint8)
    for rows in row_chunks(resamples, n):
        # Drawing n images and counting them is the multinomial distribution, many times faster than np.multinomial.
        drawn = random.randint(0, n, size=(rows.stop - rows.start, n), dtype=np.int32)
        # More than 255 draws of one image cannot happen up to n = 255; beyond, the probability is below 1e-500.
        counts[rows] = [np.bincount(row, minlength=n) for row in drawn]
    return counts


def weighted_means(values: np.ndarray, counts: np.ndarray) -> np.ndarray:
    """The means of M per-image quantities in each of R resamples: ``[N, M]`` and counts ``[R, N]`` -> ``[R, M]``."""
    columns = torch.from_numpy(np.asarray(values, dtype=np.float64))
    means = torch.empty(len(counts), columns.shape[1], dtype=torch.float64)
    # By torch, whose threads the network's passes have woken already: NumPy's would compete with them for the cores.
    for start in range(0, len(counts), _ROWS_PER_PRODUCT):
        of_rows = means[start : start + _ROWS_PER_PRODUCT]
        weights = torch.from_numpy(counts[start : start + _ROWS_PER_PRODUCT]).to(torch.float64)
        torch.mm(weights, columns, out=of_rows)
        of_rows /= weights.sum(dim=1, keepdim=True)
    return means.numpy()


def interval(values: np.ndarray, level: float = 0.95) -> tuple[float, float]:
    """The percentile interval (low, high) of a bootstrapped metric ``[R]``, R >= 2, at confidence ``level``."""
    values, missing = np.asarray(values, dtype=np.float64), int(np.isnan(values).sum())
    if values.ndim != 1 or len(values) < 2 or missing:
        shape = list(values.shape)
        raise UserError(f"an interval needs values of shape [R], R >= 2, without NaN, not {missing} NaN in {shape}")
    low, high = np.quantile(values, [(1 - level) / 2, (1 + level) / 2])
    return float(low), float(high)


def row_chunks(rows: int, row_length: int) -> list[slice]:
    """Slices that divide ``rows`` rows of ``row_length`` values into chunks of bounded size."""
    step = max(1, _VALUES_PER_CHUNK // max(1, row_length))
    return [slice(start, min(start + step, rows)) for start in range(0, rows, step)]


class Unusable(UserError):
    """Something cannot be estimated from the tables at hand; the message is the reason."""


class Interval(NamedTuple):
    """An estimate with its interval."""

    effect: float
    low: float
    high: float
    standard_error: float  # 0 where nothing varied


@dataclass(frozen=True)
class Replicates:
    """One quantity, measured with every seed; :class:`Unusable` for under two resamples, and values not finite."""

    seeds: tuple[int, ...]  # S seeds, ascending
    values: np.ndarray  # float64 [S], the quantity on all images
    draws: np.ndarray  # float64 [S, R], in each bootstrap resample of the images, paired over seeds

    def __post_init__(self) -> None:
        if self.draws.shape[1] < 2:
            raise Unusable(f"an interval needs at least 2 bootstrap resamples, not {self.draws.shape[1]}")
        if not (np.isfinite(self.values).all() and np.isfinite(self.draws).all()):
            raise Unusable("values or resamples are NaN or infinite")

    def __sub__(self, other: "Replicates") -> "Replicates":
        """The paired difference, on the seeds that both have."""
        return linear([(1.0, self), (-1.0, other)])

    def only(self, seeds: Iterable[int]) -> "Replicates":
        """The part with these seeds."""
        wanted = set(seeds)
        kept = [position for position, seed in enumerate(self.seeds) if seed in wanted]
        if not kept:
            raise Unusable("no seed is common to all that is compared")
        return Replicates(tuple(self.seeds[k] for k in kept), self.values[kept], self.draws[kept])

    def interval(self, level: float = 0.95) -> Interval:
        """:func:`seeds_interval` of the mean over seeds; of one seed, the percentile interval over images alone."""
        if len(self.seeds) == 1:
            low, high = interval(self.draws[0], level)
            return Interval(float(self.values[0]), low, high, float(self.draws.std(ddof=1)))
        return Interval(*map(float, seeds_interval(self.values, self.draws, level)))

    def effect_size(self, null: float = 0.0) -> float:
        """Cohen's d_z (Lakens 2013, equation 6); NaN for one seed, and where nothing but rounding differs."""
        values = self.values - null
        spread = float(np.std(values, ddof=1)) if len(values) > 1 else 0.0
        return float(np.mean(values)) / spread if spread > 1e-12 * float(np.abs(values).max()) else math.nan


@dataclass(frozen=True)
class Ratio:
    """A ratio of two means over seeds, of quantities with the same seeds."""

    numerator: Replicates
    denominator: Replicates

    @property
    def seeds(self) -> tuple[int, ...]:
        return self.numerator.seeds

    @property
    def values(self) -> np.ndarray:
        """float64 ``[S]``, each seed's own ratio; NaN where its denominator is 0."""
        below = self.denominator.values
        return np.divide(self.numerator.values, below, out=np.full(len(below), np.nan), where=below != 0)

    def interval(self, level: float = 0.95) -> Interval:
        """The ratio of the two means with Fieller's (1954) interval.

        It holds every ratio rho at which ``numerator - rho * denominator`` is not distinguishable from 0 by
        :func:`seeds_interval`: with n and d the means and W the matrix of squared half widths (and their covariance),
        the rho between the roots of (n - rho d)^2 = W_nn - 2 rho W_nd + rho^2 W_dd. Where the denominator itself is not
        distinguishable from 0 (d^2 <= W_dd), the bounds are infinite. Of one seed, the images' part alone.
        """
        parts = self.numerator, self.denominator
        seeds, resamples = self.numerator.draws.shape
        n, d = (float(part.values.mean()) for part in parts)
        if d == 0:
            raise Unusable("the whole effect is exactly 0, so that no share of it can be given")
        values = np.stack([part.values for part in parts])
        over_seeds = np.cov(values, ddof=1) / seeds if seeds > 1 else np.zeros((2, 2))
        over_images = np.cov(np.stack([part.draws.mean(axis=0) for part in parts]), ddof=1)
        contrast = np.array([1.0, -n / d])
        # The delta method's; rounding can take a variance of 0 below 0.
        error = math.sqrt(max(0.0, float(contrast @ (over_seeds + over_images) @ contrast))) / abs(d)
        for_seeds, for_images = _quantiles(seeds, resamples, level)
        widths = for_seeds**2 * over_seeds + for_images**2 * over_images
        square = d**2 - widths[1, 1]
        if square <= 0:
            return Interval(n / d, -math.inf, math.inf, error)
        middle = (n * d - widths[0, 1]) / square
        half = math.sqrt(max(0.0, middle**2 - (n**2 - widths[0, 0]) / square))
        return Interval(n / d, middle - half, middle + half, error)

    def effect_size(self, null: float = 0.0) -> float:
        """That of the numerator, the amount that is moved: a ratio over a denominator near 0 has no usable spread."""
        return self.numerator.effect_size(null)


def linear(parts: Sequence[tuple[float, Replicates]]) -> Replicates:
    """The weighted sum of quantities, per seed and per resample, on the seeds that all of them have."""
    common = set.intersection(*(set(part.seeds) for _, part in parts))
    kept = [(weight, part.only(common)) for weight, part in parts]
    resamples = {part.draws.shape[1] for _, part in kept}
    if len(resamples) > 1:
        raise Unusable(f"the sides of a comparison have {sorted(resamples)} resamples: evaluate all with one number")
    values = np.sum([weight * part.values for weight, part in kept], axis=0)
    draws = np.sum([weight * part.draws for weight, part in kept], axis=0)
    return Replicates(kept[0][1].seeds, values, draws)


def mean_of(parts: Sequence[Replicates]) -> Replicates:
    """The mean of quantities with equal weight, per seed and per resample."""
    return linear([(1 / len(parts), part) for part in parts])


def seeds_interval(values: np.ndarray, draws: np.ndarray, level: float = 0.95) -> tuple[np.ndarray, ...]:
    """Mean over S >= 2 seeds, lower and upper bound, standard error.

    The squared standard error has two parts, for other seeds and for other images, each with a half width of its own by
    Student's t; the interval's half width is the root of the sum of their squares (Howe, JASA 69, 1974)::

        v_seeds = var_s(values) / S,  v_images = var_r(mean_s draws),  h^2 = t(S - 1)^2 v_seeds + t(R - 1)^2 v_images

    At a stated 95 % it covers 95 to 99 %: noise that is particular to a seed *and* its images is in both parts.

    ``values`` ``[..., S]`` are each seed on all images, ``draws`` ``[..., S, R]`` each seed in R >= 2 bootstrap
    resamples of the images, the same for every seed; leading dimensions are studies of their own.
    """
    seeds, resamples = draws.shape[-2:]
    var_seeds = values.var(axis=-1, ddof=1) / seeds
    var_images = draws.mean(axis=-2).var(axis=-1, ddof=1)
    for_seeds, for_images = _quantiles(seeds, resamples, level)
    mean, half = values.mean(axis=-1), np.sqrt(for_seeds**2 * var_seeds + for_images**2 * var_images)
    return mean, mean - half, mean + half, np.sqrt(var_seeds + var_images)


def _quantiles(seeds: int, resamples: int, level: float) -> tuple[float, float]:
    """Student's t for the seeds' part (0 for one seed, which has none) and for the images'."""
    both = scipy.special.stdtrit(np.array([max(seeds - 1, 1), resamples - 1]), (1 + level) / 2)
    return (float(both[0]) if seeds > 1 else 0.0), float(both[1])
