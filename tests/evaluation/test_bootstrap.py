"""Resamples, means under them and percentile intervals: against SciPy, by distribution and by simulated coverage."""

import hashlib
import math

import numpy as np
import pytest
import scipy.stats

from bnood.errors import UserError
from bnood.evaluation.bootstrap import interval, resample_counts, set_counts, weighted_means
from bnood.evaluation.metrics import detection_metrics


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
    np.testing.assert_array_equal(counts, resample_counts(1000, 50, seed=3))
    assert (counts != resample_counts(1000, 50, seed=4)).any()
    assert len(np.unique(counts, axis=0)) == 50
    assert hashlib.sha256(counts.tobytes()).hexdigest()[:16] == "8fb754c991a9655e"


def test_counts_of_a_set_follow_from_its_name_size_and_seed() -> None:
    counts = set_counts("svhn", 200, 30, seed=3)
    assert counts.shape == (31, 200) and counts.dtype == np.uint8 and (counts[0] == 1).all()
    np.testing.assert_array_equal(counts, set_counts("svhn", 200, 30, seed=3))
    for other in (set_counts("dtd", 200, 30, seed=3), set_counts("svhn", 200, 30, seed=4)):
        assert (counts[1:] != other[1:]).mean() > 0.3
    # From version to version, too.
    assert hashlib.sha256(counts.tobytes()).hexdigest()[:16] == "bac4ae3042e072e8"


def test_weighted_means_are_those_of_the_repeated_rows() -> None:
    random = np.random.RandomState(0)
    values, counts = random.normal(size=(500, 3)), resample_counts(500, 300, seed=0)
    means = weighted_means(values, counts)
    assert means.shape == (300, 3)
    for row in (0, 130, 131, 299):  # chunks of resamples end in between
        np.testing.assert_allclose(means[row], np.repeat(values, counts[row], axis=0).mean(axis=0), atol=1e-14)


def test_the_interval_of_a_mean_equals_scipys_bootstrap() -> None:
    sample = np.random.RandomState(5).exponential(size=200)
    low, high = interval(weighted_means(sample[:, None], resample_counts(200, 20_000, seed=0))[:, 0])
    oracle = scipy.stats.bootstrap(
        (sample,), np.mean, n_resamples=20_000, method="percentile", rng=np.random.default_rng(1)
    )
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
