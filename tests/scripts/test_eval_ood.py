"""``scripts/eval_ood.py`` as a user runs it: once as a process of its own, the rest through the function it calls."""

import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
import yaml
from limits import files_up_to
from PIL import Image
from refusal import refusal, tree
from tiny_runs import OOD, SIZE, TEST, VALIDATION, checkpoint, copy_of_run, evaluation_arguments, write_set

from bnood.evaluation.cli import main

ROOT = Path(__file__).parents[2]
TABLES = {
    *("scores.parquet", "table.csv", "units.parquet", "draws.parquet", "layers.csv"),
    *("evaluation.json", "report.html"),
}
# Enough for what is asked of the command line; the conditions are tested beside their code.
QUICK = ("--statistics", "running,batch:16,batch:16@0.5", "--ood", "marks", "--shuffles", "1")


def copies(folder: Path, *norms: str) -> list[Path]:
    return [copy_of_run(folder / norm, norm) for norm in norms]


def written(run: Path) -> set[str]:
    """The files of an evaluation."""
    return {name for name, content in tree(run / "ood").items() if content is not None}


def evaluate(*arguments: str) -> list[pd.DataFrame]:
    """Evaluate, and read the tables back."""
    folders = main(arguments_of(*arguments))
    return [pd.read_csv(folder / "table.csv", keep_default_na=False) for folder in folders]


def arguments_of(*more: str) -> list[str]:
    """Few images; runs that a test names lie anywhere below the root, and are written into."""
    return evaluation_arguments("--runs", "/", *more)


def accuracy_rows(table: pd.DataFrame) -> pd.DataFrame:
    return table[(table["metric"] == "accuracy") & (table["statistics"] == "running")]


def test_the_script_evaluates_the_newest_run(tmp_path: Path) -> None:
    """All conditions of the newer of two runs; what is printed, and what is written."""
    older, newer = copies(tmp_path / "runs", "ln", "bn")
    for run, time in ((older, 1_000), (newer, 2_000)):
        os.utime(run / "checkpoints" / "last.ckpt", (time, time))
    before = tree(tmp_path)
    ran = subprocess.run(
        [sys.executable, str(ROOT / "scripts" / "eval_ood.py"), *evaluation_arguments()],
        cwd=tmp_path,
        capture_output=True,
        text=True,
    )
    assert ran.returncode == 0, ran.stderr
    assert ran.stderr == ""
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
    assert set(table["statistics"]) == {
        *("running", "batch:16", "batch:16@0.5"),
        *("recalibrated:id", "recalibrated:target", "recalibrated:mixture@0.5"),
    }
    scores = pd.read_parquet(newer / "ood" / "scores.parquet")
    running = scores[scores["statistics"] == "running"]
    assert running.groupby("dataset", observed=True).size().to_dict() == {
        "tiny": 60,  # --id_count
        "marks": OOD // 2,
        "grounds": OOD // 2,
    }


def test_two_runs_share_a_table_and_a_net_without_statistics_says_once_that_it_has_none(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    batchnorm, layernorm = copies(tmp_path, "bn", "ln")
    tables = evaluate("--run", f"{batchnorm},{layernorm}", *QUICK)
    printed = capsys.readouterr().out
    assert printed.count("bn, ln: tiny (test) against OOD") == 1
    skipped = [line for line in printed.splitlines() if "keeps no statistics" in line]
    assert skipped == [
        "note: ln: norm ln keeps no statistics: only running is evaluated, batch:16 and batch:16@0.5 are skipped"
    ]
    assert [f"report: {run / 'ood' / 'report.html'}" in printed.splitlines() for run in (batchnorm, layernorm)] == [
        *(True, True)
    ]
    assert [set(table["run"]) for table in tables] == [{"bn"}, {"ln"}]
    assert set(tables[1]["statistics"]) == {"running"}
    assert "batch:16" in set(tables[0]["statistics"])
    assert all(written(run) >= TABLES - {"layers.csv"} for run in (batchnorm, layernorm))


@pytest.mark.parametrize("flag", ["--id-split", "--id_split"])
def test_the_held_out_images_can_be_scored(flag: str, tmp_path: Path) -> None:
    (run,) = copies(tmp_path, "ln")
    everything = ("--id_count", str(TEST), "--held-out-images", "0", "--detectors", "msp")
    rows = accuracy_rows(evaluate("--runs", str(tmp_path), flag, "val", *QUICK, *everything)[0])
    assert rows["n_id"].tolist() == [VALIDATION]  # and not the 120 of the test images
    summary = yaml.safe_load((run / "summary.json").read_text())
    assert rows["value"].item() == pytest.approx(summary["accuracy"], abs=1e-5)


def test_a_second_evaluation_takes_the_place_of_the_first(tmp_path: Path) -> None:
    (run,) = copies(tmp_path, "ln")
    evaluate("--run", str(run), *QUICK)
    first = written(run)
    table = evaluate("--run", str(run), *QUICK[:2], "--ood", "grounds")[0]
    assert set(table["dataset"]) == {"tiny", "grounds"}
    assert written(run) == first


OPTIONS: list[tuple[list[str], str]] = [
    (["--statistcs", "batch"], "there is no option --statistcs (did you mean --statistics?)"),
    (["--statis", "batch"], "there is no option --statis (did you mean --statistics?)"),
    (["--held_out_images", "-1"], "held_out_images is -1"),
    (["batch"], "'batch' is not expected here"),
    (["--statistics", "batch,runing"], "statistics runing: choose from running, batch"),
    (["--statistics", "batch:1"], "batch:1: batch statistics need at least 2 images in a batch"),
    (["--statistics", "batch:128@1.5"], "the OOD fraction has to lie between 0 and 1"),
    (["--detectors", "msp,knm"], "unknown detector 'knm'; did you mean"),
    (["--resamples", "0"], "resamples is 0: an interval needs at least 2"),
    (["--resamples", "many"], "resamples is 'many'; expected a whole number"),
    (["--seed", "-1"], "seed is -1; expected a whole number from 0"),
    (["--id_split", "train"], "id_split is 'train'; expected test or val"),
    (["--ood", "nowhere"], "'nowhere' is no known set"),
    (["--ood", ","], "',' names nothing"),
    (["--ood", "tiny"], "tiny: a set of the name 'tiny' is already being evaluated"),
    (["--shifts", "fog-3"], "'fog-3' is no known set"),
    (["--run", "none"], "none: no such run folder"),
    (["--config", "none.yaml"], "none.yaml: no such config file"),
    (["--train", "marks"], "--train is for a network that is given: add --model or --id"),
    (["--id", "marks"], "give --ood"),
    (["--id", "marks", "--ood", "grounds", "--model", "torchvision:resnet18"], "--run and --model name two networks"),
]


@pytest.mark.parametrize(("arguments", "words"), OPTIONS, ids=[" ".join(arguments) for arguments, _ in OPTIONS])
def test_wrong_options_are_one_line_and_leave_nothing(
    arguments: list[str], words: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (run,) = copies(tmp_path, "bn")
    before = tree(tmp_path)
    assert words in refusal(main, arguments_of("--run", str(run), *arguments), capsys)
    assert tree(tmp_path) == before


def one_npz(folder: Path) -> Path:
    return write_set(folder / "lonely.npz", np.zeros((1, SIZE, SIZE, 3), np.uint8))


def empty_npz(folder: Path) -> Path:
    return write_set(folder / "empty.npz", np.zeros((0, SIZE, SIZE, 3), np.uint8))


def one_picture(folder: Path) -> Path:
    (folder / "lonely").mkdir()
    Image.new("RGB", (SIZE, SIZE)).save(folder / "lonely" / "a.png")
    return folder / "lonely"


def empty_folder(folder: Path) -> Path:
    (folder / "empty").mkdir()
    return folder / "empty"


def truncated_npz(folder: Path) -> Path:
    file = write_set(folder / "short.npz", np.zeros((9, SIZE, SIZE, 3), np.uint8))
    file.write_bytes(file.read_bytes()[:-30])
    return file


def larger_npz(folder: Path) -> Path:
    return write_set(folder / "large.npz", np.zeros((9, 2 * SIZE, 2 * SIZE, 3), np.uint8))


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (one_npz, "lonely: it has 1 image(s); expected at least 2"),
        (one_picture, "lonely: it has 1 image(s); expected at least 2"),
        (empty_npz, "empty: there are no images in it; expected at least one"),
        (empty_folder, "empty: there are no images"),
        (truncated_npz, "short.npz: it is cut short or not an .npz archive"),
        (larger_npz, "large.npz: images are 32 x 32 pixels; expected 16 x 16"),
    ],
)
def test_sets_that_cannot_be_scored_are_named(
    make: Callable[[Path], Path], words: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (run,) = copies(tmp_path, "bn")
    place = make(tmp_path)
    before = tree(tmp_path)
    assert words in refusal(main, arguments_of("--run", str(run), "--ood", f"marks,{place}"), capsys)
    assert tree(tmp_path) == before


def no_checkpoint(run: Path) -> None:
    shutil.rmtree(run / "checkpoints")


def truncated(run: Path) -> None:
    last = run / "checkpoints" / "last.ckpt"
    last.write_bytes(last.read_bytes()[:-100])


def not_a_number(run: Path) -> None:
    content = checkpoint(run)
    content["state_dict"]["network.head.weight"][0, 0] = float("nan")
    torch.save(content, run / "checkpoints" / "last.ckpt")


def other_setting(key: str, value: object) -> Callable[[Path], None]:
    def change(run: Path) -> None:
        config = yaml.safe_load((run / "config.yaml").read_text())
        config["model"][key] = value
        (run / "config.yaml").write_text(yaml.safe_dump(config))

    return change


@pytest.mark.parametrize(
    ("spoil", "words"),
    [
        (no_checkpoint, "last.ckpt is missing: the run has not finished its first epoch"),
        (truncated, "last.ckpt is not a readable checkpoint (truncated or of another program)"),
        (not_a_number, "bn gives NaN or infinite values on the first 8 images"),
        (other_setting("norm", "gn"), "holds a network with norm 'bn', but the config says 'gn'"),
        (other_setting("architecture", "wide_resnet"), "architecture 'resnet', but the config says 'wide_resnet'"),
    ],
)
def test_a_spoilt_run_is_one_line_and_nothing_is_written(
    spoil: Callable[[Path], None], words: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    good, bad = copies(tmp_path, "ln", "bn")
    spoil(bad)
    before = tree(tmp_path)
    # The defect of a run shows before the good one is evaluated, unless it takes a forward pass to see it.
    runs = str(bad) if spoil is not_a_number else f"{good},{bad}"
    line = refusal(main, arguments_of("--run", runs, *QUICK), capsys)
    assert words in line and (spoil is not not_a_number or "nan" in line.lower())
    assert tree(tmp_path) == before


def test_a_network_that_lacks_what_is_asked_for_costs_the_others_nothing(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    runs = ",".join(str(run) for run in copies(tmp_path, "bn", "ln"))
    before = tree(tmp_path)
    line = refusal(main, arguments_of("--run", runs, *QUICK, "--statistics", "batch"), capsys)
    assert "norm ln keeps no statistics, so that there is nothing to evaluate under batch; expected running" in line
    assert tree(tmp_path) == before


def test_no_run_at_all(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    line = refusal(main, arguments_of("--runs", str(tmp_path)), capsys)
    assert f"no run with a checkpoint in {tmp_path}/: train one with scripts/train.py" in line


def test_a_file_where_the_output_should_be(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (run,) = copies(tmp_path, "ln")
    (run / "ood").write_text("mine")
    before = tree(tmp_path)
    line = refusal(main, arguments_of("--run", str(run), *QUICK), capsys)
    assert f"{run / 'ood'}: the evaluation cannot be written there (File exists)" in line
    assert tree(tmp_path) == before


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
    """Neither the training images nor their data root are needed; without ID images there are scores alone."""
    (run,) = copies(tmp_path / "shipped", "bn")
    before = tree(run)
    rng = np.random.default_rng(0)
    for name in ("mine", "theirs"):
        write_set(tmp_path / f"{name}.npz", rng.integers(0, 256, (40, SIZE, SIZE, 3), dtype=np.uint8))
    monkeypatch.chdir(tmp_path)
    common = [
        "--run",
        str(run),
        "--ood",
        "theirs.npz",
        "--statistics",
        "running,recalibrated:target",
        "--resamples",
        "20",
    ]
    (folder,) = main([*common, "--id", "mine.npz"])
    assert folder == Path("runs", "bn-eval") and "bn: mine against OOD" in capsys.readouterr().out
    table = pd.read_csv(folder / "table.csv", keep_default_na=False)
    assert (table["metric"] == "auroc").sum() == 2 * 3 and not (table["metric"] == "accuracy").any()
    (folder,) = main([*common[:4], "--id", "none", "--out", "alone", "--resamples", "20", "--statistics", "running"])
    assert folder == Path("alone")
    assert not (pd.read_csv(folder / "table.csv")["metric"] == "auroc").any()
    assert set(pd.read_parquet(folder / "scores.parquet")["dataset"]) == {"theirs"}
    assert tree(run) == before


def test_a_run_outside_of_runs_is_never_written_into(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (run,) = copies(tmp_path / "shipped", "ln")
    before = tree(run)
    monkeypatch.chdir(tmp_path)
    assert main(evaluation_arguments("--run", str(run), *QUICK)) == [Path("runs", "ln-eval")]
    assert tree(run) == before


def test_help_needs_no_training_library() -> None:
    code = (
        "import sys; from bnood.evaluation.cli import build_parser; build_parser().format_help();"
        "print([m for m in ('lightning', 'wandb', 'matplotlib', 'pandas', 'torchvision') if m in sys.modules])"
    )
    ran = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert (ran.returncode, ran.stdout.strip()) == (0, "[]"), ran.stderr
