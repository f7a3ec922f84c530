"""Estimates and intervals over seeds *and* images: what would other trainings, and other test images, have shown?

A study has S trained networks (seeds) that are all scored on the same images. With ``e_s`` the effect of seed s on all
images and ``d_s[r]`` the same effect in bootstrap resample r of the images (the same resample for every seed), the
estimate is the mean of ``e_s`` and its squared standard error has two parts,

    v_seeds = var_s(e_s) / S,    v_images = var_r(mean_s d_s[r]),

the first for other seeds (sample variance, ddof 1), the second for other images. Each has a half width of its own, with
Student's t at its own degrees of freedom, and the interval's half width is the root of the sum of their squares (Howe
1974),

    h^2 = t(S - 1)^2 v_seeds + t(R - 1)^2 v_images,

which is Student's interval where only seeds vary, and the bootstrap's normal one where only images do. In between it
covers 95 to 99 % at a stated 95 %, for any number of seeds. The more usual t with Satterthwaite's (1946) degrees of
freedom for the sum is right at both ends too, but covers as little as 92 % in between with three seeds and 87 % with
two: a v_seeds that happens to be small passes for a well-known one. Noise that is particular to a seed *and* its images
is in both parts, so that the interval is then rather too wide than too narrow.

The usual percentile bootstrap over seeds is not used because it is far too narrow for three or five of them: it cannot
leave the range of what was seen, and its spread is too small by sqrt((S - 1) / S) (Hesterberg 2015).
``tests/evaluation/test_intervals.py`` shows the coverage of all three.

Sources: W. G. Howe, "Approximate confidence limits on the mean of X + Y where X and Y are two tabled independent random
variables", JASA 69 (1974); F. E. Satterthwaite, "An approximate distribution of estimates of variance components",
Biometrics Bulletin 2 (1946); T. C. Hesterberg, "What teachers should know about the bootstrap", The American
Statistician 69 (2015); E. C. Fieller, "Some problems in interval estimation", JRSS B 16 (1954); D. Lakens, "Calculating
and reporting effect sizes", Frontiers in Psychology 4 (2013).
"""

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import scipy.special

from bnood.errors import UserError
from bnood.evaluation.bootstrap import interval


class Unusable(UserError):
    """Something cannot be estimated from the tables at hand; the message is the reason."""


class Interval(NamedTuple):
    """An estimate with its interval; ``standard_error`` is 0 where nothing varied."""

    effect: float
    low: float
    high: float
    standard_error: float


@dataclass(frozen=True)
class Replicates:
    """One quantity, measured with every seed.

    Attributes:
        seeds: S seeds, ascending.
        values: float64 ``[S]``, the quantity on all images.
        draws: float64 ``[S, R]``, the quantity in each bootstrap resample of the images, paired over seeds.
        dropped: seeds that one side of a comparison had and another had not.
    """

    seeds: tuple[int, ...]
    values: np.ndarray
    draws: np.ndarray
    dropped: frozenset[int] = frozenset()

    def __post_init__(self) -> None:
        shapes = self.values.shape, self.draws.shape[:1]
        if shapes != ((len(self.seeds),), (len(self.seeds),)) or self.draws.ndim != 2 or not self.seeds:
            raise UserError(
                f"{len(self.seeds)} seeds need values of shape [S] and draws of shape [S, R], S >= 1, not "
                f"{list(self.values.shape)} and {list(self.draws.shape)}"
            )
        if self.draws.shape[1] < 2:
            raise Unusable(f"an interval needs at least 2 bootstrap resamples, not {self.draws.shape[1]}")
        if not (np.isfinite(self.values).all() and np.isfinite(self.draws).all()):
            raise Unusable("values or resamples are NaN or infinite")

    def __sub__(self, other: "Replicates") -> "Replicates":
        """The paired difference, on the seeds that both have."""
        return linear([(1.0, self), (-1.0, other)])

    def only(self, seeds: Iterable[int]) -> "Replicates":
        """The part with these seeds; the others are noted as dropped. Raises :class:`Unusable` if none is left."""
        wanted = set(seeds)
        kept = [position for position, seed in enumerate(self.seeds) if seed in wanted]
        if not kept:
            raise Unusable("no seed is common to all that is compared")
        dropped = self.dropped | (set(self.seeds) ^ {self.seeds[position] for position in kept})
        return Replicates(tuple(self.seeds[k] for k in kept), self.values[kept], self.draws[kept], dropped)

    def interval(self, level: float = 0.95) -> Interval:
        """:func:`seeds_interval` of the mean over seeds; of one seed, the percentile interval over images alone."""
        if len(self.seeds) == 1:
            low, high = interval(self.draws[0], level)
            return Interval(float(self.values[0]), low, high, float(self.draws.std(ddof=1)))
        effect, low, high, error = (float(figure) for figure in seeds_interval(self.values, self.draws, level))
        return Interval(effect, low, high, error)

    def effect_size(self, null: float = 0.0) -> float:
        """:func:`standardised_effect` of the values over ``null``."""
        return standardised_effect(self.values - null)


@dataclass(frozen=True)
class Ratio:
    """A ratio of two means over seeds, of quantities with the same seeds."""

    numerator: Replicates
    denominator: Replicates

    @property
    def seeds(self) -> tuple[int, ...]:
        return self.numerator.seeds

    @property
    def dropped(self) -> frozenset[int]:
        return self.numerator.dropped | self.denominator.dropped

    @property
    def values(self) -> np.ndarray:
        """float64 ``[S]``, each seed's own ratio; NaN where its denominator is 0."""
        below = self.denominator.values
        return np.divide(self.numerator.values, below, out=np.full(len(below), np.nan), where=below != 0)

    def interval(self, level: float = 0.95) -> Interval:
        """:func:`ratio_interval`."""
        return ratio_interval(self.numerator, self.denominator, level)

    def effect_size(self, null: float = 0.0) -> float:
        """That of the numerator, the amount that is moved: a ratio over a denominator near 0 has no usable spread."""
        return self.numerator.effect_size(null)


def linear(parts: Sequence[tuple[float, Replicates]]) -> Replicates:
    """The weighted sum of quantities, per seed and per resample, on the seeds that all of them have.

    Raises :class:`Unusable` where they have no seed in common, or not the same number of resamples.
    """
    common = set.intersection(*(set(part.seeds) for _, part in parts))
    kept = [(weight, part.only(common)) for weight, part in parts]
    resamples = {part.draws.shape[1] for _, part in kept}
    if len(resamples) > 1:
        raise Unusable(f"the sides of a comparison have {sorted(resamples)} resamples: evaluate all with one number")
    values = np.sum([weight * part.values for weight, part in kept], axis=0)
    draws = np.sum([weight * part.draws for weight, part in kept], axis=0)
    return Replicates(kept[0][1].seeds, values, draws, frozenset().union(*(part.dropped for _, part in kept)))


def mean_of(parts: Sequence[Replicates]) -> Replicates:
    """The mean of quantities with equal weight, per seed and per resample."""
    return linear([(1 / len(parts), part) for part in parts])


def ratio_of(numerator: Replicates, denominator: Replicates) -> Ratio:
    """The ratio on the seeds that both have."""
    common = set(numerator.seeds) & set(denominator.seeds)
    return Ratio(numerator.only(common), denominator.only(common))


def seeds_interval(
    values: np.ndarray, draws: np.ndarray, level: float = 0.95
) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Mean over seeds, lower and upper bound, standard error, as the module's head derives them.

    Args:
        values: ``[..., S]``, S >= 2 seeds; leading dimensions are studies of their own.
        draws: ``[..., S, R]``, R >= 2.
        level: of confidence, in (0, 1).

    Raises ``UserError`` for fewer than two seeds and levels outside (0, 1).
    """
    seeds, resamples = draws.shape[-2:]
    if seeds < 2 or values.shape[-1] != seeds:
        raise UserError(f"an interval over seeds needs at least 2 seeds and their draws, not {list(values.shape)}")
    var_seeds = values.var(axis=-1, ddof=1) / seeds
    var_images = draws.mean(axis=-2).var(axis=-1, ddof=1)
    for_seeds, for_images = _quantiles(seeds, resamples, level)
    mean, half = values.mean(axis=-1), np.sqrt(for_seeds**2 * var_seeds + for_images**2 * var_images)
    return mean, mean - half, mean + half, np.sqrt(var_seeds + var_images)


def _quantiles(seeds: int, resamples: int, level: float) -> tuple[float, float]:
    """Student's t for the seeds' part (0 for one seed, which has none) and for the images'."""
    if not 0 < level < 1:
        raise UserError(f"the level of an interval has to lie between 0 and 1 (0.95, say), not {level}")
    both = scipy.special.stdtrit(np.array([max(seeds - 1, 1), resamples - 1]), (1 + level) / 2)
    return (float(both[0]) if seeds > 1 else 0.0), float(both[1])


def ratio_interval(numerator: Replicates, denominator: Replicates, level: float = 0.95) -> Interval:
    """The ratio of two means over seeds with Fieller's (1954) interval.

    The interval holds every ratio rho at which ``numerator - rho * denominator`` is not distinguishable from 0 by the
    interval of this module: with n and d the means and W the matrix of squared half widths (and their covariance), the
    rho between the roots of

        (n - rho d)^2 = W_nn - 2 rho W_nd + rho^2 W_dd.

    Where the denominator itself is not distinguishable from 0 (d^2 <= W_dd), no ratio can be excluded so: the bounds
    are infinite. Of one seed, the images' part alone.

    Raises :class:`Unusable` where the mean of the denominator is exactly 0.
    """
    seeds, resamples = numerator.draws.shape
    if numerator.seeds != denominator.seeds or numerator.draws.shape != denominator.draws.shape:
        raise UserError("a ratio needs numerator and denominator of the same seeds and resamples")
    n, d = float(numerator.values.mean()), float(denominator.values.mean())
    if d == 0:
        raise Unusable("the whole effect is exactly 0, so that no share of it can be given")
    values = np.stack([numerator.values, denominator.values])
    over_seeds = np.cov(values, ddof=1) / seeds if seeds > 1 else np.zeros((2, 2))
    over_images = np.cov(np.stack([numerator.draws.mean(axis=0), denominator.draws.mean(axis=0)]), ddof=1)
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


def standardised_effect(values: np.ndarray) -> float:
    """Cohen's d_z of paired effects ``[S]``: mean / standard deviation, ddof 1 (Lakens 2013, equation 6).

    NaN for one seed, and where the effects do not differ.

    >>> standardised_effect(np.array([1.0, 2.0, 3.0]))
    2.0
    """
    if len(values) < 2 or not np.isfinite(values).all():
        return math.nan
    spread = float(np.std(values, ddof=1))
    # Equal values have a spread of rounding errors.
    return math.nan if spread <= 1e-12 * float(np.abs(values).max()) else float(np.mean(values)) / spread
