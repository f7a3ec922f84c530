"""Verdicts on made-up studies whose truth is known: all directions, what takes them away, few seeds, families."""

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from claim_tables import MEAN, NOISE, PRIMARY, TARGET, Study, Truth, find, judged, made_study, rows_of

from bnood.errors import UserError
from bnood.study.claim import ClaimOptions
from bnood.study.verdict import judge, write_verdict

LOUD: dict[str, Any] = {"seed_noise": 0.8, "image_noise": 0.3}
MEDIUM = {"seed_noise": 0.02}
NO_SHARES = {"first": 0.0, "last": 0.05, "only": 0.0, "mean": 0.1, "variance": -0.1}
EVEN = {"first": 0.5, "last": 0.5, "only": 0.25, "mean": 0.5, "variance": 0.5}
# A control that fails: re-estimation changes what it should not on ID images.
FAILING: dict[str, dict[str, Any]] = {
    "H1": {"id_maximum": 0.4}, "H2": {"id_energy": 0.4}, "H3": {"id_accuracy": 0.05}
}  # fmt: skip


@pytest.mark.parametrize(
    ("name", "truth", "noise", "verdict", "reason"),
    [
        ("H1", Truth(), {}, "supported", ""),
        ("H1", Truth(running_maximum=1.15, target_maximum=1.05), {}, "refuted", ""),
        ("H1", Truth(target_maximum=1.5), {}, "refuted", ""),
        ("H1", Truth(running_maximum=1.9, target_maximum=2.1), {}, "refuted", ""),
        ("H1", Truth(), LOUD, "inconclusive", "the interval contains"),
        # At 2.5 few predicted classes alone bring more than running statistics do.
        ("H1", Truth(class_mix=2.5), {}, "refuted", ""),
        ("H1", Truth(class_mix=2.5, effective_n=None), {}, "refuted", ""),
        ("H1", Truth(class_mix=1.9), {}, "inconclusive", "the interval contains 0"),
        ("H1", Truth(reestimated=0.82, id_maximum=0.4), MEDIUM, "inconclusive", "beyond it the effect is not decided"),
        ("H1", Truth(running_maximum=1.2), {}, "inconclusive", "the interval contains 1.2"),
        ("H2", Truth(), {}, "supported", ""),
        ("H2", Truth(energy=0.05, max_logit=0.0, msp=-0.1), {}, "refuted", ""),
        # One is refuted, the others are open.
        ("H2", Truth(energy=0.05, max_logit=0.1, msp=0.01), {}, "refuted", ""),
        ("H2", Truth(energy=-1.0), {}, "inconclusive", "its parts go both ways"),
        ("H2", Truth(), LOUD, "inconclusive", "the interval contains"),
        ("H2", Truth(reestimated=0.9, id_energy=0.4), MEDIUM, "inconclusive", "beyond it the effect is not decided"),
        # Re-estimation lowers energy where target statistics do not: what is beyond it is the opposite.
        ("H2", Truth(energy=-1, max_logit=-1, msp=-0.1, reestimated=2, id_energy=0.4), {}, "inconclusive", "refuted, "),
        ("H3", Truth(), {}, "supported", ""),
        ("H3", Truth(auroc=-0.05, fpr95=-0.1), {}, "refuted", ""),
        ("H3", Truth(auroc=0.0, fpr95=0.0), {}, "refuted", ""),
        ("H3", Truth(msp_auroc=-0.05), {}, "inconclusive", "its parts go both ways"),
        # One of AUROC and FPR95 gains, the other does not: neither supported nor refuted.
        ("H3", Truth(auroc=-0.05), {}, "inconclusive", "its parts go both ways"),
        ("H3", Truth(fpr95=0.0), {}, "inconclusive", ""),
        ("H3", Truth(), LOUD, "inconclusive", "the interval contains"),
        ("H4", Truth(), {}, "supported", ""),
        ("H4", Truth(over_ln=0.0, over_gn=0.0), {}, "refuted", ""),
        ("H4", Truth(over_ln=0.6, over_gn=0.0), {}, "inconclusive", "against LN supported, against GN refuted"),
        ("H4", Truth(), LOUD, "inconclusive", "the interval contains"),
        ("H4", Truth(over_activations=-0.02), {}, "inconclusive", "single activations above ID's 99th percentile are"),
        # They take away support, no refutation.
        ("H4", Truth(over_activations=0.0), {}, "supported", ""),
        ("H4", Truth(over_ln=0.0, over_gn=0.0, over_activations=-0.02), {}, "refuted", ""),
        ("H5", Truth(), {}, "supported", ""),
        ("H5", Truth(shares=NO_SHARES), {}, "refuted", ""),
        ("H5", Truth(energy_shares=NO_SHARES), {}, "inconclusive", ""),
        ("H5", Truth(), LOUD, "inconclusive", "the whole effect is not distinguishable from 0"),
        ("H5", Truth(energy=-1.0, max_logit=-1.0), {}, "inconclusive", "the whole effect is not above 0"),
    ],
)
def test_the_verdict_is_the_truth(name: str, truth: Truth, noise: dict[str, Any], verdict: str, reason: str) -> None:
    found = judged(name, made_study(truth, **noise))
    assert found.verdict == verdict, found.reason
    assert reason in found.reason and (found.reason == "") == (verdict != "inconclusive")
    assert found.headline.n_seeds == 5 and found.seed is None


def test_estimates_are_near_the_truth_and_their_intervals_hold_it() -> None:
    study = made_study(Truth(energy=0.7, id_energy=0.2), seed_noise=0.05, image_noise=0.05)
    h2, h5 = judged("H2", study), judged("H5", study)
    for quantity, true in (("energy, running - target", 0.7), ("energy, running - target, OOD - ID", 0.5)):
        for dataset in (MEAN, *PRIMARY, NOISE):
            one = find(h2, quantity, dataset)
            assert one.low <= true <= one.high and 0 < one.high - one.low < 0.7
    share = find(h5, "energy: means alone", MEAN)
    assert share.low <= 0.6 <= share.high and share.level == pytest.approx(0.99)
    assert find(h5, "energy: running - target", "dtd").effect == pytest.approx(0.7, abs=0.15)


def test_the_mean_over_sets_weighs_sets_equally_whatever_their_noise() -> None:
    found = judged("H2", made_study(by_set={"svhn": {"energy": 2.5}}))
    assert found.headline.effect == pytest.approx((2.5 + 1 + 1) / 3, abs=0.02)
    per_set = [find(found, "energy, running - target", name) for name in PRIMARY]
    assert found.headline.effect == pytest.approx(np.mean([one.effect for one in per_set]))
    assert found.headline.per_seed[2] == pytest.approx(np.mean([one.per_seed[2] for one in per_set]))
    alone = judged("H3", made_study(), ClaimOptions(primary_sets=("svhn",)))
    assert alone.verdict == "supported" and alone.headline.dataset == "svhn"
    find(alone, "energy AUROC, target - running", "svhn")  # exactly one


def test_primary_sets_must_not_contradict_each_other_and_other_sets_decide_nothing() -> None:
    refuted = {"running_maximum": 0.5, "target_maximum": 3.0}
    found = judged("H1", made_study(by_set={NOISE: refuted}))
    assert found.verdict == "supported"
    assert find(found, "largest unit mean, running - target", NOISE).verdict == "refuted"
    found = judged("H1", made_study(by_set={"cifar100": {"running_maximum": 1.0, "target_maximum": 1.0}}))
    assert found.headline.verdict == "supported"  # on the mean
    assert (found.verdict, found.reason) == ("inconclusive", "svhn supported, dtd supported, cifar100 refuted")


def test_seeds_that_one_side_lacks_are_left_out() -> None:
    study = made_study()
    found = judged("H1", study.where(~study.draws.eval(f"seed == 3 and statistics == '{TARGET}' and dataset == 'dtd'")))
    assert sorted(found.headline.per_seed) == [0, 1, 2, 4]
    assert find(found, "largest unit mean, running - target", "svhn").n_seeds == 5


def test_networks_of_other_accuracy_are_left_out() -> None:
    # The made-up accuracies lie 0.005 apart; 0.01 is allowed.
    found = judged("H4", made_study(Truth(gaps={("ln", 1): 0.02, ("gn", 2): 0.005})))
    assert sorted(found.headline.per_seed) == [0, 2, 3, 4]
    assert found.verdict == "supported"
    nothing = judged("H4", made_study(Truth(gaps={("gn", seed): -0.1 for seed in range(5)})))
    assert nothing.verdict == "inconclusive" and math.isnan(nothing.effect)
    assert "accuracies of bn-at-gn and gn differ by more than the allowed gap (seed 0: -0.095" in nothing.reason
    # Against LN alone it is estimated all the same.
    alone = find(nothing, "largest unit mean, bn-at-ln - ln", "svhn")
    assert alone.verdict == "supported" and alone.n_seeds == 5


def test_what_the_tables_lack_is_the_reason() -> None:
    study = made_study()
    running = study.where((study.draws["network"] == "bn") & (study.draws["statistics"] == "running"))
    found = {row.hypothesis: row for row in rows_of(running)}
    assert [row.verdict for row in found.values()] == ["inconclusive"] * 3 + ["not tested"] * 2
    assert "draws has nothing for network bn, statistics recalibrated:target" in found["H1"].reason
    assert found["H4"].reason == "no LN and GN networks of equal accuracy"
    assert found["H5"].reason == "no layer forms were evaluated"
    # What there is, is still given.
    assert find(found["H1"], "largest unit mean, running", "svhn").verdict == "supported"
    for shares, verdict in ((Truth().shares, "supported"), (NO_SHARES, "inconclusive")):
        part = made_study(Truth(shares=shares))
        assert judged("H5", part.where(~part.draws["statistics"].str.endswith("/mean"))).verdict == verdict
    h1, h2, *_ = rows_of(study.where(study.draws["detector"] != "units"))
    assert (h1.verdict, h1.headline, h2.verdict) == ("not tested", None, "supported")
    assert "not non-negative" in h1.reason


def test_constant_scores_and_what_does_not_vary_decide_nothing() -> None:
    study = made_study()
    constant = study.draws.copy()
    rows = constant["metric"] == "auroc"
    constant.loc[rows, "value"] = 0.5
    constant.loc[rows, "replicates"] = pd.Series([np.full(40, 0.5)] * rows.sum(), index=constant.index[rows])
    found = judged("H3", Study(constant, study.networks))
    assert found.verdict == "inconclusive" and "scores are constant" in found.reason
    still = judged("H2", made_study(seed_noise=0.0, image_noise=0.0))
    assert (still.verdict, still.reason) == ("inconclusive", "neither seeds nor images vary")
    equal = judged("H2", made_study(Truth(energy=0.0), seed_noise=0.0, image_noise=0.0))
    assert equal.reason == "the two sides are equal everywhere"
    # Equality is what a control is for.
    assert {one.verdict for one in equal.estimates if one.group == "control"} == {"passed"}


@pytest.mark.parametrize(("where", "nan"), [("value", math.nan), ("replicates", np.full(40, math.nan))])
def test_nan_is_a_reason_and_no_verdict(where: str, nan: Any) -> None:
    study = made_study()
    row = study.draws.query("metric == 'mean' and detector == 'msp' and dataset == 'dtd' and network == 'bn'").index[0]
    study.draws.at[row, where] = nan
    found = judged("H2", study)
    assert found.verdict == "inconclusive" and "NaN" in found.reason
    assert find(found, "MSP, running - target", "svhn").verdict == "supported"


def test_only_the_same_images_and_resamples_are_compared() -> None:
    study = made_study()
    target = study.draws["statistics"] == TARGET
    found = judged("H2", Study(study.draws.assign(n_ood=study.draws["n_ood"].where(~target, 90)), study.networks))
    assert found.verdict == "inconclusive" and "is of 90 images, another side of 100 (seed 0)" in found.reason
    fewer = study.draws["replicates"].where(~target, study.draws["replicates"].str[:20])
    found = judged("H1", Study(study.draws.assign(replicates=fewer), study.networks))
    assert found.verdict == "inconclusive" and "[20, 40] resamples" in found.reason


def test_batches_companions_and_controls_are_no_part_of_it(tmp_path: Path) -> None:
    study = made_study(seeds=(0, 1, 2))
    other = study.draws.assign(value=99.0)
    more = [other[other["statistics"] == "running"].assign(statistics=name) for name in ("batch:128", "path:0.5")]
    more += [other.assign(companion="svhn"), other.assign(comparison="control")]
    expected = json.dumps(judge(*study))
    assert json.dumps(judge(pd.concat([study.draws, *more]), study.networks)) == expected
    # Read back from a file, empty names may be missing.
    study.draws.to_parquet(tmp_path / "draws.parquet")
    back = pd.read_parquet(tmp_path / "draws.parquet")
    back.loc[back["companion"] == "", ["companion", "fitted_under"]] = None
    assert json.dumps(judge(back, study.networks)) == expected


def test_bad_tables_and_options_are_refused_in_one_line() -> None:
    draws, networks = made_study(seeds=(0, 1))
    for wrong, message in (
        (draws[:0], "draws is empty"),
        (draws.drop(columns=["network", "n_id"]), "draws lacks the columns n_id, network"),
        (pd.concat([draws, draws[:1]]), "two rows for seed 0"),
        (draws[draws["role"] == "ood"], "no in-distribution set"),
        (draws[draws["dataset"] != "dtd"], "primary_sets: dtd was not evaluated"),
    ):
        with pytest.raises(UserError, match=message) as raised:
            judge(wrong, networks)
        assert "\n" not in str(raised.value)
    wrong_options: dict[str, list[Any]] = {
        "primary_sets": [("svhn", "svhn"), "svhn"], "places": [("middle",)], "minimum_auroc": [5], "minimum_msp": [-1],
        "abnormal": [0.9], "minimum_energy": [math.nan], "minimum_seeds": [1], "seen_seeds": [("0",), 0, (True,)],
    }  # fmt: skip
    for name, value in ((name, value) for name, values in wrong_options.items() for value in values):
        with pytest.raises(UserError, match=f"claim.{name}.*(expected|is none of first half)"):
            ClaimOptions(**{name: value})
    assert ClaimOptions(primary_sets=["a", "b"]).primary_sets == ("a", "b")  # type: ignore[arg-type]


def test_thresholds_are_what_decides() -> None:
    high = {"abnormal": 1.95, "minimum_energy": 2.0, "minimum_max_logit": 2.0, "minimum_msp": 0.5, "minimum_auroc": 0.2,
            "minimum_fpr95": 0.5, "minimum_unit_ratio": 0.5, "minimum_share": 0.9}  # fmt: skip
    assert {row.verdict for row in rows_of(made_study(), ClaimOptions(**high))} == {"refuted"}  # type: ignore


def test_the_files_hold_the_verdict(tmp_path: Path) -> None:
    verdict = judge(*made_study(Truth(gaps={("gn", 0): -0.1}), seeds=(0,)), study="made-up", made={"commit": "abc"})
    write_verdict(verdict, tmp_path)
    content = json.loads((tmp_path / "verdict.json").read_text(), parse_constant=pytest.fail)
    assert (content["study"], content["made"]) == ("made-up", {"commit": "abc"})
    assert content["thresholds"]["primary_sets"] == list(PRIMARY)
    assert set(content["thresholds"]) >= set(content["reasons"])
    assert content["rows"][0]["effect"] == pytest.approx(0.85, abs=0.02) and content["rows"][0]["n_seeds"] == 1
    assert content["rows"][3]["effect"] is None
    table = pd.read_csv(tmp_path / "verdict.csv")
    assert list(table[table["role"] == "headline"]["hypothesis"]) == ["H1", "H2", "H3", "H4", "H5"]
    assert not table.duplicated(["hypothesis", "quantity", "dataset"]).any()
    assert {"headline", "decides", "control", "beyond control", "listed"} <= set(table["role"])
    table = table.dropna(subset="effect")
    assert (table["low"] <= table["effect"]).all() and (table["effect"] <= table["high"]).all()


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
def test_what_is_beyond_the_control_takes_support_away(name: str, taken: float, failed: bool, verdict: str) -> None:
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
    assert found.verdict == verdict and found.quantity.endswith(places[0] if places else "first 2 of 4 layers")
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
    for row in rows:
        assert row.verdict == "supported (this network)"
        assert row.n_seeds == 1 and row.low < row.effect < row.high and math.isnan(row.headline.effect_size)
    harmful = rows_of(made_study(Truth(auroc=-0.05, fpr95=-0.1), seeds=(0,)))
    assert [row.verdict for row in harmful if row.hypothesis == "H3"] == ["refuted (this network)"]


def test_families_are_judged_apart_and_partners_are_of_the_same_family() -> None:
    small = made_study(family="small ")
    large = made_study(Truth(energy=-1.0, max_logit=-1.0, msp=-0.1), family="large ")
    rows = rows_of(Study(*map(pd.concat, zip(small, large.where(large.draws["network"] == "large bn"), strict=True))))
    verdicts = {(row.network, row.hypothesis): row.verdict for row in rows}
    assert (verdicts["small bn", "H2"], verdicts["large bn", "H2"]) == ("supported", "refuted")
    assert (verdicts["small bn", "H4"], verdicts["large bn", "H4"]) == ("supported", "not tested")
    assert len(rows) == 10  # LN and GN networks are partners, not subjects


def test_the_seeds_that_had_not_been_seen_are_judged_alone() -> None:
    for seen, verdict in (((), "supported"), ((0, 1), "supported"), ((0, 1, 2), None)):
        found = judged("H2", made_study(), ClaimOptions(seen_seeds=seen))
        assert (found.verdict, found.verdict_unseen_seeds) == ("supported", verdict)
    good, bad = made_study(seeds=(1, 2, 3)), made_study(Truth(energy=-9.0, max_logit=-9.0, msp=-0.9), seeds=(0,))
    h2 = judged("H2", Study(*map(pd.concat, zip(good, bad, strict=True))), ClaimOptions(seen_seeds=(0,)))
    assert (h2.verdict, h2.verdict_unseen_seeds) == ("inconclusive", "supported")
