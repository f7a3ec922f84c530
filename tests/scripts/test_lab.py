"""``scripts/lab.py`` by the function it calls: grid, trainings, tables; finished cells are left alone."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import yaml
from refusal import refusal
from tiny_runs import SIZE, TRAIN, VALIDATION, data_root

from bnood.lab.cli import main
from bnood.lab.grid import Grid, LabOptions, cells, draw_images, drawn_images, training_arguments, training_settings
from bnood.lab.preflight import check_images
from bnood.training.run_folder import load_run

KEYS = ["network", "architecture", "activation", "norm", "norm_position", "learning_rate", "seed", "step", "epoch"]
EPOCHS, STEPS = 2, TRAIN // 64


def grid(**changes: Any) -> dict[str, Any]:
    small = {
        "architecture": "mlp",
        "depth": 3,
        "width": 8,
        "learning_rate": 0.05,
        "record_every": 3,
        "probe_images": 32,
    }
    return {**small, "settings": {"model.groups": 4}, **changes}


def config(folder: Path, **changes: Any) -> list[str]:
    """The command line of a lab of two networks, one seed, on small images."""
    content = {
        "name": "mini",
        "runs": str(folder / "runs"),
        "root": str(data_root()),
        "seeds": [0],
        "settings": {
            **{"data.in_distribution": "tiny", "data.image_size": SIZE, "data.validation": VALIDATION},
            **{"data.train_count": TRAIN, "data.batch_size": 64, "trainer.max_epochs": EPOCHS},
        },
        "grids": [grid(activations=["sigmoid"], norms=["none", "bn"])],
        **changes,
    }
    file = folder / "lab.yaml"
    file.write_text(yaml.safe_dump(content))
    return ["--config", str(file), "--no-wandb"]


def test_the_grid_has_every_network_once_per_seed() -> None:
    options = LabOptions(
        "a",
        [
            Grid(**grid(norm_positions=["before", "after"], activations=["tanh"], norms=["none", "ln"])),
            Grid(**grid(architecture="plain", activations=["relu"], norms=["bn"], suffix="high")),
        ],
        seeds=[3, 5],
    )
    names = [cell.name for cell in cells(options)]
    networks = ["mlp-tanh-none", "mlp-tanh-ln", "mlp-tanh-ln-after", "plain-relu-bn-high"]
    assert names == [f"{network}-s{seed}" for seed in (3, 5) for network in networks]
    settings = training_settings(options, cells(options)[2])
    assert (settings["model.norm"], settings["model.norm_position"], settings["seed_everything"]) == ("ln", "after", 3)
    assert (settings["model.groups"], settings["model.learning_rate"]) == (4, 0.05)
    arguments = training_arguments(options, cells(options)[0])
    assert arguments[arguments.index("--wandb.group") + 1] == "a"
    assert arguments[arguments.index("--wandb.mode") + 1] == "offline"


def test_a_lab_writes_its_tables_and_does_not_train_twice(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = main(config(tmp_path))
    printed = capsys.readouterr().out
    assert "2/2 mlp-sigmoid-bn-s0" in printed and "recording took" in printed
    assert printed.splitlines()[-1] == f"report: {folder / 'lab_report.html'}"

    quantities = pd.read_parquet(folder / "lab.parquet")
    assert list(quantities.columns) == [*KEYS, "layer", "layers", "quantity", "value"]
    assert set(quantities["network"]) == {"mlp-sigmoid-none", "mlp-sigmoid-bn"}
    assert sorted(set(quantities["step"])) == [0, 3, 6, EPOCHS * STEPS]
    assert {"gradient_norm", "update_ratio", "preactivation_mean", "preactivation_std", "saturated_share"} < set(
        quantities["quantity"]
    )
    histograms = pd.read_parquet(folder / "histograms.parquet")
    assert list(histograms.columns) == [*KEYS, "layer", "layers", "mode", "bin_low", "bin_high", "share"]
    sums = histograms.groupby(["network", "step", "layer", "mode"])["share"].sum()
    np.testing.assert_allclose(sums, 1)
    accuracy = pd.read_csv(folder / "accuracy.csv")
    assert list(accuracy.columns) == [*KEYS, "layers", "train_accuracy", "validation_accuracy"]
    for norm, rows in accuracy.groupby("norm"):
        assert rows["epoch"].tolist() == [1, 2] and rows["step"].tolist() == [STEPS, 2 * STEPS]
        run = load_run(folder / "cells" / f"mlp-sigmoid-{norm}-s0")
        assert rows["validation_accuracy"].iloc[-1] == pytest.approx(run.summary["accuracy"])
    record = json.loads((folder / "lab.json").read_text())
    assert record["recording_share"] == pytest.approx(record["seconds_recording"] / record["seconds_training"])
    assert [cell["ended"] for cell in record["cells"]] == ["trained", "trained"]
    checks = json.loads((folder / "checks.json").read_text())
    assert [check["check"] for check in checks["checks"]] == list("abcdef")
    assert {check["verdict"] for check in checks["checks"]} == {"inconclusive"}  # one seed
    assert set(pd.read_csv(folder / "checks.csv")["check"]) == set("abcdef")

    checkpoints = {path: path.stat().st_mtime_ns for path in folder.rglob("last.ckpt")}
    (folder / "cells" / "mlp-sigmoid-bn-s0" / "cell.json").unlink()  # as if killed at its end
    main(config(tmp_path))
    again = {path.parent.parent.name for path, time in checkpoints.items() if path.stat().st_mtime_ns != time}
    assert again == {"mlp-sigmoid-bn-s0"}
    pd.testing.assert_frame_equal(pd.read_parquet(folder / "lab.parquet"), quantities)

    line = refusal(main, config(tmp_path, grids=[grid(activations=["sigmoid"], norms=["bn"], width=12)]), capsys)
    assert "mlp-sigmoid-bn-s0 was trained with model.width 8, not 12: choose another name" in line


def test_a_training_that_diverges_is_a_result(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    calm = grid(activations=["relu"], norms=["none"])
    grids = [calm, {**calm, "learning_rate": 1e4, "suffix": "high"}]
    folder = main(config(tmp_path, grids=grids))
    assert "note: mlp-relu-none-high, seed 0: diverged: the loss became" in " ".join(capsys.readouterr().out.split())
    quantities = pd.read_parquet(folder / "lab.parquet").query("network == 'mlp-relu-none-high'")
    assert 0 in set(quantities["step"]) and EPOCHS * STEPS not in set(quantities["step"])
    (lost,) = [c for c in json.loads((folder / "checks.json").read_text())["checks"] if c["check"] == "e"]
    assert "no seed has a figure" in lost["sentence"]
    main(config(tmp_path, grids=grids))
    assert "2/2" not in capsys.readouterr().out  # it is not tried again


def test_nothing_but_diverged_networks_is_said_so(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    wild = [grid(activations=["relu"], norms=["none"], learning_rate=1e4)]
    line = refusal(main, config(tmp_path, grids=wild), capsys)
    assert "mini: every network diverged in its first epoch, so there is nothing to compare; expected grids" in line
    assert (tmp_path / "runs" / "mini" / "lab.parquet").is_file()  # what was recorded until then is kept


def test_built_in_images_are_drawn_once_and_are_the_same(tmp_path: Path) -> None:
    settings = {"data.in_distribution": "shapes", "data.train_count": 30, "data.validation": 20}
    options = LabOptions("a", [Grid(**grid())], settings=settings, runs=tmp_path)
    draw_images(options)
    file = drawn_images(options, settings)
    assert file is not None and file.stem == "shapes"
    with np.load(file) as content:
        assert content["images"].shape == (50, 32, 32, 3) and len(content["labels"]) == 50
    before = file.stat().st_mtime_ns
    draw_images(options)
    assert file.stat().st_mtime_ns == before
    assert drawn_images(options, {"data.in_distribution": "cifar10"}) is None
    assert str(file) in training_arguments(options, cells(options)[0])


MISTAKES: list[tuple[dict[str, Any], str]] = [
    ({"grids": []}, "grids is empty: a lab needs at least one grid of networks"),
    ({"grids": [grid(norms=[])]}, "the grid of mlp: norms is empty; expected one or more"),
    ({"grids": [grid(suffix="../x")]}, "the grid of mlp, ../x: suffix is '../x': it ends the names of folders"),
    ({"settings": {"model.compile": True}}, "lab's: model.compile is true, but a compiled network has no layers"),
    ({"settings": {"data.train_count": 0}}, "with its settings and the lab's: data.train_count is 0; expected a whole"),
    ({"name": "a/b"}, "name is 'a/b': it names a folder"),
    ({"seeds": [1, 1]}, "seeds is [1, 1]: give one or more seeds, each once"),
    ({"settings": {"model.norm": "bn"}}, "settings.model.norm: the lab sets model.norm itself"),
    ({"grids": [grid(), grid(learning_rate=1.0)]}, "mlp-sigmoid-none-s0 is in two of them"),
    ({"grids": [grid(activations=["swish"])]}, "lab.yaml: grids[0].activations is 'swish'; expected sigmoid or relu"),
    ({"grids": [grid(), grid(norms="bn")]}, "lab.yaml: grids[1].norms is 'bn'; expected a list such as [bn]"),
    ({"grids": [grid(widht=8)]}, "lab.yaml: there is no key grids[0].widht (did you mean grids[0].width?)"),
    ({"grids": [grid(groups=8)]}, "no key grids[0].groups (see --help); keys of train.py, such as model.groups, stand"),
    ({"grids": ["mlp"]}, "lab.yaml: grids[0] is 'mlp'; expected a mapping such as"),
    (
        {"grids": [grid(settings={"model.warmpu": 0.1})]},
        "grids[0] (mlp-sigmoid-none), with its settings and the lab's: there is no option --model.warmpu (did you mean",
    ),
    (
        {"grids": [grid(norms=["none"]), grid(norms=["bn", "gn"], width=6)]},
        "grids[1] (mlp-sigmoid-gn), with its settings and the lab's: norm 'gn' needs a number of groups that divides 6",
    ),
    ({"grids": [grid(probe_images=300)]}, f"grids[0]: probe_images is 300, but a training has {TRAIN} images"),
    ({"root": "/nowhere", "settings": {"data.in_distribution": "cifar10"}}, "or say with --root or BNOOD_DATA where"),
    ({"grids": [grid(), grid(suffix="high", depth=0)]}, "the grid of mlp, high: depth is 0; expected a whole number"),
    ({"grids": [grid(width=-8)]}, "the grid of mlp: width is -8; expected a whole number from 1 up"),
    ({"grids": [grid(record_every=0)]}, "the grid of mlp: record_every is 0; expected a whole number from 1 up"),
    ({"grids": [grid(probe_images=0)]}, "the grid of mlp: probe_images is 0; expected a whole number from 1 up"),
    ({"grids": [grid(learning_rate=-0.1)]}, "the grid of mlp: learning_rate is -0.1; expected a number above 0"),
    ({"checks": {"small": -1}}, "checks.small is -1"),
]


@pytest.mark.parametrize(("changes", "words"), MISTAKES, ids=[words for _, words in MISTAKES])
def test_mistakes_are_one_line(
    changes: dict[str, Any], words: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert words in refusal(main, config(tmp_path, **changes), capsys)
    assert not (tmp_path / "runs").exists()


def test_images_that_the_lab_draws_need_not_be_there(tmp_path: Path) -> None:
    check_images(LabOptions("a", [Grid(**grid())], runs=tmp_path), drawn=False)
    assert not list(tmp_path.iterdir())


def test_too_few_drawn_images_are_told_before_the_first_training(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    few = {"data.in_distribution": "shapes", "data.train_count": 70, "data.validation": 20, "data.batch_size": 64}
    line = refusal(main, config(tmp_path, settings=few, grids=[grid(), grid(suffix="b", probe_images=80)]), capsys)
    assert "grids[1]: probe_images is 80, but a training has 70 images" in line
    assert not (tmp_path / "runs" / "mini" / "cells").exists()


def test_what_is_missing_is_downloaded_on_request() -> None:
    options = LabOptions("a", [Grid(**grid())], settings={"data.in_distribution": "mnist"}, download=True)
    arguments = training_arguments(options, cells(options)[0])
    assert arguments[arguments.index("--data.download") + 1] == "true"
