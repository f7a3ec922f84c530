"""Verdicts on made-up studies whose truth is known: every hypothesis in all three directions, and more."""

import io
import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from claim_tables import HEADLINE, NOISE, Study, Truth, find, judged, made_study
from rich.console import Console

from bnood.errors import UserError
from bnood.study.claim import ClaimOptions, gather, judge, markdown_table, print_verdict
from bnood.study.claim.measurements import condition_measurements

LOUD: dict[str, Any] = {"seed_noise": 0.8, "image_noise": 0.3}
NO_SHARES = {"first": 0.0, "last": 0.05, "only": 0.0, "mean": 0.1, "variance": -0.1}


@pytest.mark.parametrize(
    ("name", "truth", "noise", "verdict", "said"),
    [
        ("H1", Truth(), {}, "supported", "1.90 [1.90, 1.90] times the ID figure"),
        ("H1", Truth(running_maximum=1.15, matched_maximum=1.05), {}, "refuted", ""),
        ("H1", Truth(matched_maximum=1.5), {}, "refuted", ""),
        ("H1", Truth(running_maximum=1.9, matched_maximum=2.1), {}, "refuted", "a difference of -0.20"),
        ("H1", Truth(), LOUD, "inconclusive", "Not decided"),
        ("H1", Truth(running_maximum=1.2), {}, "inconclusive", "largest unit mean, running, because the interval con"),
        ("H2", Truth(), {}, "supported", "MSP 0.099 [0.09"),
        ("H2", Truth(energy=0.05, max_logit=0.0, msp=-0.1), {}, "refuted", "MSP 0.101 ["),
        # One is refuted, the others are open.
        ("H2", Truth(energy=0.05, max_logit=0.1, msp=0.01), {}, "refuted", ""),
        ("H2", Truth(energy=-1.0), {}, "inconclusive", " lower (in the opposite direction; minimum of 0.1), max lo"),
        ("H2", Truth(), LOUD, "inconclusive", "Not decided"),
        ("H3", Truth(), {}, "supported", "matched statistics raise energy's AUROC by 0.049 [0.04"),
        ("H3", Truth(auroc=-0.05, fpr95=-0.1), {}, "refuted", "energy and MSP matching does not help but harms"),
        ("H3", Truth(auroc=0.0, fpr95=0.0), {}, "refuted", ""),
        ("H3", Truth(msp_auroc=-0.05), {}, "inconclusive", "lower MSP's AUROC by 0.0"),
        # One of AUROC and FPR95 gains, the other does not: neither supported nor refuted, and no harm.
        ("H3", Truth(auroc=-0.05), {}, "inconclusive", "lower its FPR95 by 0.1"),
        ("H3", Truth(fpr95=0.0), {}, "inconclusive", ""),
        ("H3", Truth(), LOUD, "inconclusive", "Not decided"),
        ("H4", Truth(), {}, "supported", "LN alone 0.30"),
        ("H4", Truth(over_ln=0.0, over_gn=0.0), {}, "refuted", ""),
        ("H4", Truth(over_ln=0.6, over_gn=0.0), {}, "inconclusive", "against LN supported, against GN refuted"),
        ("H4", Truth(), LOUD, "inconclusive", "Not decided"),
        ("H5", Truth(), {}, "supported", "last 2 of 4 layers has the largest mean share, 0.70 [0.6"),
        ("H5", Truth(shares=NO_SHARES), {}, "refuted", "0 of 5 places"),
        ("H5", Truth(energy_shares=NO_SHARES), {}, "inconclusive", "on the energy, means alone has the largest"),
        ("H5", Truth(), LOUD, "inconclusive", "the whole effect is not distinguishable from 0"),
        ("H5", Truth(whole=-1.0), {}, "inconclusive", "the whole effect is not above 0 (-0.85"),
    ],
)
def test_the_verdict_is_the_truth(name: str, truth: Truth, noise: dict[str, Any], verdict: str, said: str) -> None:
    found = judged(name, made_study(truth, **noise))
    assert found.verdict == verdict, found.sentence
    assert said in found.sentence
    assert "5 seeds" in found.sentence


def test_estimates_are_near_the_truth_and_their_intervals_hold_it() -> None:
    study = made_study(Truth(energy=0.7, id_energy=0.2), seed_noise=0.05, image_noise=0.05)
    h2_found, h5_found = judged("H2", study), judged("H5", study)
    for quantity, true in (("energy, running - matched", 0.7), ("energy, running - matched, OOD - ID", 0.5)):
        for dataset in ("mean of svhn, dtd, cifar100", *HEADLINE, NOISE):
            one = find(h2_found, quantity, dataset)
            assert one.low <= true <= one.high and 0 < one.high - one.low < 0.5
    share = find(h5_found, "energy: means alone", "mean of svhn, dtd, cifar100")
    assert share.low <= 0.6 <= share.high and share.level == pytest.approx(0.99)
    assert find(h5_found, "energy: whole effect, none - all", "dtd").effect == pytest.approx(0.7, abs=0.15)


def test_the_mean_over_sets_weighs_sets_equally_whatever_their_noise() -> None:
    found = judged("H2", made_study(by_set={"svhn": {"energy": 2.5}}))
    assert found.headline.effect == pytest.approx((2.5 + 1 + 1) / 3, abs=0.02)
    per_set = [find(found, "energy, running - matched", name).effect for name in HEADLINE]
    assert found.headline.effect == pytest.approx(np.mean(per_set))
    seeds = [find(found, "energy, running - matched", name).per_seed[2] for name in HEADLINE]
    assert found.headline.per_seed[2] == pytest.approx(np.mean(seeds))


def test_sets_that_contradict_each_other_leave_it_open() -> None:
    found = judged("H1", made_study(by_set={"cifar100": {"running_maximum": 1.0, "matched_maximum": 1.0}}))
    assert found.headline.verdict == "supported"  # on the mean
    assert found.verdict == "inconclusive"
    assert "svhn supported, dtd supported, cifar100 refuted" in found.sentence


def test_other_sets_are_listed_and_decide_nothing() -> None:
    found = judged("H1", made_study(by_set={NOISE: {"running_maximum": 0.5, "matched_maximum": 3.0}}))
    assert found.verdict == "supported"
    assert find(found, "largest unit mean, running - matched", NOISE).verdict == "refuted"


def test_one_headline_set_is_its_own_mean_and_listed_once() -> None:
    found = judged("H3", made_study(), ClaimOptions(headline_sets=("svhn",)))
    assert found.verdict == "supported" and found.headline.dataset == "svhn"
    find(found, "energy AUROC, matched - running", "svhn")  # exactly one


def test_a_control_that_is_not_null_is_said_with_what_is_left_beyond_it() -> None:
    study = made_study(Truth(id_energy=0.4, id_accuracy=0.05))
    found = judged("H2", study)
    control = find(found, "energy, running - recalibrated:id", "cifar10")
    assert control.verdict == "failed" and found.verdict == "supported"
    assert "The control is not null: energy, running - recalibrated:id on cifar10 0.40" in found.sentence
    assert "Beyond the control, on the same OOD images: energy, recalibrated:id - matched 1.00" in found.sentence
    assert find(judged("H3", study), "ID accuracy, recalibrated:id - running", "cifar10").verdict == "failed"
    null = judged("H2", made_study(seed_noise=0.001))
    assert {one.verdict for one in null.controls} == {"passed"} and "The control is" not in null.sentence


def test_interventions_that_are_not_the_conditions_they_claim_to_be_fail_the_control() -> None:
    found = judged("H5", made_study(Truth(whole=0.8)))
    assert find(found, "energy: all - recalibrated:target", "mean of svhn, dtd, cifar100").verdict == "failed"
    assert find(found, "energy: none - running", "mean of svhn, dtd, cifar100").verdict != "failed"


def test_one_seed_decides_nothing_but_keeps_its_interval_over_images() -> None:
    verdict = judge(*made_study(seeds=(7,)).tables())
    assert {one.verdict for one in verdict.hypotheses} == {"inconclusive"} and verdict.seeds == (7,)
    for one in verdict.hypotheses:
        assert "one seed only" in one.sentence and "(1 seed," in one.sentence
        assert one.headline.low < one.headline.effect < one.headline.high
        assert one.headline.to_json()["effect_size"] is None


def test_seeds_that_one_side_lacks_are_left_out_and_named() -> None:
    study = made_study()
    draws = study.draws
    lacking = (draws["seed"] == 3) & (draws["statistics"] == "recalibrated:target") & (draws["dataset"] == "dtd")
    found = judged("H1", Study(draws[~lacking], study.interventions, study.networks))
    assert sorted(found.headline.per_seed) == [0, 1, 2, 4]
    assert "(4 seeds" in found.sentence and "not in all that is compared: seeds 3." in found.sentence
    assert find(found, "largest unit mean, running - matched", "svhn").n_seeds == 5


def test_networks_of_other_accuracy_are_left_out_and_named() -> None:
    # The made-up accuracies lie 0.005 apart; 0.01 is allowed.
    found = judged("H4", made_study(Truth(gaps={("ln", 1): 0.02, ("gn", 2): 0.005})))
    assert found.verdict == "supported" and found.headline.n_seeds == 4
    assert "left out: seed 1 of ln (+0.025)" in found.sentence
    nothing = judged("H4", made_study(Truth(gaps={("gn", seed): -0.1 for seed in range(5)})))
    assert nothing.verdict == "inconclusive" and math.isnan(nothing.headline.effect)
    assert "accuracies of bn-at-gn and gn differ by more than 0.01 (seed 0: -0.095" in nothing.sentence
    # Against LN alone it is estimated all the same.
    alone = find(nothing, "largest unit mean, bn-at-ln - ln", "svhn")
    assert alone.verdict == "supported" and alone.n_seeds == 5


def test_what_the_tables_lack_is_the_reason() -> None:
    study = made_study()
    draws = study.draws[(study.draws["network"] == "bn") & (study.draws["statistics"] == "running")]
    found = {one.hypothesis: one for one in judge(draws, None, study.networks).hypotheses}
    assert {one.verdict for one in found.values()} == {"inconclusive"}
    assert "draws has nothing for network bn, statistics recalibrated:target" in found["H1"].sentence
    assert "draws has nothing for network bn-at-ln, statistics running" in found["H4"].sentence
    assert "there are no interventions" in found["H5"].sentence
    # What there is, is still given.
    assert find(found["H1"], "largest unit mean, running", "svhn").verdict == "supported"
    only = study.interventions[study.interventions["kind"] != "mean"]
    assert judged("H5", Study(study.draws, only, study.networks)).verdict == "supported"
    refuting = made_study(Truth(shares=NO_SHARES))
    only = refuting.interventions[refuting.interventions["kind"] != "mean"]
    assert judged("H5", Study(refuting.draws, only, refuting.networks)).verdict == "inconclusive"


def test_constant_scores_and_what_does_not_vary_decide_nothing() -> None:
    study = made_study()
    constant = study.draws.copy()
    rows = constant["metric"] == "auroc"
    constant.loc[rows, "value"] = 0.5
    constant.loc[rows, "draws"] = pd.Series([np.full(40, 0.5)] * rows.sum(), index=constant.index[rows])
    found = judged("H3", Study(constant, study.interventions, study.networks))
    assert found.verdict == "inconclusive" and "scores are constant" in found.sentence
    still = made_study(seed_noise=0.0, image_noise=0.0)
    found = judged("H2", still)
    assert found.verdict == "inconclusive" and "neither seeds nor images vary" in found.sentence
    equal = judged("H2", made_study(Truth(energy=0.0), seed_noise=0.0, image_noise=0.0))
    assert "the two sides are equal in every seed and resample" in equal.sentence
    # Equality is what a control is for.
    assert {one.verdict for one in equal.controls} == {"passed"}


@pytest.mark.parametrize("where", ["value", "draws"])
def test_nan_is_a_reason_and_no_verdict(where: str) -> None:
    study = made_study()
    row = study.draws.query("metric == 'mean' and score == 'msp' and dataset == 'dtd' and network == 'bn'").index[0]
    study.draws.at[row, where] = math.nan if where == "value" else np.full(40, math.nan)
    found = judged("H2", study)
    assert found.verdict == "inconclusive" and "values or resamples are NaN" in found.sentence
    assert find(found, "MSP, running - matched", "svhn").verdict == "supported"


def test_only_the_same_images_and_resamples_are_compared() -> None:
    study = made_study()
    matched = study.draws["statistics"] == "recalibrated:target"
    other = study.draws.assign(n=study.draws["n"].where(~matched, 90))
    found = judged("H1", Study(other, study.interventions, study.networks))
    assert found.verdict == "inconclusive" and "of 100 images" in found.sentence and "of 90" in found.sentence
    fewer = study.draws.assign(draws=[d[:20] if m else d for d, m in zip(study.draws["draws"], matched, strict=True)])
    found = judged("H1", Study(fewer, study.interventions, study.networks))
    assert found.verdict == "inconclusive" and "[20, 40] resamples" in found.sentence


def test_batches_and_mixtures_are_no_part_of_it() -> None:
    study = made_study(seeds=(0, 1, 2))
    batch = study.draws.assign(composition="pure", batch_size=128, value=99.0)
    mixed = study.draws.assign(companion="svhn", value=99.0)
    path = study.interventions.assign(kind="path", value=99.0)
    more = Study(pd.concat([study.draws, batch, mixed]), pd.concat([study.interventions, path]), study.networks)
    assert judge(*more.tables()).to_json() == judge(*study.tables()).to_json()


def test_tables_read_back_from_files_give_the_same_verdict(tmp_path: Path) -> None:
    study = made_study(seeds=(0, 1, 2))
    back = []
    for name, table in zip(("draws", "interventions"), (study.draws, study.interventions), strict=True):
        table.to_parquet(tmp_path / f"{name}.parquet")
        back.append(pd.read_parquet(tmp_path / f"{name}.parquet"))
    back[0].loc[back[0]["composition"] == "", ["composition", "companion"]] = None
    assert judge(back[0], back[1], study.networks).to_json() == judge(*study.tables()).to_json()


def test_bad_tables_and_options_are_refused_in_one_line() -> None:
    draws, interventions, networks = made_study(seeds=(0, 1)).tables()
    wrong: list[tuple[tuple[pd.DataFrame, pd.DataFrame, pd.DataFrame], str]] = [
        ((draws[:0], interventions, networks), "draws is empty"),
        ((draws.drop(columns=["network", "n"]), interventions, networks), "draws lacks the columns n, network"),
        ((draws, interventions.drop(columns="kind"), networks), "intervention_draws lacks the columns kind"),
        ((pd.concat([draws, draws[:1]]), interventions, networks), "two rows for seed 0"),
        ((draws[draws["role"] == "ood"], interventions, networks), "in-distribution sets none"),
        ((draws[draws["dataset"] != "dtd"], interventions, networks), "headline_sets: dtd was not evaluated"),
        ((draws, interventions, networks.drop(columns="accuracy")), "lacks the columns accuracy"),
        ((draws, interventions, networks.assign(accuracy=90.0)), "accuracy is 90.0"),
        ((draws, interventions, pd.concat([networks, networks])), "network and seed twice"),
    ]
    for tables, message in wrong:
        with pytest.raises(UserError, match=message) as raised:
            gather(*tables)
        assert "\n" not in str(raised.value)
    options: list[tuple[dict[str, Any], str]] = [
        ({"headline_sets": ()}, "claim.headline_sets"),
        ({"headline_sets": ("svhn", "svhn")}, "each once"),
        ({"places": ("middle",)}, "claim.places: middle is none of first half"),
        ({"level": 95.0}, "claim.level is 95"),
        ({"level": 0.01}, "claim.level is 0.01"),
        ({"minimum_auroc": 5}, "claim.minimum_auroc is 5; no share can differ by as much as 1"),
        ({"minimum_share": 1.0}, "claim.minimum_share is 1.0; no share"),
        ({"minimum_msp": -1}, "claim.minimum_msp is -1"),
        ({"abnormal": 0.9}, "claim.abnormal"),
        ({"minimum_msp": math.nan}, "claim.minimum_msp is nan"),
    ]
    for given, message in options:
        with pytest.raises(UserError, match=message):
            ClaimOptions(**given)
    assert ClaimOptions(headline_sets=["a", "b"]).headline_sets == ("a", "b")  # type: ignore[arg-type]


def test_thresholds_are_what_decides() -> None:
    study = made_study()
    for name, options in (
        ("H1", ClaimOptions(abnormal=1.95)),
        ("H2", ClaimOptions(minimum_energy=2.0, minimum_max_logit=2.0, minimum_msp=0.5)),
        ("H3", ClaimOptions(minimum_auroc=0.2, minimum_fpr95=0.5)),
        ("H4", ClaimOptions(minimum_unit_ratio=0.5)),
        ("H5", ClaimOptions(minimum_share=0.9)),
    ):
        assert judged(name, study, options).verdict == "refuted"


def test_half_the_layers_is_the_nearest_there_is() -> None:
    study = made_study()
    swept = study.interventions
    swept = swept[~((swept["kind"] == "first") & (swept["position"] == 2))]
    found = judged("H5", Study(study.draws, swept, study.networks))
    assert find(found, "energy: first 1 of 4 layers", "dtd").effect == pytest.approx(0.5, abs=0.05)
    assert find(found, "energy: last 2 of 4 layers", "dtd").effect == pytest.approx(0.7, abs=0.05)
    assert find(found, "energy: last layer alone", "dtd").effect == pytest.approx(0.4, abs=0.05)


def test_the_files_hold_the_verdict(tmp_path: Path) -> None:
    verdict = judge(*made_study(seeds=(0, 1, 2)).tables(), study="made-up", made={"commit": "abc"})
    verdict.write_verdict(tmp_path / "study")
    assert sorted(path.name for path in (tmp_path / "study").iterdir()) == ["verdict.csv", "verdict.json"]
    content = json.loads((tmp_path / "study" / "verdict.json").read_text())
    assert content == verdict.to_json()
    assert (content["study"], content["made"], content["seeds"]) == ("made-up", {"commit": "abc"}, [0, 1, 2])
    assert content["thresholds"]["headline_sets"] == list(HEADLINE) and content["thresholds"]["minimum_share"] == 0.25
    assert [one["hypothesis"] for one in content["hypotheses"]] == ["H1", "H2", "H3", "H4", "H5"]
    assert set(content["hypotheses"][0]["headline"]) >= {
        "quantity", "dataset", "unit", "effect", "low", "high", "effect_size", "per_seed", "n_seeds", "threshold",
        "verdict",
    }  # fmt: skip
    table = pd.read_csv(tmp_path / "study" / "verdict.csv")
    assert (table.groupby("hypothesis")["role"].apply(lambda roles: (roles == "headline").sum()) == 1).all()
    assert not table.duplicated(["hypothesis", "quantity", "dataset"]).any()
    assert set(table["role"]) == {"headline", "estimate", "control"}
    assert (table["low"] <= table["effect"]).all() and (table["effect"] <= table["high"]).all()


def test_what_is_not_a_number_is_null_in_json(tmp_path: Path) -> None:
    study = made_study(Truth(whole=0.0), seeds=(0, 1), **LOUD)
    verdict = judge(study.draws[study.draws["network"] == "bn"], study.interventions, study.networks)
    verdict.write_verdict(tmp_path)
    content = json.loads((tmp_path / "verdict.json").read_text(), parse_constant=pytest.fail)
    h4_read, h5_read = content["hypotheses"][3:]
    assert h4_read["headline"]["effect"] is None and h4_read["headline"]["n_seeds"] == 0
    assert h5_read["headline"]["low"] is None and h5_read["headline"]["effect"] is not None


def test_the_printed_and_the_markdown_table_hold_every_verdict_and_sentence() -> None:
    verdict = judge(*made_study(Truth(auroc=-0.05, fpr95=-0.1), seeds=(0, 1, 2)).tables())
    out = io.StringIO()
    print_verdict(Console(file=out, width=100), verdict)
    printed = " ".join(out.getvalue().split())
    text = markdown_table(verdict)
    assert len(text.splitlines()) == 7 and all(line.count("|") == 5 for line in text.splitlines())
    for one in verdict.hypotheses:
        assert f"{one.hypothesis} {one.verdict}" in printed and f"**{one.verdict}** | {one.sentence} |" in text
        # Intervals in brackets are no markup.
        assert one.sentence.split("[")[1].split("]")[0] in printed
    assert "refuted" in printed


def test_condition_measurements_name_what_is_missing() -> None:
    measurements = condition_measurements(made_study(seeds=(0, 1)).draws)
    assert measurements.names("dataset", role="ood") == [*HEADLINE, NOISE]
    assert measurements.seeds("ln") == (0, 1)
    with pytest.raises(UserError, match="draws has nothing for network rn, statistics running, dataset svhn"):
        measurements.get("rn", "running", "svhn", "ood", "msp", "mean")
