"""``scripts/study.py --judge_only true``: the verdict on what is there, and what is not judged."""

import json
import shutil
from pathlib import Path

import pytest
import torch
from tiny_study import BN, LN, copy_of_study, options_of, study_config, times

from bnood.errors import UserError
from bnood.evaluation.run_evaluation import asked, is_evaluated
from bnood.study.cli import evaluated_cells, main, missing_lines
from bnood.study.grid import cell_evaluation
from bnood.training.run_folder import CHECKPOINT


def test_what_is_there_is_judged_without_training_or_evaluating(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config, folder = copy_of_study(tmp_path), tmp_path / "runs" / "tiny"
    before = times(folder, "*-s*/**/*")
    shutil.rmtree(folder / "ln-s0" / "ood")
    (folder / "verdict.json").unlink()
    main(["--config", str(config), "--seeds", "[0, 1]", "--judge_only", "true"])
    assert {path: time for path, time in before.items() if "ln-s0/ood" not in path} == times(folder, "*-s*/**/*")
    verdict = json.loads((folder / "verdict.json").read_text())
    assert verdict["seeds"] == [0]
    # What makes the whole study is recorded, which leaves alone what is there.
    assert verdict["made"]["command"] == f"python scripts/study.py --config {config} --seeds '[0, 1]'"
    lines = [f"{run} is not evaluated: seed" for run in ("ln-s0", "bn-s1", "ln-s1", "bn-s1-at-ln")]
    page = (folder / "report.html").read_text()
    assert len(verdict["made"]["missing"]) == 4 and all(line in page for line in lines)
    assert all(any(found.startswith(line) for found in verdict["made"]["missing"]) for line in lines)
    assert not (folder / "study.yaml").exists()  # it would say that all of this was made so
    shown = capsys.readouterr().out
    assert "ln-s0 is not evaluated" in shown and "seed 1 is missing for bn" in shown


def test_a_network_that_is_half_trained_is_not_judged(tmp_path: Path) -> None:
    options, epochs = options_of(copy_of_study(tmp_path)), {"bn": 2, "ln": 1}
    folder = options.folder / BN.name
    assert evaluated_cells(options, [BN, LN], epochs) == [BN, LN]
    (folder / "summary.json").unlink()
    content = torch.load(folder / CHECKPOINT, weights_only=False)
    torch.save(content | {"epoch": 0}, folder / CHECKPOINT)  # as if killed after the first of two epochs
    record = folder / "ood" / "evaluation.json"  # of the half, as eval_ood.py would leave it
    now = json.loads(record.read_text()) | {"asked": asked(folder, cell_evaluation(options, BN))}
    record.write_text(json.dumps(now))
    assert is_evaluated(folder, cell_evaluation(options, BN))
    assert evaluated_cells(options, [BN, LN], epochs) == [LN]
    assert list(missing_lines(options, [BN, LN], [LN], epochs)) == [
        "bn-s0 is not trained to its end (without --judge_only it goes on): seed 0 is missing for bn"
    ]


def test_where_judging_fails_everything_stays_as_it_was(tmp_path: Path) -> None:
    config, folder = copy_of_study(tmp_path), tmp_path / "runs" / "tiny"
    (folder / "table.csv").write_text("of an earlier verdict")
    before = {path: path.read_bytes() for path in folder.iterdir() if path.is_file()}
    with pytest.raises(UserError, match=r"claim.headline_sets: nowhere was not evaluated"):
        main(["--config", str(config), "--judge_only", "true", "--claim.headline_sets", "[nowhere]"])
    assert {path: path.read_bytes() for path in folder.iterdir() if path.is_file()} == before


def test_a_study_that_is_not_there_cannot_be_judged(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"runs/tiny: there is no such study to be judged"):
        main(["--config", str(study_config(tmp_path)), "--judge_only", "true"])
    assert not (tmp_path / "runs").exists()
