"""``scripts/study.py`` as a user runs it: once as a process of its own, the rest through the function it calls."""

import subprocess
import sys
from pathlib import Path

import pytest
from study import parse
from tiny_study import EVALUATION, options_of, study_config

from bnood.study.networks import check_training, run_specs

ROOT = Path(__file__).parents[2]
CONFIGS = sorted((ROOT / "configs" / "studies").glob("*.yaml"))


def test_the_script_runs_the_demo_and_prints_a_short_answer(tmp_path: Path) -> None:
    quick = EVALUATION | {"statistics": ["running", "recalibrated:id", "recalibrated:target"]}
    config = study_config(tmp_path, entry={"norms": ["bn"], "overrides": {}}, evaluation=quick, demo=True)
    ran = subprocess.run(
        [sys.executable, str(ROOT / "scripts" / "study.py"), "--config", str(config), "--localisation", "none"],
        cwd=tmp_path, capture_output=True, text=True,
    )  # fmt: skip
    assert ran.returncode == 0, ran.stderr
    assert ran.stderr == ""
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
