"""What takes a verdict away, what is listed beside it, and verdicts on few seeds or several families."""

import math
from typing import Any

import pandas as pd
import pytest
from claim_tables import MEAN, Study, Truth, find, judged, made_study, rows_of

from bnood.study.claim import ClaimOptions

EVEN = {"first": 0.5, "last": 0.5, "only": 0.25, "mean": 0.5, "variance": 0.5}
NO_SHARES = {"first": 0.0, "last": 0.05, "only": 0.0, "mean": 0.1, "variance": -0.1}
# A control that fails: re-estimation changes what it should not on ID images.
FAILING: dict[str, dict[str, Any]] = {
    "H1": {"id_maximum": 0.4}, "H2": {"id_energy": 0.4}, "H3": {"id_accuracy": 0.05}
}  # fmt: skip


def test_a_class_mix_of_few_images_is_not_used_and_that_is_said() -> None:
    few = judged("H1", made_study(Truth(class_mix=2.5, effective_n=31.0), seed_noise=0.001))
    assert (few.verdict, few.note) == ("supported", "class mix not available (effective n 31)")
    study = made_study()
    lacking = (study.draws["metric"] == "class_mix_max_ratio") & (study.draws["dataset"] == "dtd")
    found = judged("H1", study.where(~lacking))
    assert found.note == "class mix not available on dtd"
    assert not any("running - class mix" in one.quantity for one in found.estimates)


@pytest.mark.parametrize("name", ["H1", "H2", "H3"])
@pytest.mark.parametrize(
    ("taken", "failed", "verdict"),
    [(0.1, True, "supported"), (1.3, True, "inconclusive"), (1.3, False, "inconclusive"), (0.0, False, "supported")],
)
def test_the_contrast_beyond_the_control_takes_support_away(
    name: str, taken: float, failed: bool, verdict: str
) -> None:
    found = judged(name, made_study(Truth(reestimated=taken, **(FAILING[name] if failed else {}))))
    assert found.verdict == verdict
    assert found.reason == ("supported, but refuted beyond the control" if verdict == "inconclusive" else "")


@pytest.mark.parametrize("name", ["H1", "H2", "H3"])
def test_without_any_control_there_is_no_verdict(name: str) -> None:
    study = made_study()
    found = judged(name, study.where(study.draws["statistics"] != "recalibrated:id"))
    assert (found.verdict, found.reason) == ("inconclusive", "no control (recalibrated:id) could be estimated")


def test_augmented_statistics_are_a_second_control_that_decides_nothing() -> None:
    study = made_study()
    again = study.draws[study.draws["statistics"] == "running"].assign(statistics="recalibrated:augmented")
    both = Study(pd.concat([study.draws, again]), study.networks)
    for name, label in (("H1", "largest unit mean, recalibrated:augmented - target"),
                        ("H2", "MSP, recalibrated:augmented - target"),
                        ("H3", "MSP AUROC, target - recalibrated:augmented")):  # fmt: skip
        found = judged(name, both)
        assert find(found, label, MEAN).group == "listed"
        assert (found.verdict, found.reason) == (judged(name, study).verdict, judged(name, study).reason)


@pytest.mark.parametrize(
    ("placebo", "gain", "verdict"),
    [
        *((placebo, 0.05, "supported") for placebo in (0.5, 0.53, None)),
        # The placebo changes as much as target statistics do: no finding in either direction.
        *((placebo, 0.05, "inconclusive") for placebo in (0.56, 0.44)),
        (0.53, 0.0, "inconclusive"),
        (0.53, -0.05, "refuted"),
    ],
)
def test_a_change_of_auroc_has_to_exceed_the_placebo(placebo: float | None, gain: float, verdict: str) -> None:
    found = judged("H3", made_study(Truth(placebo=placebo, auroc=gain, fpr95=2 * gain)))
    row = find(found, "energy AUROC, target - running", MEAN)
    assert (found.verdict, row.verdict) == (verdict, verdict)
    assert ("not 0.5" in row.placebo) == (placebo not in (None, 0.5))


@pytest.mark.parametrize(
    ("shares", "verdict", "places"),
    [
        ({}, "inconclusive", []),
        ({"last": 0.7}, "supported", ["last 2 of 4 layers"]),
        # One layer of four: its even share is the minimum, a quarter.
        ({"only": 0.4}, "supported", ["last layer alone"]),
        ({"variance": 0.6}, "supported", ["variances alone"]),
        ({"first": 0.8, "last": 0.8}, "supported", ["first 2 of 4 layers", "last 2 of 4 layers"]),
        # More than a quarter, less than a half: moves, but is no place.
        ({"first": 0.4, "last": 0.1, "only": 0.1, "mean": 0.1, "variance": 0.1}, "inconclusive", []),
        (NO_SHARES, "refuted", []),
    ],
)
def test_a_place_moves_more_than_an_even_share(shares: dict[str, float], verdict: str, places: list[str]) -> None:
    found = judged("H5", made_study(Truth(shares=EVEN | shares), seed_noise=0.001))
    assert found.verdict == verdict
    local = [one.quantity for one in found.estimates if one.dataset == MEAN and one.group == "decides"
             and one.verdict == "supported" and one.quantity.startswith("energy")]  # fmt: skip
    assert local == [f"energy: {place}" for place in places]
    assert find(found, "energy: means alone", MEAN).threshold == 0.5
    assert find(found, "energy: last layer alone", MEAN).threshold == 0.25


def test_between_minimum_and_even_share_nothing_is_decided_and_the_reason_says_so() -> None:
    study = made_study(Truth(shares=EVEN | {"mean": 0.35}), seed_noise=0.001)
    between = find(judged("H5", study), "energy: means alone", MEAN)
    assert between.verdict == "inconclusive" and 0.25 < between.low < between.high < 0.5
    assert between.reason == "the interval is below 0.5, but not below 0.25"
    assert judged("H5", study, ClaimOptions(places=("means",))).verdict == "inconclusive"


def test_fewer_than_three_seeds_get_a_verdict_for_each_network() -> None:
    rows = rows_of(made_study(seeds=(3, 7)))
    assert [(row.hypothesis, row.seed) for row in rows] == [(f"H{n}", seed) for seed in (3, 7) for n in range(1, 6)]
    assert {row.verdict for row in rows} == {"supported (this network)"}
    for row in rows:
        assert row.n_seeds == 1 and row.low < row.effect < row.high and math.isnan(row.headline.effect_size)
    harmful = rows_of(made_study(Truth(auroc=-0.05, fpr95=-0.1), seeds=(0,)))
    assert [row.verdict for row in harmful if row.hypothesis == "H3"] == ["refuted (this network)"]


def test_families_are_judged_apart_and_partners_are_of_the_same_family() -> None:
    small = made_study(family="small ")
    large = made_study(Truth(energy=-1.0, max_logit=-1.0, msp=-0.1), family="large ")
    alone = large.where(large.draws["network"] == "large bn")
    rows = rows_of(Study(*map(pd.concat, zip(small, alone, strict=True))))
    verdicts = {(row.network, row.hypothesis): row.verdict for row in rows}
    assert (verdicts["small bn", "H2"], verdicts["large bn", "H2"]) == ("supported", "refuted")
    assert (verdicts["small bn", "H4"], verdicts["large bn", "H4"]) == ("supported", "not tested")
    assert len(rows) == 10  # LN and GN networks are partners, not subjects


def test_the_seeds_that_had_not_been_seen_are_judged_alone() -> None:
    for seen, verdict in (((), "supported"), ((0, 1), "supported"), ((0, 1, 2), None)):
        found = judged("H2", made_study(), ClaimOptions(seen_seeds=seen))
        assert (found.verdict, found.verdict_unseen_seeds) == ("supported", verdict)
    good, bad = made_study(seeds=(1, 2, 3)), made_study(Truth(energy=-9.0, max_logit=-9.0, msp=-0.9), seeds=(0,))
    both = Study(*map(pd.concat, zip(good, bad, strict=True)))
    h2 = judged("H2", both, ClaimOptions(seen_seeds=(0,)))
    assert (h2.verdict, h2.verdict_unseen_seeds) == ("inconclusive", "supported")
