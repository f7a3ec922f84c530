"""What takes a verdict away, what stands beside it and what the sentences say, in all directions."""

import json
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from claim_tables import HEADLINE, NOISE, Study, Truth, find, judged, made_study

from bnood.errors import UserError
from bnood.study.claim import ClaimOptions, judge
from bnood.study.claim.estimates import Estimate, directed, not_estimated
from bnood.study.claim.options import PLACES

MEAN = "mean of svhn, dtd, cifar100"
EVEN = {"first": 0.5, "last": 0.5, "only": 0.25, "mean": 0.5, "variance": 0.5}
NO_SHARES = {"first": 0.0, "last": 0.05, "only": 0.0, "mean": 0.1, "variance": -0.1}


@pytest.mark.parametrize(
    ("mix", "verdict", "said"),
    [
        (1.1, "supported", "it lies by 0.80 [0."),
        # Few predicted classes alone bring more than running statistics do.
        (2.5, "refuted", "it lies by -0.60 [-0."),
        (1.9, "inconclusive", "largest unit mean, running - class mix, because the interval contains 0"),
        (None, "supported", "it was not measured against what the mix of predicted classes alone brings"),
    ],
)
def test_the_largest_unit_mean_has_to_exceed_the_class_mix(mix: float | None, verdict: str, said: str) -> None:
    found = judged("H1", made_study(Truth(class_mix=mix)))
    assert found.verdict == verdict and said in found.sentence
    above = find(found, "largest unit mean, running - class mix", MEAN)
    assert (above.verdict == "inconclusive" and above.n_seeds == 0) if mix is None else above.verdict == verdict


def test_a_class_mix_that_some_seeds_or_sets_lack_is_a_reason() -> None:
    study = made_study()
    mix = (study.draws["metric"] == "class_mix_max_ratio") & (study.draws["dataset"] == "dtd")
    found = judged("H1", Study(study.draws[~mix], study.interventions, study.networks))
    assert found.verdict == "inconclusive" and "metric class_mix_max_ratio" in found.sentence


@pytest.mark.parametrize(
    ("share", "rare"), [(0.005, True), (0.01, False), (0.05, False)], ids=["rarer", "as many", "more"]
)
def test_rare_single_activations_are_said(share: float, rare: bool) -> None:
    noise = {"seed_noise": 0.001, "image_noise": 0.001}
    found = judged("H1", made_study(Truth(share_above_p99=share), **noise))
    assert found.verdict == "supported"
    assert ("they are rarer than on ID, not more frequent" in found.sentence) == rare
    assert find(found, "share above ID's 99th percentile, matched", "dtd").effect == pytest.approx(share, abs=0.002)
    assert f"under running statistics (ID: 0.01){':' if rare else ';'}" in found.sentence
    one_seed = judged("H1", made_study(Truth(share_above_p99=0.005), seeds=(0,), **noise))
    assert "rarer" not in one_seed.sentence


def test_h1_lists_spread_and_mixture_and_says_what_holds_by_construction() -> None:
    found = judged("H1", made_study())
    assert find(found, "spread over units, running", "svhn").effect == pytest.approx(1.4, abs=0.02)
    assert find(found, "spread over units, matched", MEAN).effect == pytest.approx(1.1, abs=0.02)
    mixture = find(found, "largest unit mean, recalibrated:mixture", MEAN)
    assert mixture.effect == pytest.approx((1.9 + 1.05) / 2, abs=0.02) and mixture.verdict == ""
    assert "partly by construction: matching pins mean and variance of every channel" in found.sentence


# A control that failed, and how much of the effect re-estimation on ID images already takes.
FAILING: dict[str, dict[str, Any]] = {
    "H1": {"id_maximum": 0.4}, "H2": {"id_energy": 0.4}, "H3": {"id_accuracy": 0.05}
}  # fmt: skip


@pytest.mark.parametrize("name", ["H1", "H2", "H3"])
@pytest.mark.parametrize(
    ("taken", "failed", "verdict"),
    [(0.1, True, "supported"), (1.3, True, "inconclusive"), (1.3, False, "inconclusive"), (0.0, False, "supported")],
)
def test_the_contrast_beyond_the_control_takes_support_away(
    name: str, taken: float, failed: bool, verdict: str
) -> None:
    failed = failed or (name == "H3" and taken > 1)  # H3 has a control on the AUROC of these very images
    found = judged(name, made_study(Truth(reestimated=taken, **(FAILING[name] if failed else {}))))
    assert found.verdict == verdict, found.sentence
    assert ("Beyond the control, on the same OOD images: " in found.sentence) == (failed or taken > 1)
    contradiction = "The effect is supported, but by the same thresholds refuted beyond the control"
    assert (contradiction in found.sentence) == (verdict == "inconclusive")


@pytest.mark.parametrize(("name", "taken"), [("H1", 0.82), ("H2", 0.9)])
def test_an_open_contrast_takes_support_away_where_the_control_failed(name: str, taken: float) -> None:
    found = judged(name, made_study(Truth(reestimated=taken, **FAILING[name]), seed_noise=0.02))
    assert found.verdict == "inconclusive", found.sentence
    assert "the control is not null, and beyond the control the effect is not decided" in found.sentence


@pytest.mark.parametrize("name", ["H1", "H2", "H3"])
def test_without_any_control_there_is_no_verdict(name: str) -> None:
    study = made_study()
    draws = study.draws[study.draws["statistics"] != "recalibrated:id"]
    found = judged(name, Study(draws, study.interventions, study.networks))
    assert found.verdict == "inconclusive"
    assert "its control (recalibrated:id) could not be estimated" in found.sentence


def test_the_contrast_takes_a_refutation_away_too_and_is_listed_in_any_case() -> None:
    # Re-estimation lowers energy where matching does not: what is beyond it is the opposite.
    truth = Truth(energy=-1.0, max_logit=-1.0, msp=-0.1, reestimated=2.0, id_energy=0.4)
    found = judged("H2", made_study(truth))
    assert found.verdict == "inconclusive" and "is refuted, but by the same thresholds supported" in found.sentence
    passed = judged("H2", made_study(Truth(), seed_noise=0.001))
    assert find(passed, "energy, recalibrated:id - matched", "svhn").verdict == "supported"
    assert find(passed, "energy, running - matched, OOD - ID", MEAN).effect == pytest.approx(1.0, abs=0.02)
    h3 = judged("H3", made_study(Truth(reestimated=0.6)))
    assert find(h3, "MSP AUROC, matched - recalibrated:id", MEAN).effect == pytest.approx(0.02, abs=0.01)
    assert find(h3, "MSP FPR95, recalibrated:id - matched", MEAN).effect == pytest.approx(0.04, abs=0.01)


def test_h4_loses_support_where_single_activations_are_rarer_and_only_then() -> None:
    name = "share above ID's 99th percentile, bn - ln and gn, equal accuracy"
    fewer = judged("H4", made_study(Truth(over_activations=-0.02)))
    assert find(fewer, name, MEAN).verdict == "refuted" and fewer.verdict == "inconclusive"
    assert "99th percentile are rarer than in LN and GN networks, by -0.0" in fewer.sentence
    assert judged("H4", made_study(Truth(over_activations=0.0))).verdict == "supported"
    # It takes away support, no refutation.
    refuted = judged("H4", made_study(Truth(over_ln=0.0, over_gn=0.0, over_activations=-0.02)))
    assert refuted.verdict == "refuted" and "rarer" not in refuted.sentence


def test_h4_says_what_stopping_early_does_and_gives_the_gap_in_training_accuracy() -> None:
    study = made_study(Truth(over_id_msp=0.25))
    found = judged("H4", study)
    assert "stopped early, before the learning rate was annealed" in found.sentence
    assert "training accuracy" not in found.sentence
    assert find(found, "MSP, OOD - ID, bn-at-ln - ln", MEAN).effect == pytest.approx(0.05, abs=0.01)
    assert find(found, "MSP, OOD - ID, finished bn - gn", "dtd").verdict == ""
    # The class mix is the same in all networks.
    assert find(found, "largest unit mean less class mix, bn-at-gn - gn", MEAN).effect == pytest.approx(0.3, abs=0.02)
    trained = {"bn": 0.99, "ln": 0.93, "gn": 0.90, "bn-at-ln": 0.88, "bn-at-gn": 0.86}
    networks = study.networks.assign(train_accuracy=study.networks["network"].map(trained))
    said = judged("H4", Study(study.draws, study.interventions, networks)).sentence
    assert "their training accuracy differs by -0.050 against LN, -0.040 against GN" in said


def test_minimums_are_printed_with_the_side_of_them() -> None:
    h2 = judged("H2", made_study(Truth(energy=0.05, max_logit=-1.0, msp=0.01))).sentence
    assert "higher (smaller than the minimum of 0.1), max logit 1.0" in h2
    assert "lower (in the opposite direction; minimum of 0.1), MSP 0.0" in h2
    assert "higher (not decided against the minimum of 0.01); on ID" in h2
    h3 = judged("H3", made_study(Truth(msp_auroc=-0.05))).sentence
    assert "raise energy's AUROC by 0.0" in h3 and "lower MSP's AUROC by 0.0" in h3
    assert "and raise its FPR95 by" in judged("H3", made_study(Truth(fpr95=-0.1))).sentence
    assert "(more than the minimum of 0.01)" in h3 and "(in the opposite direction; minimum of 0.01)" in h3
    assert (
        "(smaller than the minimum of 0.1; LN alone" in judged("H4", made_study(Truth(over_ln=0, over_gn=0))).sentence
    )


def test_one_seed_does_not_harm() -> None:
    found = judged("H3", made_study(Truth(auroc=-0.05), seeds=(0,)))
    assert found.headline.high < 0 and found.verdict == "inconclusive"
    harmful = Truth(auroc=-0.05, fpr95=-0.1)
    assert "harms" not in found.sentence and "harms" in judged("H3", made_study(harmful)).sentence
    assert "harms" not in judged("H3", made_study(Truth(auroc=-0.05))).sentence  # FPR95 gains


def test_the_rule_is_applied_to_the_other_sets_and_decides_nothing() -> None:
    found = judged("H2", made_study(by_set={NOISE: {"energy": -1.0, "max_logit": -1.0, "msp": -0.1}}))
    assert found.verdict == "supported"
    assert found.sentence.endswith("Beside, deciding nothing: gaussian_noise refuted.")
    only = judged("H2", made_study(), ClaimOptions(headline_sets=("svhn",)))
    assert "nothing: dtd supported, cifar100 supported, gaussian_noise supported." in only.sentence
    every = judged("H2", made_study(), ClaimOptions(headline_sets=(*HEADLINE, NOISE)))
    assert "Beside" not in every.sentence


@pytest.mark.parametrize(
    ("seen", "verdict"),
    [((), "supported"), ((0,), "supported"), ((0, 1, 2), "supported"), ((0, 1, 2, 3), None), ((9,), "supported")],
)
def test_the_seeds_that_had_not_been_seen_are_judged_alone(
    seen: tuple[int, ...], verdict: str | None, tmp_path: Path
) -> None:
    result = judge(*made_study().tables(), ClaimOptions(seen_seeds=seen))
    result.write_verdict(tmp_path)
    content = json.loads((tmp_path / "verdict.json").read_text())
    assert content["thresholds"]["seen_seeds"] == list(seen)
    h2 = content["hypotheses"][1]
    assert (h2["verdict"], h2["verdict_unseen_seeds"]) == ("supported", verdict)
    left = [seed for seed in range(5) if seed not in seen]
    if len(left) == 5:
        assert "had not been seen" not in h2["sentence"]
    elif verdict is None:
        assert h2["sentence"].endswith("before the thresholds were written are fewer than two.")
    else:
        assert h2["sentence"].endswith(f"written ({', '.join(map(str, left))}) alone: supported.")


def test_the_unseen_seeds_of_a_comparison_are_those_that_it_has() -> None:
    study = made_study(Truth())
    draws = study.draws[~(study.draws["network"].isin(["ln", "bn-at-ln"]) & study.draws["seed"].eq(4))]
    verdict = judge(draws, study.interventions, study.networks, ClaimOptions(seen_seeds=(0,)))
    said = {one.hypothesis: one.sentence for one in verdict.hypotheses}
    assert "written (1, 2, 3) alone: supported." in said["H4"]
    assert "written (1, 2, 3, 4) alone: supported." in said["H1"]


def test_the_unseen_seeds_can_say_otherwise() -> None:
    good, bad = made_study(seeds=(1, 2, 3)), made_study(Truth(energy=-9.0, max_logit=-9.0, msp=-0.9), seeds=(0,))
    study = [pd.concat(pair) for pair in zip(good.tables(), bad.tables(), strict=True)]
    h2 = judge(study[0], study[1], study[2], ClaimOptions(seen_seeds=(0,))).hypotheses[1]
    assert (h2.verdict, h2.verdict_unseen_seeds) == ("inconclusive", "supported")
    h2 = judge(study[0], study[1], study[2], ClaimOptions(seen_seeds=(1, 2, 3))).hypotheses[1]
    assert h2.verdict_unseen_seeds is None
    one = judge(*made_study(seeds=(4,)).tables()).hypotheses[1]
    assert one.verdict_unseen_seeds is None
    for wrong in (("0",), 0, (True,)):
        with pytest.raises(UserError, match=r"claim\.seen_seeds"):
            ClaimOptions(seen_seeds=wrong)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("shares", "verdict", "said"),
    [
        ({}, "inconclusive", "(not shown to be localised)"),
        ({"last": 0.7}, "supported", "(localised, with more than its even share: last 2 of 4 layers)"),
        # One layer of four: its even share is the minimum, a quarter.
        ({"only": 0.4}, "supported", "its even share: last layer alone)"),
        ({"variance": 0.6}, "supported", "its even share: variances alone)"),
        ({"first": 0.8, "last": 0.8}, "supported", "share: first 2 of 4 layers and last 2 of 4 layers)"),
        # More than a quarter, less than a half: moves, but is no place.
        ({"first": 0.4, "last": 0.1, "only": 0.1, "mean": 0.1, "variance": 0.1}, "inconclusive", "1 of 5 places"),
        (NO_SHARES, "refuted", "0 of 5 places are shown to move 0.25 or more (not shown to be localised)"),
    ],
)
def test_a_place_moves_more_than_an_even_share(shares: dict[str, float], verdict: str, said: str) -> None:
    found = judged("H5", made_study(Truth(shares=EVEN | shares), seed_noise=0.001))
    assert found.verdict == verdict and said in found.sentence, found.sentence
    assert find(found, "energy: means alone", MEAN).threshold == 0.5
    assert find(found, "energy: last layer alone", MEAN).threshold == 0.25


def test_between_minimum_and_even_share_nothing_is_decided_and_the_reason_says_so() -> None:
    found = judged("H5", made_study(Truth(shares=EVEN | {"mean": 0.35}), seed_noise=0.001))
    between = find(found, "energy: means alone", MEAN)
    assert between.verdict == "inconclusive" and 0.25 < between.low < between.high < 0.5
    assert between.reason == "the interval is below 0.5, but not below what would refute it"
    single = judged("H5", made_study(Truth(shares=EVEN | {"mean": 0.35})), ClaimOptions(places=("means",)))
    assert single.verdict == "inconclusive" and len(PLACES) == 5


@pytest.mark.parametrize("whole", [-1.0, 0.0])
def test_without_a_whole_effect_no_share_of_it_is_told(whole: float) -> None:
    found = judged("H5", made_study(Truth(whole=whole)))
    assert found.verdict == "inconclusive"
    assert "largest mean share" not in found.sentence and "places are shown" not in found.sentence
    assert (
        "of the energy no share can be given, because the whole effect is not shown to be above 0: " in found.sentence
    )


def test_what_re_estimation_takes_already_is_said_beside_the_whole_effect() -> None:
    small, large = (judged("H5", made_study(Truth(reestimated=part))) for part in (0.2, 0.4))
    listed = find(small, "energy: running - recalibrated:id on all scored images", MEAN)
    assert listed.effect == pytest.approx(0.2, abs=0.02) and listed.verdict == ""
    assert "re-estimation" not in small.sentence
    assert "lowers on the same sets the largest unit mean by 0.34" in large.sentence
    assert (
        "the energy by 0.40" in large.sentence and "more than a quarter as much as the whole effect" in large.sentence
    )


def test_interventions_on_other_images_are_not_compared() -> None:
    study = made_study()
    part = study.interventions.assign(n=60)
    found = judged("H5", Study(study.draws, part, study.networks))
    control = find(found, "energy: all - recalibrated:target", MEAN)
    assert (
        control.verdict == "inconclusive" and np.isnan(control.effect) and control.reason.startswith("on other images")
    )
    assert "of 60 images" in control.reason and "of 100" in control.reason
    assert found.verdict == "supported" and "The control" not in found.sentence


def test_effects_are_told_by_the_side_they_are_on() -> None:
    down = Estimate("q", "svhn", "nats", -0.42, -1.02, 0.19, 0.0, {0: -0.42}, 0.1, "inconclusive", 0.95)
    assert directed(down, "higher", "lower") == ("lower", "0.42 [-0.19, 1.02]")
    assert directed(replace(down, effect=0.42, low=-0.19, high=1.02), "higher", "lower")[0] == "higher"
    empty = not_estimated("no such set", "q", "svhn", "nats", 0.1, 0.95, "above")
    assert directed(empty, "higher", "lower") == ("higher", "not estimated")
    assert (empty.to_json()["wanted"], down.to_json()["wanted"]) == ("above", "any")


def test_places_that_are_open_for_one_reason_are_counted() -> None:
    flat = judged("H5", made_study(Truth(), seed_noise=0.8, image_noise=0.3)).sentence
    assert "Not decided: largest unit mean: all 5, because the whole effect is" in flat


def test_where_no_share_can_be_given_the_places_are_told_in_their_own_unit() -> None:
    study = made_study(Truth())
    swept = study.interventions
    # On the energy, all layers do nothing; what the means do by themselves stays.
    energy = swept["score"].eq("energy")
    nothing = swept[energy & swept["kind"].eq("none")].assign(kind="all")
    noise = np.random.default_rng(0).normal(0, 0.1, len(nothing))
    nothing["value"] += noise
    nothing["draws"] = [np.asarray(draws) + shift for draws, shift in zip(nothing["draws"], noise, strict=True)]
    flat = pd.concat([swept[~(energy & swept["kind"].eq("all"))], nothing], ignore_index=True)
    found = judged("H5", Study(study.draws, flat, study.networks))
    assert "of the energy no share can be given" in found.sentence
    assert re.search(r"; by themselves, in its own unit: of the energy, .*means alone lower it by 0\.", found.sentence)
    assert find(found, "energy: none - means alone", "dtd").effect == pytest.approx(0.6, abs=0.1)
