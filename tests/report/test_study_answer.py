"""The verdicts in plain sentences: numbers, their side, and what becomes of them where there are none."""

from typing import Any

import pytest
from claim_tables import Truth, made_study

from bnood.report.study_answer import WORDS_USED, plain_answer
from bnood.study.claim import ClaimOptions, judge


def told(truth: Truth, **noise: Any) -> dict[str, str]:
    study = made_study(truth, **noise)
    verdict = judge(study.draws, study.interventions, study.networks, ClaimOptions())
    return dict(plain_answer(verdict.to_json()))


def test_where_all_holds_it_is_said_with_the_numbers() -> None:
    found = told(Truth())
    assert found["The survey's sentence"].startswith("It holds for these networks: its first half")
    assert found["The survey's sentence"].endswith("which it suggests, is supported.")
    assert "1.90 [1.90, 1.90] times as active" in found["Abnormal activations (H1): supported"]
    outputs = found["Higher outputs accordingly (H2): supported"]
    assert " higher than under matched ones (nats), and their mean MSP 0.099 [0.09" in outputs
    assert "raises the AUROC of energy by 0.049 [0.04" in found["Harm to detection (H3): supported"]
    norms = found["BatchNorm's own doing (H4): supported"]
    assert "a largest unit mean 0.3" in norms and norms.endswith("of equal accuracy.")
    place = found["A place in the network (H5): supported"]
    assert "More than their even share move: largest unit mean, last 2 of 4 layers (0.70 [0.6" in place


def test_the_opposite_is_said_without_signs() -> None:
    found = told(Truth(energy=-1.0, max_logit=-1.0, msp=-0.1, auroc=-0.05, msp_auroc=-0.05, fpr95=-0.1))
    assert "does not hold as a whole" in found["The survey's sentence"]
    outputs = found["Higher outputs accordingly (H2): refuted"]
    assert "the energy of OOD images is 1.00 [" in outputs and outputs.endswith("] lower.")
    assert "lowers the AUROC of energy by 0.0" in found["Harm to detection (H3): refuted"]
    assert not any("\N{MINUS SIGN}" in sentence for sentence in found.values())


def test_what_is_open_is_not_told_as_refuted() -> None:
    found = told(Truth(), seed_noise=0.8, image_noise=0.3)
    assert "is not shown as a whole for these networks, and not refuted either" in found["The survey's sentence"]
    place = told(Truth(whole=0.0), seed_noise=0.8, image_noise=0.3)["A place in the network (H5): left open"]
    assert place.startswith("It is not shown that matching all layers lowers largest unit mean, energy and max logit")


def test_a_share_is_given_only_of_what_has_a_whole() -> None:
    study = made_study(Truth())
    verdict = judge(study.draws, study.interventions, study.networks, ClaimOptions()).to_json()
    (fifth,) = [entry for entry in verdict["hypotheses"] if entry["hypothesis"] == "H5"]
    for one in fifth["estimates"]:
        if one["quantity"] == "energy: whole effect, none - all":
            one |= {"effect": -0.4, "low": -0.9, "high": 0.1}
    told = dict(plain_answer(verdict))["A place in the network (H5): supported"]
    assert "More than their even share move: largest unit mean, " in told and "energy, last 2" not in told
    assert "Of energy no share can be given: matching all layers is not shown to lower it." in told
    assert " By themselves, matched means lower the energy by 0.6" in told


def test_without_figures_the_reason_is_given() -> None:
    study = made_study(Truth())
    verdict = judge(study.draws, None, study.networks, ClaimOptions()).to_json()
    found = dict(plain_answer(verdict))
    assert found["A place in the network (H5): left open"] == (
        "No figure can be given: there are no interventions: intervention_draws is empty."
    )
    assert plain_answer({}) == []


@pytest.mark.parametrize("term", ["running", "matched, recalibrated:target", "MSP", "energy", "FPR95", "class mix"])
def test_the_words_of_the_page_are_explained(term: str) -> None:
    assert len(dict(WORDS_USED)[term]) > 40


def test_where_the_norms_differ_both_ways_what_is_needed_is_said() -> None:
    study = made_study(Truth())
    verdict = judge(study.draws, study.interventions, study.networks, ClaimOptions()).to_json()
    (fourth,) = [entry for entry in verdict["hypotheses"] if entry["hypothesis"] == "H4"]
    for one in fourth["estimates"]:
        if one["quantity"].startswith("mean MSP, bn - ln and gn"):
            one |= {"effect": -0.02, "low": -0.03, "high": -0.01}
    told = dict(plain_answer(verdict))["BatchNorm's own doing (H4): supported"]
    assert "a mean MSP 0.020 [0.010, 0.030] lower" in told and told.endswith("needs all of them to be higher.")
