"""A study's grid: what is done and undone, goes on after a kill, is refused, and is the same however it runs."""

import csv
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from importlib.util import find_spec
from pathlib import Path

import pandas as pd
import pytest
import torch
import yaml
from tiny_runs import data_root, equal_weights, weights
from tiny_study import BN, LN, STOPPED, TRAINING, copy_of_study, options_of, studied, study_config, times

from bnood.errors import UserError
from bnood.evaluation.run_evaluation import asked, is_evaluated, remove_remains
from bnood.study.cells import keep_last_epoch, stopped_at, train_cell
from bnood.study.cli import main, sole_user
from bnood.study.grid import (
    cell_evaluation,
    check_same_training,
    expected_config,
    plain_options,
    stopped_cells,
    trained_cells,
    training_state,
)
from bnood.study.results import networks
from bnood.training.run_folder import load_run
from bnood.training.train import train

ROOT = Path(__file__).parents[2]
QUICK = {"norms": ["bn"], "overrides": {}, "evaluation": {"sets": {"id_count": 60}, "resamples": 20}}
QUICK["evaluation"] |= {"conditions": {"statistics": ["running"]}, "sweeps": {"enabled": False}}  # type: ignore[operator]


def test_a_study_trains_stops_evaluates_and_judges() -> None:
    folder = studied()
    table = pd.read_csv(folder / "table.csv", keep_default_na=False)
    assert set(table["network"]) == {"bn", "ln", "bn-at-ln"}
    assert set(table.loc[table["network"] == "bn-at-ln", "run"]) == {"bn-s0-at-ln"}
    stopped = set(table.loc[table["network"] == "bn-at-ln", "statistics"])
    assert {"running", "recalibrated:id", "recalibrated:target"} <= stopped and "batch" not in stopped
    assert "recalibrated:target" in set(table.loc[table["network"] == "bn", "statistics"])
    verdict = json.loads((folder / "verdict.json").read_text())
    assert [one["hypothesis"] for one in verdict["hypotheses"]] == ["H1", "H2", "H3", "H4", "H5"]
    assert {one["verdict"] for one in verdict["hypotheses"]} == {"inconclusive"}
    assert all("one seed" in one["sentence"] or "no seed" in one["sentence"] for one in verdict["hypotheses"])
    assert verdict["thresholds"]["headline_sets"] == ["marks", "grounds"] and verdict["study"] == "tiny"
    assert (folder / "report.html").stat().st_size > 10_000 and (folder / "verdict.csv").exists()
    sweeps = {"interventions.csv", "intervention_draws.parquet", "layer_distances.csv"}
    for run, has in (("bn-s0", sweeps), ("ln-s0", set()), ("bn-s0-at-ln", set())):
        written = {path.name for path in (folder / run / "ood").iterdir()}
        assert written & sweeps == has and {"table.csv", "draws.parquet", "evaluation.json"} <= written
        assert ("shift.csv" in written) == (run != "bn-s0-at-ln") == ("layers.parquet" in written)


def test_the_stopped_network_is_that_of_the_nearest_validation_accuracy() -> None:
    folder = studied()
    wanted = json.loads((folder / "ln-s0" / "summary.json").read_text())["accuracy"]
    with (folder / "bn-s0" / "metrics.csv").open() as file:
        rows = [row for row in csv.DictReader(file) if row["validation/accuracy"]]
    apart = [abs(float(row["validation/accuracy"]) - wanted) for row in rows]
    nearest = rows[apart.index(min(apart))]
    kept = folder / "bn-s0" / "checkpoints" / f"epoch-{int(nearest['epoch']):03d}.ckpt"
    expected, found = torch.load(kept, weights_only=True)["state_dict"], weights(folder / "bn-s0-at-ln")
    assert all(torch.equal(expected[key], found[key]) for key in expected)
    run = load_run(folder / "bn-s0-at-ln")
    assert run.summary["accuracy"] == pytest.approx(float(nearest["validation/accuracy"]))
    assert run.summary["stopped"]["partner"] == "ln-s0" and run.config["name"] == "bn-s0-at-ln"


def test_the_reports_say_how_a_stopped_network_came_about_and_what_was_left_out() -> None:
    folder = studied()
    epoch = json.loads((folder / "bn-s0-at-ln" / "summary.json").read_text())["stopped"]["epoch"]
    page = (folder / "bn-s0-at-ln" / "ood" / "report.html").read_text()
    assert f"stopped after epoch {epoch + 1} of bn-s0" in page
    assert "train.py" not in page and "scripts/study.py --config" in page
    assert "train.py" in (folder / "bn-s0" / "ood" / "report.html").read_text()
    note = "norm ln keeps no statistics: only running is evaluated"
    assert f"note: {note}" in (folder / "logs" / "ln-s0-evaluation.log").read_text()
    assert (folder / "report.html").read_text().count(note) == 1
    assert "(training.yaml)" in (folder / "report.html").read_text()  # which was given with its folder


def test_the_table_of_networks_has_what_training_measured() -> None:
    options = options_of(study_config(data_root() / "study"))
    rows = networks(options, [BN, LN, STOPPED]).set_index("run")
    with (studied() / "bn-s0" / "metrics.csv").open() as file:
        trained = [float(row["train/accuracy"]) for row in csv.DictReader(file) if row["train/accuracy"]]
    assert rows.loc["bn-s0", "train_accuracy"] == pytest.approx(trained[-1])
    stopped = int(rows.loc["bn-s0-at-ln", "epochs"])
    assert rows.loc["bn-s0-at-ln", "train_accuracy"] == pytest.approx(trained[stopped - 1])
    assert rows["epochs"].tolist() == [2, 1, stopped]


def stop_choice(folder: Path, accuracies: list[float | None], wanted: float | None, kept: list[int]) -> dict:
    """What is chosen from a made-up log."""
    (folder / "runs" / "tiny" / "bn-s0" / "checkpoints").mkdir(parents=True)
    (folder / "runs" / "tiny" / "ln-s0").mkdir()
    lines = ["epoch,step,validation/accuracy", "0,5,"]
    lines += [f"{epoch},9,{'' if value is None else value}" for epoch, value in enumerate(accuracies)]
    (folder / "runs" / "tiny" / "bn-s0" / "metrics.csv").write_text("\n".join(lines) + "\n")
    (folder / "runs" / "tiny" / "ln-s0" / "summary.json").write_text(json.dumps({"accuracy": wanted}))
    for epoch in kept:
        (folder / "runs" / "tiny" / "bn-s0" / "checkpoints" / f"epoch-{epoch:03d}.ckpt").touch()
    return stopped_at(options_of(study_config(folder)), STOPPED)


def test_of_equally_near_epochs_the_first_is_taken_and_only_kept_ones_count(tmp_path: Path) -> None:
    found = stop_choice(tmp_path / "a", [0.3, 0.5, 0.75, 0.5], 0.625, [0, 1, 2, 3])
    assert (found["epoch"], found["accuracy"]) == (1, 0.5)
    assert stop_choice(tmp_path / "b", [0.3, 0.5, 0.8, 0.6], 0.6, [0, 1])["epoch"] == 1
    assert stop_choice(tmp_path / "c", [0.3, None, 0.8], 0.6, [0, 1, 2])["epoch"] == 2
    with pytest.raises(UserError, match=r"bn-s0 kept no epochs .* --keep_epochs true"):
        stop_choice(tmp_path / "d", [0.3, 0.5], 0.6, [])
    with pytest.raises(UserError, match=r"ln-s0/summary.json has no accuracy"):
        stop_choice(tmp_path / "e", [0.3, 0.5], None, [0, 1])


def test_a_second_call_does_nothing_twice_and_a_lost_part_is_made_again(tmp_path: Path) -> None:
    config = copy_of_study(tmp_path)
    folder = tmp_path / "runs" / "tiny"
    shutil.rmtree(folder / "ln-s0" / "ood")
    (folder / ".lock").unlink()
    (folder / "ln-s0" / ".ood.999999999.partial").mkdir()  # as a killed process leaves it
    before = times(folder, "*-s0*/**/*")
    main(["--config", str(config)])
    after = times(folder, "*-s0*/**/*")
    new = {name for name in after if after[name] != before.get(name)}
    assert new and all(name.startswith("ln-s0/ood/") for name in new) and before.keys() <= after.keys()
    assert not (folder / "ln-s0" / ".ood.999999999.partial").exists()
    assert (folder / "ln-s0" / "ood" / "table.csv").read_bytes() == (
        studied() / "ln-s0" / "ood" / "table.csv"
    ).read_bytes()


@pytest.mark.parametrize(
    "kind",
    [
        "processes",
        pytest.param("ray", marks=pytest.mark.skipif(find_spec("ray") is None, reason="ray is not installed")),
    ],
)
def test_weights_and_tables_are_the_same_however_the_cells_run(kind: str, tmp_path: Path) -> None:
    serial = studied()
    config = study_config(tmp_path, executor={"kind": kind, "workers": 2})
    other = main(["--config", str(config)])
    for run in ("bn-s0", "ln-s0", "bn-s0-at-ln"):
        assert equal_weights(serial / run, other / run)
    for name in ("table.csv", "verdict.csv"):
        assert (serial / name).read_bytes() == (other / name).read_bytes()
    assert (serial / "bn-s0/ood/interventions.csv").read_bytes() == (other / "bn-s0/ood/interventions.csv").read_bytes()


def run_and_kill(config: Path, ready) -> None:  # type: ignore[no-untyped-def]
    """Start the script and kill it without warning as soon as ``ready()``."""
    command = [sys.executable, str(ROOT / "scripts" / "study.py"), "--config", str(config)]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
    try:
        until = time.monotonic() + 300
        while not ready():
            assert time.monotonic() < until and process.poll() is None, process.communicate()[0].decode()
            time.sleep(0.01)
    finally:
        process.send_signal(signal.SIGKILL)
        process.wait()


def epochs_trained(folder: Path) -> list[int]:
    """The epochs of a training that were validated, in order."""
    if not (folder / "metrics.csv").exists():
        return []
    with (folder / "metrics.csv").open() as file:
        return [int(float(row["epoch"])) for row in csv.DictReader(file) if row.get("validation/accuracy")]


def test_a_study_goes_on_after_being_killed_in_training_and_in_evaluation(tmp_path: Path) -> None:
    training = TRAINING | {"trainer": {"max_epochs": 12, "precision": "32-true"}}
    config = study_config(tmp_path / "killed", training, **QUICK)
    run = tmp_path / "killed" / "runs" / "tiny" / "bn-s0"
    last = run / "checkpoints" / "last.ckpt"
    run_and_kill(config, lambda: last.exists() and len(epochs_trained(run)) >= 2)
    assert training_state(run, 12) == "half" and not (run / "summary.json").exists()
    done = torch.load(last, weights_only=True)["epoch"]
    run_and_kill(config, lambda: any(run.glob(".ood.*.partial")))
    assert (run / "summary.json").exists() and not (run / "ood").exists()
    trained = last.stat().st_mtime_ns
    main(["--config", str(config)])
    assert last.stat().st_mtime_ns == trained and (run / "ood" / "table.csv").exists()
    assert epochs_trained(run) == list(range(12)) and done < 11
    assert not list(run.glob(".ood.*"))
    whole = main(["--config", str(study_config(tmp_path / "whole", training, **QUICK))])
    assert equal_weights(run, whole / "bn-s0")
    assert (run / "ood/table.csv").read_bytes() == (whole / "bn-s0" / "ood/table.csv").read_bytes()


def test_a_training_that_only_lacks_its_summary_is_not_trained_again(tmp_path: Path) -> None:
    options = options_of(copy_of_study(tmp_path))
    folder = options.folder / "bn-s0"
    before = json.loads((folder / "summary.json").read_text())
    (folder / "summary.json").unlink()
    assert training_state(folder, 2) == "unsummarised"
    trained = (folder / "checkpoints" / "last.ckpt").stat().st_mtime_ns
    train_cell(options, BN)
    assert json.loads((folder / "summary.json").read_text()) == before | {"commit": None}
    assert (folder / "checkpoints" / "last.ckpt").stat().st_mtime_ns == trained


def test_an_epoch_that_a_kill_kept_from_being_kept_is_kept(tmp_path: Path) -> None:
    folder = options_of(copy_of_study(tmp_path)).folder / "bn-s0"
    kept = folder / "checkpoints" / "epoch-001.ckpt"
    expected = torch.load(kept, weights_only=True)
    kept.unlink()
    keep_last_epoch(folder)
    found = torch.load(kept, weights_only=True)
    assert all(torch.equal(found["state_dict"][key], value) for key, value in expected["state_dict"].items())
    assert "optimizer_states" not in found and found["epoch"] == 1


def test_the_expected_config_is_what_training_writes() -> None:
    options = options_of(study_config(data_root() / "study"))
    for cell, keep in ((BN, True), (LN, False)):
        expected = expected_config(options, cell)
        written = yaml.safe_load((studied() / cell.name / "config.yaml").read_text())
        assert {key: expected[key] for key in ("data", "model", "seed_everything")} == {
            key: written[key] for key in ("data", "model", "seed_everything")
        }
        for key in ("max_epochs", "precision", "num_sanity_val_steps", "accumulate_grad_batches"):
            assert expected["trainer"][key] == written["trainer"][key]
        assert written["keep_epochs"] == keep


def test_runs_trained_by_hand_are_taken_over(tmp_path: Path) -> None:
    """Another name, folder, log and progress bar are no other training; another learning rate is."""
    config = copy_of_study(tmp_path)
    options = options_of(config)
    folder = options.folder / "ln-s0"
    file = folder / "config.yaml"
    content = yaml.safe_load(file.read_text())
    content |= {"name": "cifar10-ln", "runs": "elsewhere", "no_wandb": False, "keep_epochs": True}
    content["trainer"] |= {"enable_progress_bar": None, "log_every_n_steps": 50}
    content["data"]["root"] = None
    file.write_text(yaml.safe_dump(content))
    expected = expected_config(options, LN)
    check_same_training(folder, expected)
    for section, key, value in (
        ("model", "learning_rate", 0.3),
        ("data", "train_count", 200),
        ("trainer", "max_epochs", 3),
        ("trainer", "precision", "bf16-mixed"),
    ):
        changed = json.loads(json.dumps(content))
        changed[section][key] = value
        file.write_text(yaml.safe_dump(changed))
        with pytest.raises(UserError) as error:
            main(["--config", str(config)])
        assert f"ln-s0 was trained with {section}.{key} {value}, but the study wants" in str(error.value)
    file.unlink()
    with pytest.raises(UserError, match=r"ln-s0/config.yaml is missing, so that nobody knows how .*last.ckpt"):
        main(["--config", str(config)])
    file.write_text(yaml.safe_dump(content | {"seed_everything": 3}))
    with pytest.raises(UserError, match="trained with seed_everything 3, but the study wants 0"):
        check_same_training(folder, expected)


def test_an_evaluation_is_done_if_its_options_and_its_checkpoint_are_the_same(tmp_path: Path) -> None:
    options = options_of(copy_of_study(tmp_path))
    folder, evaluation = options.folder / "ln-s0", cell_evaluation(options, LN)
    assert is_evaluated(folder, evaluation)
    evaluation.sets.root = Path("elsewhere")
    assert is_evaluated(folder, evaluation)
    evaluation.resamples = 60
    assert not is_evaluated(folder, evaluation) and asked(folder, evaluation)["resamples"] == 60
    evaluation.resamples = 50
    with (folder / "checkpoints" / "last.ckpt").open("ab") as file:
        file.write(b"0")
    assert not is_evaluated(folder, evaluation)


def test_a_folder_that_was_taken_away_is_put_back(tmp_path: Path) -> None:
    (tmp_path / ".ood.999999999.old").mkdir()
    (tmp_path / ".ood.999999999.old" / "table.csv").write_text("mine")
    (tmp_path / f".ood.{os.getppid()}.partial").mkdir()  # of a process that runs
    remove_remains(tmp_path / "ood")
    assert (tmp_path / "ood" / "table.csv").read_text() == "mine"
    assert (tmp_path / f".ood.{os.getppid()}.partial").exists()


def test_a_failing_cell_costs_no_other_and_no_verdict_is_written(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config = study_config(tmp_path, **(QUICK | {"norms": ["ln", "bn"], "equal_accuracy": False}))
    folder = tmp_path / "runs" / "tiny"
    folder.mkdir(parents=True)
    (folder / "ln-s0").write_text("in the way")
    with pytest.raises(UserError) as error:
        main(["--config", str(config)])
    text = str(error.value)
    assert text.startswith("1 failed: ln-s0 training: ") and "ln-s0/config.yaml can't be written" in text
    assert "1 that need them were left out" in text and "no verdict is written" in text and "\n" not in text
    assert (folder / "bn-s0" / "ood" / "table.csv").exists() and not (folder / "verdict.json").exists()
    with pytest.raises(UserError, match="1 failed"):
        main(["--config", str(config), "--partial", "true"])
    assert "seed 0 is missing for ln" in capsys.readouterr().out
    assert set(pd.read_csv(folder / "table.csv")["network"]) == {"bn"} and (folder / "verdict.json").exists()


def test_a_folder_of_another_config_is_refused_with_the_first_key_that_differs(tmp_path: Path) -> None:
    file = tmp_path / "runs" / "tiny" / "study.yaml"
    options = options_of(study_config(tmp_path, seeds=[0, 1]))
    file.parent.mkdir(parents=True)
    file.write_text(yaml.safe_dump(plain_options(options)))
    for more, words in (
        ({"seeds": [0, 1], "norms": ["bn"], "overrides": {}}, "made with norms ['bn', 'ln'], but the config says"),
        ({"seeds": [0, 1], "equal_accuracy": False}, "made with equal_accuracy True, but the config says False"),
        (
            {"seeds": [0, 1], "claim": {"headline_sets": ["marks"]}},
            "made with claim.headline_sets ['marks', 'grounds']",
        ),
        ({"seeds": [1, 2]}, f"has seed 0, which the config lacks: name all of them under seeds, or remove {file} to"),
    ):
        with pytest.raises(UserError) as error:
            main(["--config", str(study_config(tmp_path, **more))])
        assert words in str(error.value)
    file.write_text(yaml.safe_dump(plain_options(options) | {"seeds": 3}))
    with pytest.raises(UserError, match=r"study.yaml: seeds is 3; expected a list such as \[0, 1\]"):
        main(["--config", str(study_config(tmp_path, seeds=[0, 1]))])
    assert {path.name for path in file.parent.iterdir()} == {"study.yaml"}


def test_a_study_that_is_being_worked_on_is_left_alone(tmp_path: Path) -> None:
    config = study_config(tmp_path)
    with (
        sole_user(tmp_path / "runs" / "tiny"),
        pytest.raises(UserError, match=r"another process is working on .*runs/tiny"),
    ):
        main(["--config", str(config)])


def test_the_grid(tmp_path: Path) -> None:
    options = options_of(study_config(tmp_path, norms=["bn", "ln", "gn"], seeds=[3, 5]))
    assert [cell.name for cell in trained_cells(options)] == ["bn-s3", "ln-s3", "gn-s3", "bn-s5", "ln-s5", "gn-s5"]
    assert [(cell.name, cell.network) for cell in stopped_cells(options)] == [
        *(("bn-s3-at-ln", "bn-at-ln"), ("bn-s3-at-gn", "bn-at-gn")),
        *(("bn-s5-at-ln", "bn-at-ln"), ("bn-s5-at-gn", "bn-at-gn")),
    ]
    assert not stopped_cells(options_of(study_config(tmp_path, norms=["ln", "gn"], overrides={})))


@pytest.mark.parametrize(
    ("more", "words"),
    [
        ({"norms": []}, "norms is empty"),
        ({"seeds": [1, 1]}, "seeds is 1, 1: each may be given once only"),
        ({"overrides": {"gn": {}}}, "overrides.gn: there is no such norm in norms (bn, ln)"),
        ({"overrides": {"ln": {"model.norm": "gn"}}}, "overrides.ln.model.norm: the study sets model.norm itself"),
        ({"overrides": {"ln": {"model.lerning_rate": 1}}}, "did you mean --model.learning_rate?"),
        ({"overrides": {"ln": {"trainer.max_epochs": "x"}}}, "trainer.max_epochs is 'x'; expected a whole number"),
        ({"training": "none.yaml"}, "none.yaml: no such config file"),
        ({"name": "a/b"}, "it names a folder in"),
        ({"evaluation": {"resamples": 1}}, "resamples is 1"),
        ({"evaluation": {"sets": {"root": "here"}}}, "in a study, set root and download themselves"),
        ({"evaluation": {"sweeps": {"strengths": [9]}}}, "strengths: 9 is none of 1, 2, 3, 4, 5"),
        ({"seeds": [0, -1]}, "seeds contains -1; expected whole numbers from 0 to 4294967295"),
        ({"seeds": [2**32]}, "seeds contains 4294967296"),
        ({"seeds": 3}, "seeds is '3'; expected a list such as [0, 1]"),
        ({"overrides": {"ln": {"trainer.max_epoch": 1}}}, "did you mean --trainer.max_epochs?"),
        *(
            ({"overrides": {"ln": {f"data.{key}": value}}}, f"overrides.ln.data.{key}: norms are compared on the same")
            for key, value in (
                *(("in_distribution", "shapes"), ("split_seed", 1), ("validation", 99), ("image_size", 8)),
                *(("train_count", 200), ("ood", ["marks"])),
            )
        ),
    ],
)
def test_what_is_wrong_in_a_config_is_one_line_and_nothing_is_written(more: dict, words: str, tmp_path: Path) -> None:
    with pytest.raises(UserError) as error:
        main(["--config", str(study_config(tmp_path, **more))])
    assert words in str(error.value)
    assert not (tmp_path / "runs").exists()


def test_the_seed_and_the_overrides_reach_the_training(tmp_path: Path) -> None:
    """A run of the script train.py with the same settings has the same weights."""
    trained = train(
        [
            *("--config", str(study_config(tmp_path).parent / "training.yaml"), "--runs", str(tmp_path), "--no-wandb"),
            *("--data.root", str(data_root()), "--name", "by-hand", "--model.norm", "ln", "--trainer.max_epochs", "1"),
        ]
    )
    assert equal_weights(trained, studied() / "ln-s0")
