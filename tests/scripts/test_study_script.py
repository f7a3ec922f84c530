"""``scripts/study.py``: as a process of its own, what it reads, and what it prints: 15 lines, for the demo 28."""

import subprocess
import sys
from pathlib import Path

import pandas as pd
import pytest
from claim_tables import PRIMARY, Truth, made_study
from study import demo_lines, parse, verdict_lines
from tiny_study import EVALUATION, options_of, study_config

from bnood.study.claim import ClaimOptions
from bnood.study.measurements import Measurements
from bnood.study.networks import check_training, run_specs
from bnood.study.run import ANSWERS
from bnood.study.verdict import judge

ROOT = Path(__file__).parents[2]
CONFIGS = sorted((ROOT / "configs" / "studies").glob("*.yaml"))


def test_the_script_runs_the_demo_and_prints_a_short_answer(tmp_path: Path) -> None:
    quick = EVALUATION | {"statistics": ["running", "recalibrated:id", "recalibrated:target"]}
    config = study_config(tmp_path, entry={"norms": ["bn"], "overrides": {}}, evaluation=quick, demo=True)
    ran = subprocess.run(
        [sys.executable, str(ROOT / "scripts" / "study.py"), "--config", str(config), "--localisation", "none"],
        cwd=tmp_path, capture_output=True, text=True,
    )  # fmt: skip
    assert (ran.returncode, ran.stderr) == (0, "")
    lines = ran.stdout.splitlines()
    assert len(lines) <= 30 and lines[1].startswith("[1/1] bn-s0: done in ")
    assert lines[-1] == f"page:    {tmp_path / 'runs' / 'tiny' / 'report.html'}"
    assert "One network: a hint, not evidence." in ran.stdout
    page = (tmp_path / "runs" / "tiny" / "report.html").read_text()
    assert "one point of confidence" in page and not (tmp_path / "runs" / "tiny" / "verdict.json").exists()
    assert not any(word in ran.stdout + page for word in ("supported", "refuted", "inconclusive"))


@pytest.mark.parametrize("config", CONFIGS, ids=lambda path: path.stem)
def test_the_configs_are_read_and_their_trainings_too(config: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)
    options = options_of(config)
    assert config.read_text().startswith("# ")
    assert f"python scripts/study.py --config configs/studies/{config.name}" in config.read_text()
    assert set(options.claim.primary_sets) <= set(options.sets.ood or ())
    assert parse(["--config", str(config), "--executor.backend", "sequential"])[0].executor.backend == "sequential"
    if any(entry.run is not None for entry in options.networks):
        return  # its run folders have to be there
    for spec in run_specs(options):
        if spec.entry.training is not None and not spec.partner:
            expected = check_training(options, spec)
            assert expected["model"]["norm"] == spec.norm and expected["seed_everything"] == spec.seed


@pytest.mark.parametrize("seeds", [(0, 1, 2), (0,)])
def test_the_verdict_is_a_table_of_few_lines(seeds: tuple[int, ...]) -> None:
    truth = Truth(auroc=-0.05, fpr95=-0.1, over_ln=0.6, over_gn=0.0, class_mix=None)
    lines = verdict_lines(judge(*made_study(truth, seeds=seeds)))
    assert len(lines) <= 15 and max(map(len, lines)) <= 100
    verdict = "refuted" if len(seeds) == 3 else "refuted (this network)"
    (h3, *_) = [line for line in lines if line.startswith("H3")]
    assert h3[4:32].strip() == verdict and "energy AUROC, target - running" in h3
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
