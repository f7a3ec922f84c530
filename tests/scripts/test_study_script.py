"""``scripts/study.py`` as a user runs it: once as a process of its own, the rest through the function it calls."""

import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from refusal import refusal
from tiny_study import options_of, study_config

from bnood.study.cli import main, parse
from bnood.study.grid import StudyCell, check_same_training, expected_config

ROOT = Path(__file__).parents[2]
CONFIGS = sorted((ROOT / "configs" / "studies").glob("*.yaml"))


def test_the_script_runs_a_study_and_prints_its_verdict(tmp_path: Path) -> None:
    quick = {"sets": {"id_count": 60}, "resamples": 20, "sweeps": {"enabled": False}}
    config = study_config(tmp_path, norms=["ln"], overrides={"ln": {"trainer.max_epochs": 1}}, evaluation=quick)
    ran = subprocess.run(
        [sys.executable, str(ROOT / "scripts" / "study.py"), "--config", str(config)],
        cwd=tmp_path,
        capture_output=True,
        text=True,
    )
    assert ran.returncode == 0, ran.stderr
    assert ran.stderr == ""
    lines = ran.stdout.splitlines()
    assert lines[0].startswith("ln-s0 training: done (") and lines[1].startswith("ln-s0 evaluation: done (")
    assert lines[-1] == f"report: {tmp_path / 'runs' / 'tiny' / 'report.html'}"
    for hypothesis in ("H1", "H2", "H3", "H4", "H5"):
        assert any(line.strip().startswith(hypothesis) and "inconclusive" in line for line in lines)


def test_wrong_options_are_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    config = str(study_config(tmp_path))
    for arguments, words in (
        ([], "a study needs a config: give --config"),
        (["--config", str(tmp_path / "none.yaml")], "none.yaml: no such config file"),
        (["--config", config, "--executer.kind", "ray"], "there is no option --executer.kind (did you mean"),
        (["--config", config, "--judge", "true"], "there is no option --judge (did you mean --judge_only?)"),
        (["--config", config, "--seed", "[1]"], "there is no option --seed (did you mean --seeds?)"),
        (["--config", config, "--seeds", "0"], "seeds is '0'; expected a list such as [0, 1]"),
        (["--config", config, "--norms", "bn"], "norms is 'bn'; expected a list such as [bn]"),
        (["--config", config, "--executor.kind", "cloud"], "'cloud'; expected serial or processes or ray"),
    ):
        assert words in refusal(main, arguments, capsys)
    assert not (tmp_path / "runs").exists()


@pytest.mark.parametrize("config", CONFIGS, ids=lambda path: path.stem)
def test_the_configs_are_read_and_their_trainings_too(
    config: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(ROOT)
    options = options_of(config)
    assert config.read_text().splitlines()[0].startswith("# ")
    assert f"python scripts/study.py --config configs/studies/{config.name}" in config.read_text()
    serial = parse(["--config", str(config), "--executor.kind", "serial"])[0]
    assert serial.executor.kind == "serial" and serial.executor.workers == options.executor.workers
    assert set(options.claim.headline_sets) <= set(options.evaluation.sets.ood or ())
    for norm in options.norms:
        expected = expected_config(options, StudyCell(norm, 0))
        assert expected["model"]["norm"] == norm and expected["keep_epochs"] == (norm == "bn")


def test_the_runs_of_the_small_study_are_recognised(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A config of ``train.py --config configs/cifar10_small.yaml --model.norm ln --trainer.max_epochs 36 ...``."""
    monkeypatch.chdir(ROOT)
    options = options_of(ROOT / "configs" / "studies" / "cifar10_small.yaml")
    assert options.evaluation.sweeps.compressed == "cifar10-jpeg75" and options.seeds == (0, 1, 2, 3, 4)
    expected = expected_config(options, StudyCell("ln", 0))
    by_hand = {
        "seed_everything": 0,
        "trainer": {"max_epochs": 36, "precision": "bf16-mixed", "enable_progress_bar": None},
        "model": {"architecture": "resnet", "depth": 18, "width": 16, "norm": "ln", "learning_rate": 0.1},
        "data": {"in_distribution": "cifar10", "root": None, "validation": 5000, "train_count": None},
        "name": "cifar10-resnet18x16-ln-s0",
        "runs": "runs",
    }
    (tmp_path / "config.yaml").write_text(yaml.safe_dump(by_hand))
    check_same_training(tmp_path, expected)
