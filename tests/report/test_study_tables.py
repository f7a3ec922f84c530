"""Means and intervals over seeds, by hand and by simulation."""

import numpy as np
import pandas as pd
import pytest
from scipy import stats
from synthetic_evaluation import make_scores, make_table, make_units

from bnood.errors import UserError
from bnood.evaluation.intervals import seeds_interval
from bnood.report.study_tables import StudyTables, listed, networks_of, over_seeds, plain, rests_on, signed


def frame(values: list[float], half: float = 0.0) -> pd.DataFrame:
    ends = {"low": [value - half for value in values], "high": [value + half for value in values]}
    return pd.DataFrame({"key": "a", "seed": range(len(values)), "value": values, "n": 100, **ends})


def test_exact_values_have_students_interval() -> None:
    values = [0.9, 0.8, 0.84]
    row = over_seeds(frame(values), ["key"]).iloc[0]
    low, high = stats.t.interval(0.95, 2, np.mean(values), stats.sem(values))
    assert (row["mean"], row["low"], row["high"]) == pytest.approx((np.mean(values), low, high))
    assert (row["n_seeds"], row["n"]) == (3, 100)


def test_the_interval_is_that_of_the_verdict() -> None:
    rng, values = np.random.default_rng(0), np.array([0.80, 0.83, 0.84, 0.9])
    shared = rng.normal(0, 0.02, 4000)
    half = 1.959964 * shared.std(ddof=1)
    row = over_seeds(frame(values.tolist(), half), ["key"]).iloc[0]
    mean, low, high, _ = seeds_interval(values, values[:, None] + shared)
    assert (row["mean"], row["low"], row["high"]) == pytest.approx((mean, low, high), abs=2e-5)
    # By hand (Howe 1974): t(3) = 3.182 for the seeds, 1.96 for the images.
    by_hand = np.hypot(3.182446 * values.std(ddof=1) / 2, half)
    assert row["high"] - row["mean"] == pytest.approx(by_hand, rel=1e-5)


def test_equal_seeds_keep_the_interval_over_images() -> None:
    row = over_seeds(frame([0.5, 0.5, 0.5], 0.1), ["key"]).iloc[0]
    assert (row["low"], row["high"]) == pytest.approx((0.4, 0.6))


def test_one_seed_has_its_own_interval_even_an_uneven_one() -> None:
    row = over_seeds(frame([0.5], 0.1).assign(low=0.45), ["key"]).iloc[0]
    assert (row["mean"], row["low"], row["high"], row["n_seeds"]) == pytest.approx((0.5, 0.45, 0.6, 1))


def test_a_value_without_interval_counts_as_exact_and_alone_has_none() -> None:
    several = over_seeds(frame([0.9, 0.8]).assign(low=np.nan, high=np.nan), ["key"]).iloc[0]
    assert np.isfinite([several["low"], several["high"]]).all()
    alone = over_seeds(frame([0.9]).drop(columns=["low", "high"]), ["key"]).iloc[0]
    assert alone["mean"] == 0.9 and np.isnan(alone["low"]) and np.isnan(alone["high"])


@pytest.mark.parametrize(("of_seeds", "of_images"), [(0.03, 0.0), (0.03, 0.03), (0.005, 0.03)])
def test_intervals_hold_the_truth_at_least_as_often_as_they_say(of_seeds: float, of_images: float) -> None:
    rng, trials, seeds = np.random.default_rng(1), 1000, 3
    # Each trial draws images (shared by its seeds) and seeds anew.
    shared = rng.normal(0, of_images, (trials, 1))
    values = 0.8 + shared + rng.normal(0, of_seeds, (trials, seeds))
    half = 1.959964 * of_images
    long = pd.DataFrame({"trial": np.repeat(np.arange(trials), seeds), "value": values.ravel(), "n": 1})
    found = over_seeds(long.assign(low=long["value"] - half, high=long["value"] + half), ["trial"])
    covered = ((found["low"] <= 0.8) & (found["high"] >= 0.8)).mean()
    assert 0.93 <= covered <= 0.99


def test_units_of_several_runs_get_the_names_of_their_runs() -> None:
    scores = make_scores(n=20, norm="ln", shuffles=1)
    table = make_table(scores, run="ln-s4", norm="ln", seed=4).assign(network="ln")
    units = StudyTables("study", table, units={"ln-s4": make_units(scores, units=4)}).all_units
    assert units is not None
    assert set(units["network"]) == {"ln"} and set(units["seed"]) == {4} and set(units["run"]) == {"ln-s4"}
    with pytest.raises(UserError, match="'gone' has no run of that name"):
        _ = StudyTables("study", table, units={"gone": make_units(scores, units=4)}).all_units


def test_networks_come_in_one_order() -> None:
    assert networks_of(pd.DataFrame({"network": ["odd", "bn-at-ln", "gn", "bn"]})) == ["bn", "gn", "bn-at-ln", "odd"]


def test_figures_as_they_are_printed() -> None:
    assert (signed(-0.1234), signed(0.5, 1), plain(-2.0, 1)) == ("\N{MINUS SIGN}0.123", "+0.5", "\N{MINUS SIGN}2.0")
    assert [listed([]), listed(["a"]), listed(["a", "b", "c"])] == ["", "a", "a, b and c"]


@pytest.mark.parametrize(
    ("seeds", "n", "says"),
    [
        ([1, 1], [600, 600], "over images; 1 seed, n = 600 images in a set."),
        ([3, 3], [600, 4000], "over seeds and images; 3 seeds, n = 600 to 4,000 images in a set."),
        ([1, 3], [], "over seeds and images (over images alone where there is one seed); 1 to 3 seeds."),
    ],
)  # fmt: skip
def test_what_a_picture_rests_on(seeds: list[int], n: list[float], says: str) -> None:
    pooled = pd.DataFrame({"n_seeds": seeds, "n": n or [np.nan] * len(seeds)})
    assert rests_on(pooled) == f"Bars are 95 % intervals {says}"


def test_what_a_picture_without_intervals_over_images_rests_on() -> None:
    one, three = pd.DataFrame({"n_seeds": [1]}), pd.DataFrame({"n_seeds": [3]})
    assert rests_on(one, of_images=False) == "There are no bars, because one seed has no interval over seeds; 1 seed."
    assert rests_on(three, of_images=False) == "Bars are 95 % intervals over seeds; 3 seeds."
    assert rests_on(three, bars=False) == "3 seeds."
