"""Resamples and intervals over images, over seeds and images: against SciPy, closed forms, by simulated coverage."""

import hashlib
import math

import numpy as np
import pytest
import scipy.stats

from bnood.errors import UserError
from bnood.evaluation.intervals import (
    Ratio,
    Replicates,
    Unusable,
    interval,
    linear,
    mean_of,
    resample_counts,
    seeds_interval,
    set_counts,
    weighted_means,
)  # fmt: skip
from bnood.evaluation.metrics import detection_metrics

STUDIES, RESAMPLES = 3000, 100


def replicates(values: list[float], image_noise: float = 0.0, resamples: int = 200, seed: int = 0) -> Replicates:
    """Values of seeds 0, 1, ... with image noise that all seeds share."""
    noise = image_noise * np.random.default_rng(seed).normal(size=resamples)
    array = np.array(values)
    return Replicates(tuple(range(len(values))), array, array[:, None] + noise)


def simulated(seeds: int, seed_sd: float, image_sd: float, both_sd: float = 0.0) -> tuple[np.ndarray, np.ndarray]:
    """Studies whose true effect is 0: values ``[studies, S]`` and draws ``[studies, S, R]``."""
    random = np.random.default_rng(seeds)
    values = seed_sd * random.normal(size=(STUDIES, seeds)) + image_sd * random.normal(size=(STUDIES, 1))
    values += both_sd * random.normal(size=(STUDIES, seeds))
    draws = values[..., None] + image_sd * random.normal(size=(STUDIES, 1, RESAMPLES))
    if both_sd:
        draws += both_sd * random.normal(size=(STUDIES, seeds, RESAMPLES))
    return values, draws


@pytest.mark.parametrize("seeds", [2, 3, 5])
@pytest.mark.parametrize(
    ("seed_sd", "image_sd", "both_sd"), [(1, 0, 0), (1, 0.3, 0), (1, 1, 0), (0.3, 1, 0), (0, 1, 0), (1, 0.5, 0.5)]
)
def test_the_interval_covers_the_truth_as_often_as_it_says(
    seeds: int, seed_sd: float, image_sd: float, both_sd: float
) -> None:
    _, low, high, _ = seeds_interval(*simulated(seeds, seed_sd, image_sd, both_sd))
    assert 0.94 <= np.mean((low <= 0) & (high >= 0)) <= 0.99


@pytest.mark.parametrize(("seeds", "bootstrap", "satterthwaite"), [(2, 0.85, 0.9), (3, 0.85, 0.935), (5, 0.92, 0.95)])
def test_the_percentile_bootstrap_over_seeds_and_satterthwaites_degrees_of_freedom_cover_less(
    seeds: int, bootstrap: float, satterthwaite: float
) -> None:
    draws = simulated(seeds, 1, 0.3)[1]
    chosen = np.random.default_rng(1).integers(seeds, size=(STUDIES, RESAMPLES, seeds))
    # Resample r takes the chosen seeds in resample r of the images: the hierarchical bootstrap.
    means = np.take_along_axis(draws.transpose(0, 2, 1), chosen, axis=2).mean(axis=2)
    low, high = np.quantile(means, [0.025, 0.975], axis=1)
    assert np.mean((low <= 0) & (high >= 0)) < bootstrap
    values, draws = simulated(seeds, 1, 0.2)
    parts = values.var(axis=1, ddof=1) / seeds, draws.mean(axis=1).var(axis=1, ddof=1)
    degrees = (parts[0] + parts[1]) ** 2 / (parts[0] ** 2 / (seeds - 1) + parts[1] ** 2 / (RESAMPLES - 1))
    half = scipy.stats.t.ppf(0.975, degrees) * np.sqrt(parts[0] + parts[1])
    assert np.mean(np.abs(values.mean(axis=1)) <= half) < satterthwaite


def test_the_half_width_is_the_root_of_the_sum_of_squares() -> None:
    random = np.random.default_rng(0)
    values, noise = random.normal(size=3) + 4, random.normal(size=50)
    effect, low, high, error = seeds_interval(values, values[:, None] + noise, 0.9)
    over_seeds = scipy.stats.t.interval(0.9, 2, scale=scipy.stats.sem(values))[1]
    over_images = scipy.stats.t.interval(0.9, 49, scale=np.std(noise, ddof=1))[1]
    assert effect == pytest.approx(values.mean())
    assert high - effect == pytest.approx(math.hypot(over_seeds, over_images)) == pytest.approx(effect - low)
    assert error == pytest.approx(math.hypot(scipy.stats.sem(values), np.std(noise, ddof=1)))
    one = replicates([3.0], image_noise=1.0)  # of one seed, over images alone
    assert one.interval(0.9)[:3] == (3.0, *interval(one.draws[0], 0.9))


def test_differences_are_paired_by_seed_and_resample_and_use_common_seeds() -> None:
    left = Replicates((0, 1, 3), np.array([1.0, 2.0, 9.0]), np.array([[1.0, 1.5], [2.0, 2.5], [9.0, 9.0]]))
    right = Replicates((1, 0, 2)[:2][::-1], np.array([0.5, 1.0]), np.array([[0.5, 0.0], [1.0, 3.0]]))
    found = left - right
    assert found.seeds == (0, 1)
    assert found.values.tolist() == [0.5, 1.0]
    assert found.draws.tolist() == [[0.5, 1.5], [1.0, -0.5]]
    # The mean over sets has the interval of the mean, not a mean of intervals.
    assert mean_of([left, right]).values.tolist() == [0.75, 1.5]


def test_what_cannot_be_compared_says_so() -> None:
    one = replicates([1.0, 2.0])
    other = Replicates((7,), np.ones(1), np.ones((1, 200)))
    with pytest.raises(Unusable, match="no seed is common"):
        one - other
    with pytest.raises(Unusable, match=r"\[100, 200\] resamples"):
        linear([(1.0, one), (1.0, replicates([1.0, 2.0], resamples=100))])
    with pytest.raises(Unusable, match="NaN"):
        replicates([1.0, math.nan])
    with pytest.raises(Unusable, match="at least 2 bootstrap resamples"):
        replicates([1.0, 2.0], resamples=1)


def test_the_ratios_interval_is_fiellers_closed_form() -> None:
    above, below = replicates([2.0, 2.4, 1.8, 2.1]), replicates([4.0, 4.3, 3.9, 4.4])
    t = scipy.stats.t.ppf(0.975, 3)
    (var_n, cov), (_, var_d) = np.cov(above.values, below.values) / 4
    n, d = above.values.mean(), below.values.mean()
    # Fieller 1954: the roots of (n - rho d)^2 = t^2 (var_n - 2 rho cov + rho^2 var_d).
    roots = np.roots([d**2 - t**2 * var_d, -2 * (n * d - t**2 * cov), n**2 - t**2 * var_n])
    found = Ratio(above, below).interval()
    assert found.effect == pytest.approx(n / d)
    assert (found.low, found.high) == pytest.approx((roots.min(), roots.max()))


@pytest.mark.parametrize("seeds", [3, 5])
def test_the_ratios_interval_covers_the_truth(seeds: int) -> None:
    random, covered, studies = np.random.default_rng(1), 0, 1500
    for _ in range(studies):
        parts = []
        for mean in (1.0, 4.0):
            values = mean + 0.3 * random.normal(size=seeds) + 0.2 * random.normal()
            parts.append(Replicates(tuple(range(seeds)), values, values[:, None] + 0.2 * random.normal(size=(1, 100))))
        found = Ratio(parts[0], parts[1]).interval()
        covered += found.low <= 0.25 <= found.high
    assert 0.93 <= covered / studies <= 0.99


def test_a_ratio_to_nothing_is_unbounded() -> None:
    found = Ratio(replicates([1.0, 1.1, 0.9]), replicates([0.5, -0.4, 0.2])).interval()
    assert (found.low, found.high) == (-math.inf, math.inf) and math.isfinite(found.effect)
    with pytest.raises(Unusable, match="exactly 0"):
        Ratio(replicates([1.0, 1.1]), replicates([0.5, -0.5])).interval()


def test_a_ratio_of_one_seed_has_an_interval_over_images_and_each_seed_its_own_ratio() -> None:
    found = Ratio(replicates([1.0], 0.1), replicates([2.0], 0.1, seed=1)).interval()
    assert 0.3 < found.low < 0.5 < found.high < 0.7
    ratio = Ratio(replicates([1.0, 2.0, 3.0]).only((0, 1)), replicates([2.0, 0.0]))
    assert ratio.seeds == (0, 1) and ratio.values[0] == 0.5 and math.isnan(ratio.values[1])


def test_the_standardised_effect_is_the_paired_t_over_the_root_of_n() -> None:
    values = [0.3, 0.5, 0.1, 0.7]
    expected = scipy.stats.ttest_1samp(values, 0).statistic / 2
    assert replicates(values).effect_size() == pytest.approx(expected)
    assert replicates([1 + value for value in values]).effect_size(null=1.0) == pytest.approx(expected)
    assert math.isnan(replicates([1.0]).effect_size()) and math.isnan(replicates([0.1 * 3] * 3).effect_size())


def test_counts_are_distributed_as_draws_with_replacement() -> None:
    n = 40
    counts = resample_counts(n, 20_000, seed=0).astype(float)
    np.testing.assert_allclose(counts.mean(axis=0), 1, atol=0.04)
    # Multinomial: variance n p (1 - p), covariance -n p p.
    covariance = np.cov(counts.T)
    np.testing.assert_allclose(np.diag(covariance), 1 - 1 / n, atol=0.07)
    assert covariance[~np.eye(n, dtype=bool)].mean() == pytest.approx(-1 / n, abs=1e-3)
    assert (counts == 0).mean() == pytest.approx((1 - 1 / n) ** n, abs=2e-3)


def test_counts_depend_on_the_arguments_alone_and_stay_as_they_are_from_version_to_version() -> None:
    np.random.seed(7)
    counts = resample_counts(1000, 50, seed=3)
    assert (counts != resample_counts(1000, 50, seed=4)).any() and len(np.unique(counts, axis=0)) == 50
    of_set = set_counts("svhn", 200, 30, seed=3)
    assert of_set.shape == (31, 200) and of_set.dtype == np.uint8 and (of_set[0] == 1).all()
    for other in (set_counts("dtd", 200, 30, seed=3), set_counts("svhn", 200, 30, seed=4)):
        assert (of_set[1:] != other[1:]).mean() > 0.3
    digests = [hashlib.sha256(each.tobytes()).hexdigest()[:16] for each in (counts, of_set)]
    assert digests == ["8fb754c991a9655e", "bac4ae3042e072e8"]


def test_weighted_means_are_those_of_the_repeated_rows() -> None:
    values, counts = np.random.RandomState(0).normal(size=(500, 3)), resample_counts(500, 300, seed=0)
    means = weighted_means(values, counts)
    assert means.shape == (300, 3)
    for row in (0, 130, 131, 299):  # chunks of resamples end in between
        np.testing.assert_allclose(means[row], np.repeat(values, counts[row], axis=0).mean(axis=0), atol=1e-14)


def test_the_interval_of_a_mean_equals_scipys_bootstrap() -> None:
    sample = np.random.RandomState(5).exponential(size=200)
    low, high = interval(weighted_means(sample[:, None], resample_counts(200, 20_000, seed=0))[:, 0])
    oracle = scipy.stats.bootstrap((sample,), np.mean, n_resamples=20_000, method="percentile", rng=1)
    width = oracle.confidence_interval.high - oracle.confidence_interval.low
    assert low == pytest.approx(oracle.confidence_interval.low, abs=0.03 * width)
    assert high == pytest.approx(oracle.confidence_interval.high, abs=0.03 * width)


@pytest.mark.parametrize("level", [0.95, 0.6])
def test_intervals_of_auroc_cover_the_truth_as_often_as_they_say(level: float) -> None:
    # Normal scores one standard deviation apart: AUROC is exactly Phi(1 / sqrt 2). 300 experiments.
    truth, covered = 0.5 * (1 + math.erf(0.5)), 0
    random = np.random.RandomState(11)
    for experiment in range(300):
        id_scores, ood_scores = random.normal(1, 1, 80), random.normal(0, 1, 60)
        id_counts, ood_counts = resample_counts(80, 400, 2 * experiment), resample_counts(60, 400, 2 * experiment + 1)
        low, high = interval(detection_metrics(id_scores, ood_scores, id_counts, ood_counts)["auroc"], level)
        covered += low <= truth <= high
    # Three standard errors of the simulation, and the percentile bootstrap's known slight shortfall.
    slack = 3 * math.sqrt(level * (1 - level) / 300)
    assert level - slack - 0.015 <= covered / 300 <= level + slack


def test_an_interval_is_read_off_the_sorted_values() -> None:
    values = np.random.RandomState(0).permutation(1001) / 1000
    assert interval(values) == pytest.approx((0.025, 0.975))
    assert interval(values, level=0.5) == pytest.approx((0.25, 0.75))
    assert interval(np.full(10, 0.3)) == (0.3, 0.3)


@pytest.mark.parametrize(("values", "message"), [([0.5], "R >= 2"), ([0.5, np.nan, 0.7], r"1 NaN in \[3\]")])
def test_what_has_no_interval_is_refused(values: list[float], message: str) -> None:
    with pytest.raises(UserError, match=message):
        interval(np.array(values))
