"""What a study prints fits on a screen: 15 lines for a verdict, 28 for the demo, 100 columns."""

import pandas as pd
import pytest
from claim_tables import PRIMARY, Truth, made_study

from bnood.study.claim import ClaimOptions
from bnood.study.measurements import Measurements
from bnood.study.printing import ANSWERS, demo_lines, verdict_lines
from bnood.study.verdict import judge


@pytest.mark.parametrize("seeds", [(0, 1, 2), (0,)])
def test_the_verdict_is_a_table_of_few_lines(seeds: tuple[int, ...]) -> None:
    truth = Truth(auroc=-0.05, fpr95=-0.1, over_ln=0.6, over_gn=0.0, class_mix=None)
    lines = verdict_lines(judge(*made_study(truth, seeds=seeds)))
    assert len(lines) <= 15 and max(map(len, lines)) <= 100
    verdict = "refuted" if len(seeds) == 3 else "refuted (this network)"
    (h3, *_) = [line for line in lines if line.startswith("H3")]
    assert h3[4:33].strip() == verdict and "energy AUROC, target - running" in h3
    assert "\u22125." in h3 and h3.endswith("> 1")  # in points of AUROC
    assert "class mix not available on svhn" in "\n".join(lines)


def test_many_networks_are_rows() -> None:
    studies = [made_study(family=f"network{number} ", seeds=(0,)) for number in range(16)]
    draws, networks = map(pd.concat, zip(*studies, strict=True))
    lines = verdict_lines(judge(draws, networks))
    assert len(lines) == 15 and max(map(len, lines)) <= 100
    assert lines[1].split() == ["network0", "bn", "(this", "network)", *["supported"] * 5]
    assert lines[-1] == "and 3 more in verdict.csv"


@pytest.mark.parametrize(("msp", "answer"), [(0.1, "lower"), (-0.1, "higher"), (0.0, "open")])
def test_the_demo_prints_one_answer_by_the_change_in_confidence(msp: float, answer: str) -> None:
    study = made_study(Truth(msp=msp), seeds=(0,), seed_noise=0.0)
    lines = demo_lines(Measurements(study.draws), study.networks, ClaimOptions(primary_sets=PRIMARY))
    assert len(lines) <= 26 and max(map(len, lines)) <= 100
    assert [line for line in lines if line in ANSWERS.values()] == [ANSWERS[answer]]
    text = "\n".join(lines)
    assert "87.0\u00a0%" in text and not any(word in text for word in ("supported", "refuted", "inconclusive"))
    (auroc,) = [line for line in lines if "AUROC of MSP" in line]
    assert auroc.split()[5:9] == ["85.0", "%", "90.0", "%"] and auroc.endswith("points") and " +5.0 [" in auroc
