"""Training as the command line does it: what it leaves behind, what it repeats, how it goes on, how it stops."""

import csv
import json
import math
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from limits import files_up_to
from sklearn.metrics import accuracy_score, log_loss
from tiny_runs import (
    SIZE,
    STEPS,
    TRAIN,
    VALIDATION,
    checkpoint,
    copy_of_run,
    data_root,
    equal_weights,
    trained,
    training_arguments,
    weights,
    write_set,
)

from bnood.data.datamodule import ImageDataModule
from bnood.errors import UserError
from bnood.training.classifier import Classifier, NonFiniteLoss
from bnood.training.run_folder import load_run
from bnood.training.train import train

ONE_STEP = ("--trainer.max_epochs", "1", "--data.batch_size", "8", "--data.train_count", "8")
CALLBACKS = "--trainer.callbacks+=tiny_runs."


def log_rows(run: Path) -> list[dict[str, str]]:
    with (run / "metrics.csv").open(newline="") as file:
        return list(csv.DictReader(file))


def column(run: Path, name: str) -> list[float]:
    return [float(row[name]) for row in log_rows(run) if row.get(name)]


def files_below(folder: Path) -> list[Path]:
    return sorted(folder.rglob("*"))


def test_a_run_leaves_what_the_contract_lists() -> None:
    run = trained()
    names = {path.relative_to(run).as_posix() for path in files_below(run)}
    assert names == {"checkpoints", "checkpoints/last.ckpt", "config.yaml", "metrics.csv", "summary.json"}
    summary = json.loads((run / "summary.json").read_text())
    assert {"accuracy", "seconds", "images_per_second", "parameters", "versions", "commit"} <= summary.keys()
    assert summary["epochs"] == 2
    assert summary["images_per_second"] == pytest.approx(2 * TRAIN / summary["seconds"])
    assert summary["versions"]["torch"] == torch.__version__.partition("+")[0]
    # Counted by hand: stem 3*8*9, the 3 x 3 convolutions of the stages (8, 16 and 32 channels), the 1 x 1 shortcuts,
    # two values for each normalised channel, and the head.
    convolutions = 9 * (3 * 8 + 6 * 64 + (8 * 16 + 5 * 256) + (16 * 32 + 5 * 1024)) + 8 * 16 + 16 * 32
    normalised = 2 * (8 + 6 * 8 + 7 * 16 + 7 * 32)
    assert summary["parameters"] == convolutions + normalised + 32 * 10 + 10


def test_logged_metrics_are_those_of_the_validation_images() -> None:
    run = trained()
    loaded = load_run(run)
    validation = ImageDataModule("tiny", data_root(), validation=VALIDATION, image_size=SIZE).split()[1]
    with torch.no_grad():
        logits = loaded.classifier(torch.from_numpy(validation.images)).double()
    probabilities = logits.softmax(dim=1).numpy()
    confidence, right = probabilities.max(1), probabilities.argmax(1) == validation.labels
    bins = np.minimum((confidence * 15).astype(int), 14)
    ece = sum(abs(right[bins == b].mean() - confidence[bins == b].mean()) * (bins == b).mean() for b in np.unique(bins))
    assert loaded.summary["accuracy"] == pytest.approx(accuracy_score(validation.labels, probabilities.argmax(1)))
    assert loaded.summary["nll"] == pytest.approx(
        log_loss(validation.labels, probabilities, labels=range(10)), rel=1e-4
    )
    assert loaded.summary["ece"] == pytest.approx(ece, abs=1e-4)
    for name in ("accuracy", "nll", "ece"):
        logged = column(run, f"validation/{name}")
        assert len(logged) == 2
        assert logged[-1] == pytest.approx(loaded.summary[name], rel=1e-5)


def test_same_seed_same_weights_and_another_seed_others(tmp_path: Path) -> None:
    again = train(training_arguments(tmp_path, "again"))
    count = (f"{CALLBACKS}CountBatches", "--trainer.callbacks.file", str(tmp_path / "batches"))
    other = train(training_arguments(tmp_path, "other", "--seed_everything", "1", *ONE_STEP, *count))
    assert equal_weights(trained(), again)
    assert not torch.equal(weights(other)["network.conv1.weight"], weights(again)["network.conv1.weight"])
    assert (tmp_path / "batches").read_text() == "1 batches, seed 1"  # the data module's


def test_saved_config_runs_again(tmp_path: Path) -> None:
    again = train(["--config", str(trained() / "config.yaml"), "--runs", str(tmp_path), "--name", "again"])
    assert equal_weights(trained(), again)
    first, second = (yaml.safe_load((run / "config.yaml").read_text()) for run in (trained(), again))
    assert {key for key in first if first[key] != second[key]} == {"name", "runs"}


def test_killed_run_goes_on_to_the_same_weights(tmp_path: Path) -> None:
    """The process is killed in the second epoch; what it left behind is taken up again."""
    arguments = training_arguments(tmp_path, "killed", "--trainer.log_every_n_steps", "1")
    script = Path(__file__).parents[1] / "scripts" / "train.py"
    kill = [f"{CALLBACKS}KillProcess", "--trainer.callbacks.epoch", "1"]
    path = os.pathsep.join([str(Path(__file__).parent), str(script.parents[1])])
    process = subprocess.run(
        [sys.executable, str(script), *arguments, *kill],
        env=os.environ | {"PYTHONPATH": path, "OMP_NUM_THREADS": str(torch.get_num_threads())},
        capture_output=True,
    )
    assert process.returncode == -9, process.stderr.decode()
    killed = tmp_path / "killed"
    assert checkpoint(killed)["global_step"] == STEPS
    assert not (killed / "summary.json").exists()
    assert [path.name for path in killed.rglob("*") if ".partial" in path.name] == []
    assert [int(row["step"]) for row in log_rows(killed)][-1] == STEPS  # counted from 0: one after the checkpoint

    counted = tmp_path / "batches"
    count = [f"{CALLBACKS}CountBatches", "--trainer.callbacks.file", str(counted)]
    with pytest.raises(UserError, match="already holds a trained network"):
        train(arguments)
    train([*arguments, *count, "--ckpt_path", str(killed / "checkpoints" / "last.ckpt")])
    assert counted.read_text() == f"{STEPS} batches, seed 0"  # one of the two epochs
    assert equal_weights(trained(), killed)
    for name in ("train/accuracy", "validation/accuracy", "validation/nll", "validation/ece"):
        assert column(killed, name) == column(trained(), name)
    rates = [(int(row["step"]), row["learning_rate"]) for row in log_rows(killed) if row["learning_rate"]]
    assert [step for step, _ in rates] == list(range(2 * STEPS))
    assert load_run(killed).summary["accuracy"] == load_run(trained()).summary["accuracy"]


def test_kept_epochs_are_the_weights_after_each_epoch(tmp_path: Path) -> None:
    whole = train(training_arguments(tmp_path, "kept", "--keep_epochs", "true"))
    first, last = (torch.load(whole / "checkpoints" / f"epoch-00{n}.ckpt", weights_only=True) for n in (0, 1))
    own = weights(whole)
    assert all(torch.equal(last["state_dict"][key], own[key]) for key in own)  # the last epoch's are the run's own
    assert not torch.equal(first["state_dict"]["network.head.weight"], own["network.head.weight"])
    assert first["global_step"] == STEPS and "optimizer_states" not in first
    assert equal_weights(whole, trained())  # keeping them changes nothing


def test_the_schedule_moves_at_every_step(tmp_path: Path) -> None:
    settings = ("--trainer.log_every_n_steps", "1", "--model.learning_rate", "0.2", "--model.warmup", "0.25")
    settings += ("--data.batch_size", "8", "--data.train_count", "32")
    cosine = train(training_arguments(tmp_path, "cosine", *settings, "--trainer.max_epochs", "1"))
    # 4 steps, the first of which rises by half; then half a cosine of 3 steps from 0.2 towards 1e-6.
    expected = [0.1] + [1e-6 + (0.2 - 1e-6) * (1 + math.cos(math.pi * step / 3)) / 2 for step in range(3)]
    np.testing.assert_allclose(column(cosine, "learning_rate"), expected, rtol=1e-6)
    cycle = train(training_arguments(tmp_path, "cycle", *settings, "--model.schedule", "one_cycle"))
    # Smith & Topin, as torch defines it: from peak / 25 up in 0.25 of 8 steps (minus one), then to peak / 25e4.
    up = [0.008 + (0.2 - 0.008) * (1 - math.cos(math.pi * step)) / 2 for step in range(2)]
    down = [8e-7 + (0.2 - 8e-7) * (1 + math.cos(math.pi * step / 6)) / 2 for step in range(1, 7)]
    np.testing.assert_allclose(column(cycle, "learning_rate"), up + down, rtol=1e-5)


def test_non_finite_loss_stops_with_epoch_and_step(tmp_path: Path) -> None:
    words = r"the loss became (nan|inf) in epoch 0, step 1: .*learning rate 4.76e.29;.*--model.learning_rate"
    with pytest.raises(NonFiniteLoss, match=words) as stopped:
        train(training_arguments(tmp_path, "a", "--model.learning_rate", "1e30", "--data.batch_size", "16"))
    assert "\n" not in str(stopped.value)
    left = {path.name for path in files_below(tmp_path / "a")}
    assert not left & {"last.ckpt", "summary.json"}


def test_mixed_precision_trains(tmp_path: Path) -> None:
    run = train(training_arguments(tmp_path, "half", "--trainer.precision", "bf16-mixed", *ONE_STEP))
    assert all(torch.isfinite(value).all() for value in weights(run).values())
    assert weights(run)["network.conv1.weight"].dtype == torch.float32


def test_without_validation_nothing_is_invented(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    off = ("--trainer.limit_val_batches", "0", "--model.norm", "none")
    run = train(training_arguments(tmp_path, "a", *off, *ONE_STEP))
    assert json.loads((run / "summary.json").read_text())["accuracy"] is None
    assert "validation accuracy not measured" in capsys.readouterr().out


def test_default_name_says_set_network_norm_and_seed(tmp_path: Path) -> None:
    arguments = training_arguments(tmp_path, "x", "--model.norm", "gn", *ONE_STEP)
    place = arguments.index("--name")
    run = train([*arguments[:place], *arguments[place + 2 :], "--seed_everything", "7"])
    assert run == tmp_path / "tiny-resnet20x8-gn-s7"
    assert Classifier(norm="gn").torch_memory_format() == torch.contiguous_format


def test_a_trained_network_is_never_written_over(tmp_path: Path) -> None:
    first = copy_of_run(tmp_path / "first")
    before = {path: path.read_bytes() for path in files_below(first) if path.is_file()}
    last = trained() / "checkpoints" / "last.ckpt"
    for more, words in (
        ([], f"{first} already holds a trained network: choose another --name, or resume"),
        (["--ckpt_path", str(last), "--trainer.max_epochs", "3"], "first already holds a trained network"),
        (["--ckpt_path", str(first / "checkpoints" / "last.ckpt")], "has finished all 2 epoch.s.*--trainer.max_epochs"),
    ):
        with pytest.raises(UserError, match=words):
            train(training_arguments(tmp_path, "first", *more))
    assert {path: path.read_bytes() for path in files_below(first) if path.is_file()} == before


BAD_INPUT: list[tuple[list[str], str]] = [
    (["--model.norn", "gn"], "there is no option --model.norn .did you mean --model.norm"),
    (["--model.norm", "batch"], "model.norm is 'batch'.*expected bn or ln or gn or none"),
    (["--trainer.precision", "7bit"], "trainer.precision is '7bit'.*bf16-mixed"),
    (["--trainer.accelerator", "abacus"], "trainer: .*abacus"),
    (["--trainer.max_epochs", "0"], "trainer.max_epochs is 0"),
    (["--trainer.max_epochs", "-1"], "trainer.max_epochs is -1"),
    (["--trainer.fast_dev_run", "true"], "trainer.fast_dev_run"),
    (["--trainer.logger", "false"], "trainer.logger can't be set"),
    (["--seed_everything", "-1"], "seed_everything is -1.*0 to 4294967295"),
    (["--name", "a/b"], "name is 'a/b'"),
    (["--name", ".."], "name is '..'"),
    (["--name", ""], "name is ''"),
    (["--data.in_distribution", "tyni"], "'tyni' is no known set"),
    (["--data.batch_size", "257"], "256 training images do not fill one batch"),
    (["--model.num_classes", "5"], "tiny has labels up to 9, but model.num_classes is 5: set --model.num_classes 10"),
    (["--model.norm", "gn", "--model.groups", "3"], "groups that divides 8 channels, not 3"),
    (["--ckpt_path", "none.ckpt"], "none.ckpt: no such checkpoint"),
    (["--runs", "/dev/null/runs"], "/dev/null/runs/new/config.yaml can't be written: Not a directory"),
]


@pytest.mark.parametrize(("arguments", "words"), BAD_INPUT, ids=[" ".join(arguments) for arguments, _ in BAD_INPUT])
def test_bad_input_is_one_line_and_leaves_nothing(arguments: list[str], words: str, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=words) as error:
        train(training_arguments(tmp_path / "runs", "new", *arguments))
    assert "\n" not in str(error.value)
    assert "Traceback" not in str(error.value)
    left = [path for path in files_below(tmp_path) if path != tmp_path / "runs"]
    assert left == []


@pytest.mark.skipif(not Path("/sys/kernel").is_dir(), reason="needs a folder that nobody may write")
def test_read_only_folder_is_named(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"/sys/kernel/new/config.yaml can't be written: "):
        train(training_arguments(Path("/sys/kernel"), "new"))


def test_truncated_data_is_named_and_leaves_nothing(tmp_path: Path) -> None:
    whole = (data_root() / "tiny" / "train.npz").read_bytes()
    file = tmp_path / "short.npz"
    for length in (0, 100, len(whole) // 2, len(whole) - 1):
        file.write_bytes(whole[:length])
        with pytest.raises(UserError, match=r"short.npz: .*expected") as error:
            train(training_arguments(tmp_path / "runs", "new", "--data.in_distribution", str(file)))
        assert "\n" not in str(error.value)
    assert not (tmp_path / "runs").exists()


def test_negative_label_is_named(tmp_path: Path) -> None:
    labels = np.arange(400) % 10
    labels[:30] = -100  # cross_entropy leaves such images out
    file = write_set(tmp_path / "odd.npz", np.zeros((400, SIZE, SIZE, 3), np.uint8), labels)
    with pytest.raises(UserError, match=r"odd.npz has the label -100"):
        train(training_arguments(tmp_path / "runs", "new", "--data.in_distribution", str(file)))


def test_checkpoint_of_another_network_cannot_be_resumed(tmp_path: Path) -> None:
    last = str(trained() / "checkpoints" / "last.ckpt")
    for change, words in (
        (["--model.norm", "gn"], "norm 'bn', but the config says 'gn'"),
        (["--model.width", "4"], "width 8, but the config says 4"),
        (["--model.depth", "32"], "depth 20, but the config says 32"),
        (["--model.architecture", "wide_resnet", "--model.depth", "10"], "architecture 'resnet'"),
    ):
        more = [*change, "--ckpt_path", last, "--trainer.max_epochs", "3"]
        with pytest.raises(UserError, match=words):
            train(training_arguments(tmp_path, "new", *more))
    assert files_below(tmp_path) == []


def test_a_folder_that_was_there_before_is_not_removed(tmp_path: Path) -> None:
    (tmp_path / "new").mkdir()
    (tmp_path / "new" / "notes.txt").write_text("mine")
    with pytest.raises(UserError, match="trainer: "):
        train(training_arguments(tmp_path, "new", "--trainer.devices", "17", "--trainer.accelerator", "gpu"))
    assert (tmp_path / "new" / "notes.txt").read_text() == "mine"


def test_full_disk_is_one_line_and_leaves_no_half_checkpoint(tmp_path: Path) -> None:
    """A limit on the size of files stands for the full disk: writing fails in the middle of the checkpoint."""
    arguments = training_arguments(tmp_path, "full", *ONE_STEP)
    with files_up_to(100_000), pytest.raises(UserError, match=r"last.ckpt can't be written: ") as error:
        train(arguments)
    assert "\n" not in str(error.value)
    assert [path for path in files_below(tmp_path) if path.suffix == ".ckpt" or ".partial" in path.name] == []
