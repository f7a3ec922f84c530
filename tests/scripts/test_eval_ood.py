"""``scripts/eval_ood.py`` as a user runs it: once as a process of its own, the rest through the function it calls."""

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import yaml
from eval_ood import main
from refusal import files_up_to, refusal, tree
from tiny_runs import OOD, SIZE, TEST, VALIDATION, copy_of_run, evaluation_arguments, write_set

ROOT = Path(__file__).parents[2]
TABLES = {"scores.parquet", "table.csv", "units.parquet", "draws.parquet", "layers.csv", "evaluation.json",
          "report.html"}  # fmt: skip
# Enough for what is asked of the command line; the conditions are tested beside their code.
QUICK = ("--statistics", "running,batch:16,batch:16@0.5", "--ood", "marks", "--shuffles", "1")


def copies(folder: Path, *norms: str) -> list[Path]:
    return [copy_of_run(folder / norm, norm) for norm in norms]


def written(run: Path) -> set[str]:
    """The files of an evaluation."""
    return {name for name, content in tree(run / "ood").items() if content is not None}


def evaluate(*arguments: str) -> list[pd.DataFrame]:
    """Evaluate, and read the tables back."""
    return [pd.read_csv(each / "table.csv", keep_default_na=False) for each in main(arguments_of(*arguments))]


def arguments_of(*more: str) -> list[str]:
    """Few images; runs that a test names lie anywhere below the root, and are written into."""
    return evaluation_arguments("--runs", "/", *more)


def test_the_script_evaluates_the_newest_run(tmp_path: Path) -> None:
    """All conditions of the newer of two runs; what is printed, and what is written."""
    older, newer = copies(tmp_path / "runs", "ln", "bn")
    for run, time in ((older, 1_000), (newer, 2_000)):
        os.utime(run / "checkpoints" / "last.ckpt", (time, time))
    before = tree(tmp_path)
    command = [sys.executable, str(ROOT / "scripts" / "eval_ood.py"), *evaluation_arguments()]
    ran = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
    assert (ran.returncode, ran.stderr) == (0, "")
    for words in ("bn: tiny (test) against OOD", "marks", "grounds", "batch:16", "recalibrated:mixture@0.5"):
        assert words in ran.stdout
    assert ran.stdout.splitlines()[-1] == "report: runs/bn/ood/report.html"
    after = tree(tmp_path)
    assert {name for name in after.keys() - before.keys() if not name.startswith("runs/bn/ood")} == set()
    assert {name: after[name] for name in before} == before
    figures = {name for name in written(newer) if name.startswith("figures/") and name.endswith(".png")}
    assert figures and written(newer) == TABLES | figures

    table = pd.read_csv(newer / "ood" / "table.csv", keep_default_na=False)
    assert set(table["run"]) == {"bn"} and set(table["dataset"]) == {"tiny", "marks", "grounds"}
    recalibrated = {f"recalibrated:{source}" for source in ("id", "target", "mixture@0.5")}
    assert set(table["statistics"]) == {"running", "batch:16", "batch:16@0.5"} | recalibrated
    scores = pd.read_parquet(newer / "ood" / "scores.parquet")
    counts = scores[scores["statistics"] == "running"].groupby("dataset", observed=True).size().to_dict()
    assert counts == {"tiny": 60, "marks": OOD // 2, "grounds": OOD // 2}  # --id_count 60


def test_two_runs_share_a_table_and_a_net_without_statistics_says_once_that_it_has_none(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    batchnorm, layernorm = copies(tmp_path, "bn", "ln")
    tables = evaluate("--run", f"{batchnorm},{layernorm}", *QUICK)
    printed = capsys.readouterr().out
    assert printed.count("bn, ln: tiny (test) against OOD") == 1
    (note,) = [line for line in printed.splitlines() if "keeps no statistics" in line]
    assert note == "note: ln: norm ln keeps no statistics, not evaluated: batch:16, batch:16@0.5"
    assert all(f"report: {run / 'ood' / 'report.html'}\n" in printed for run in (batchnorm, layernorm))
    assert [set(table["run"]) for table in tables] == [{"bn"}, {"ln"}]
    assert set(tables[1]["statistics"]) == {"running"}
    assert "batch:16" in set(tables[0]["statistics"])
    assert all(written(run) >= TABLES - {"layers.csv"} for run in (batchnorm, layernorm))


def test_the_held_out_images_can_be_scored(tmp_path: Path) -> None:
    (run,) = copies(tmp_path, "ln")
    everything = ("--id_count", str(TEST), "--held-out-images", "0", "--detectors", "msp")
    table = evaluate("--runs", str(tmp_path), "--id-split", "val", *QUICK, *everything)[0]
    rows = table[(table["metric"] == "accuracy") & (table["statistics"] == "running")]
    assert rows["n_id"].tolist() == [VALIDATION]  # and not the 120 of the test images
    summary = yaml.safe_load((run / "summary.json").read_text())
    assert rows["value"].item() == pytest.approx(summary["accuracy"], abs=1e-5)


def test_a_run_that_cannot_be_evaluated_costs_no_other(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    good, bad = copies(tmp_path, "bn", "ln")
    runs, before = f"{good},{bad}", tree(tmp_path)
    line = refusal(main, arguments_of("--run", runs, *QUICK, "--statistics", "batch"), capsys)
    assert "norm ln keeps no statistics, so that there is nothing to evaluate under batch; expected running" in line
    assert tree(tmp_path) == before
    (bad / "checkpoints" / "last.ckpt").unlink()
    assert "last.ckpt is missing" in refusal(main, arguments_of("--run", runs, *QUICK), capsys)
    assert tree(good) == {name.removeprefix("bn/"): each for name, each in before.items() if name.startswith("bn/")}


def test_a_disk_that_fills_up_leaves_the_earlier_evaluation(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A limit on the size of files, which some files exceed, stands for the full disk."""
    (run,) = copies(tmp_path, "ln")
    (run / "ood" / "figures").mkdir(parents=True)
    (run / "ood" / "table.csv").write_text("of an earlier evaluation")
    before = tree(tmp_path)
    arguments = arguments_of("--run", str(run), *QUICK)
    with files_up_to(90_000):
        line = refusal(main, arguments, capsys)
    assert "File too large" in line and str(run / "ood") in line
    assert tree(tmp_path) == before


def test_a_run_is_scored_on_images_of_the_users_own_and_its_folder_is_left_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Without training images and their data root; and without ID images, where what needs them is skipped."""
    (run,) = copies(tmp_path / "shipped", "bn")
    before = tree(run)
    rng = np.random.default_rng(0)
    for name in ("mine", "theirs"):
        write_set(tmp_path / f"{name}.npz", rng.integers(0, 256, (40, SIZE, SIZE, 3), dtype=np.uint8))
    monkeypatch.chdir(tmp_path)
    common = ["--run", str(run), "--ood", "theirs.npz", "--resamples", "20"]
    (folder,) = main([*common, "--statistics", "running,recalibrated:target", "--id", "mine.npz"])
    assert folder == Path("runs", "bn-eval") and "bn: mine against OOD" in capsys.readouterr().out
    table = pd.read_csv(folder / "table.csv", keep_default_na=False)
    assert (table["metric"] == "auroc").sum() == 2 * 3 and not (table["metric"] == "accuracy").any()
    asked = ("--statistics", "batch:8,batch:8@0.5,recalibrated,recalibrated:mixture@1")
    lacking = "recalibrated:id, recalibrated:mixture@0.5"
    for some, skipped in (((), f"batch:128@0.1, batch:128@0.5, {lacking}"), (asked, f"batch:8@0.5, {lacking}")):
        (folder,) = main([*common, "--id", "none", "--out", "[red]alone", *some])
        printed = " ".join(capsys.readouterr().out.split())
        assert folder == Path("[red]alone") and printed.count(f"not evaluated, for lack of ID images: {skipped}") == 1
        assert "AUROC" not in printed and printed.endswith(" report: [red]alone/report.html")
    table = pd.read_csv(folder / "table.csv")
    assert set(table["statistics"]) == {"running", "batch:8", "recalibrated:target", "recalibrated:mixture@1"}
    assert not (table["metric"] == "auroc").any()
    assert set(pd.read_parquet(folder / "scores.parquet")["dataset"]) == {"theirs"}
    assert main(evaluation_arguments("--run", str(run), *QUICK)) == [Path("runs", "bn-eval")]
    assert tree(run) == before


def test_help_needs_no_training_library() -> None:
    code = (
        "import sys; from eval_ood import build_parser; build_parser().format_help();"
        "print([m for m in ('lightning', 'wandb', 'matplotlib', 'pandas', 'torchvision') if m in sys.modules])"
    )
    path = os.environ | {"PYTHONPATH": ":".join(sys.path)}
    ran = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=path)
    assert (ran.returncode, ran.stdout.strip()) == (0, "[]"), ran.stderr
