"""Training as the command line does it: what it leaves behind, what it repeats, how it goes on, how it stops."""

import csv
import json
import math
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import lightning as L
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
    checkpoint,
    copy_of_run,
    data_root,
    equal_weights,
    trained,
    training_arguments,
    weights,
    write_set,
)
from torch.utils._python_dispatch import TorchDispatchMode
from wandb_files import read_offline_runs

from bnood.data.datamodule import ImageDataModule
from bnood.data.image_set import ImageSet
from bnood.data.training_split import training_split
from bnood.errors import UserError
from bnood.training.atomic import locked
from bnood.training.checks import check_data
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


def held_out_images(run: Path) -> ImageSet:
    return training_split(load_run(run).config["data"])[1]


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
    assert [int(row["step"]) for row in log_rows(run) if row["train/loss"]] == [1]  # the first, then every 20
    validation = held_out_images(run)
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


def test_same_seed_same_weights_also_by_the_saved_config_and_another_seed_others(tmp_path: Path) -> None:
    again = train(training_arguments(tmp_path, "again"))
    by_config = train(["--config", str(trained() / "config.yaml"), "--runs", str(tmp_path), "--name", "by-config"])
    assert equal_weights(trained(), again) and equal_weights(trained(), by_config)
    first, second = (yaml.safe_load((run / "config.yaml").read_text()) for run in (trained(), by_config))
    assert {key for key in first if first[key] != second[key]} == {"name", "runs"}
    count = (f"{CALLBACKS}CountBatches", "--trainer.callbacks.file", str(tmp_path / "batches"))
    other = train(training_arguments(tmp_path, "other", "--seed_everything", "1", *ONE_STEP, *count))
    assert not torch.equal(weights(other)["network.conv1.weight"], weights(again)["network.conv1.weight"])
    assert (tmp_path / "batches").read_text() == "1 batches, seed 1"  # the data module's


def run_script(*arguments: str) -> subprocess.CompletedProcess[str]:
    root = Path(__file__).parents[2]
    environment = os.environ | {"PYTHONPATH": os.pathsep.join([str(root / "tests"), str(root)])}
    command = [sys.executable, str(root / "scripts" / "train.py"), *arguments]
    return subprocess.run(command, env=environment, capture_output=True, text=True)


def test_killed_run_goes_on_to_the_same_weights(tmp_path: Path) -> None:
    """The process is killed in the second epoch; what it left behind is taken up again."""
    arguments = training_arguments(tmp_path, "killed", "--trainer.log_every_n_steps", "1")
    killing = run_script(*arguments, f"{CALLBACKS}KillProcess", "--trainer.callbacks.epoch", "1")
    assert killing.returncode == -9, killing.stderr
    killed = tmp_path / "killed"
    assert checkpoint(killed)["global_step"] == STEPS
    assert not (killed / "summary.json").exists()

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
    assert [step for step, _ in rates] == list(range(1, 2 * STEPS + 1))
    assert load_run(killed).summary["accuracy"] == load_run(trained()).summary["accuracy"]


class Stopped(BaseException):
    """The process ends here."""


def test_stopped_at_any_write_a_resumed_run_has_every_file_of_an_uninterrupted_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = ("--keep_epochs", "true", "--data.batch_size", "8", "--data.train_count", "8", "--model.width", "4")
    replace, writes = Path.replace, 0

    def counted(self: Path, target: Path) -> Path:
        nonlocal writes
        writes -= 1
        if writes == 0:
            raise Stopped
        return replace(self, target)

    with monkeypatch.context() as patch:
        patch.setattr(Path, "replace", counted)
        whole = train(training_arguments(tmp_path, "whole", *settings))
    assert writes == -11  # config, two epochs of two checkpoints and the log before each, log, summary
    for stop in range(2, 12):
        name, writes = f"stopped-{stop}", stop
        arguments = training_arguments(tmp_path, name, *settings)
        with monkeypatch.context() as patch, pytest.raises(Stopped):
            patch.setattr(Path, "replace", counted)
            train(arguments)
        last = tmp_path / name / "checkpoints" / "last.ckpt"
        train([*arguments, *(["--ckpt_path", str(last)] if last.exists() else [])])
        assert (tmp_path / name / "metrics.csv").read_bytes() == (whole / "metrics.csv").read_bytes()
        assert [path.relative_to(tmp_path / name) for path in files_below(tmp_path / name)] == [
            path.relative_to(whole) for path in files_below(whole)
        ]
        kept = [torch.load(run / "checkpoints" / "epoch-001.ckpt")["state_dict"] for run in (whole, tmp_path / name)]
        assert all(torch.equal(kept[0][key], kept[1][key]) for key in kept[0])
        assert equal_weights(whole, tmp_path / name)


def plain_ddp(rank: int, folder: str, batches: list[tuple[torch.Tensor, torch.Tensor]]) -> None:
    """PyTorch's own DistributedDataParallel on this process's half of each batch."""
    torch.set_num_threads(1)
    torch.distributed.init_process_group("gloo", f"file://{folder}/meeting", rank=rank, world_size=2)
    model = Classifier(depth=20, width=8, groups=4)
    state = torch.load(f"{folder}/start.pt")
    model.load_state_dict(state)
    model.network.to(memory_format=torch.channels_last)
    model.trainer = type("Trainer", (), {"estimated_stepping_batches": len(batches)})()
    found = model.configure_optimizers()
    replica = torch.nn.parallel.DistributedDataParallel(model)
    for images, labels in batches:
        found["optimizer"].zero_grad()
        torch.nn.functional.cross_entropy(replica(images.chunk(2)[rank]), labels.chunk(2)[rank]).backward()
        found["optimizer"].step()
        found["lr_scheduler"]["scheduler"].step()
    if rank == 0:
        torch.save(model.state_dict(), f"{folder}/end.pt")


class SaveStart(L.Callback):
    """Keeps the weights before the first step and the batches of one device."""

    def __init__(self) -> None:
        self.batches: list[tuple[torch.Tensor, torch.Tensor]] = []
        self.state: dict[str, torch.Tensor] = {}

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self.state = {key: value.clone() for key, value in pl_module.state_dict().items()}

    def on_train_batch_start(self, trainer: L.Trainer, pl_module: Any, batch: Any, batch_idx: int) -> None:
        self.batches.append((batch[0].clone(), batch[1].clone()))


def test_two_processes_give_the_weights_of_plain_ddp_and_resume(tmp_path: Path) -> None:
    seen = SaveStart()
    train(training_arguments(tmp_path, "one"), callbacks=[seen])
    torch.save(seen.state, tmp_path / "start.pt")
    torch.multiprocessing.spawn(plain_ddp, (str(tmp_path), seen.batches), nprocs=2)  # type: ignore[no-untyped-call]
    expected = torch.load(tmp_path / "end.pt")

    two = training_arguments(tmp_path, "two", "--trainer.devices", "2", "--trainer.accelerator", "cpu")
    stopping = run_script(*two, f"{CALLBACKS}KillProcess", "--trainer.callbacks.epoch", "1")
    assert stopping.returncode != 0 and checkpoint(tmp_path / "two")["global_step"] == STEPS
    ran = run_script(*two, "--ckpt_path", str(tmp_path / "two" / "checkpoints" / "last.ckpt"))
    assert ran.returncode == 0, ran.stderr
    assert ran.stdout.count("\n") == 1 and ran.stderr == "", ran.stderr
    found = weights(tmp_path / "two")
    assert all(torch.equal(found[key], expected[key]) for key in expected)
    assert not torch.equal(found["network.head.weight"], weights(tmp_path / "one")["network.head.weight"])
    validation = held_out_images(tmp_path / "two")
    with torch.no_grad():
        answers = load_run(tmp_path / "two").classifier(torch.from_numpy(validation.images)).argmax(1)
    accuracy = json.loads((tmp_path / "two" / "summary.json").read_text())["accuracy"]
    assert accuracy == pytest.approx(accuracy_score(validation.labels, answers))
    files = {path.name for path in files_below(tmp_path / "two")}
    assert files == {"checkpoints", "last.ckpt", "config.yaml", "metrics.csv", "summary.json"}


def test_a_batch_that_devices_cannot_share_is_refused() -> None:
    data = ImageDataModule("tiny", data_root(), batch_size=63, validation=2, image_size=SIZE)
    data.setup("fit")
    for devices, words in (
        (2, "batch_size is 63, which 2 devices"),
        (63, "one image .*at least 126"),
        (3, "an image for"),
    ):
        with pytest.raises(UserError, match=words):
            check_data(data, Classifier(width=4), devices)


class CountReads(TorchDispatchMode):
    """Counts how often the host reads a value of a tensor, for which it has to wait for the device."""

    reads = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.reads += func is torch.ops.aten._local_scalar_dense.default
        return func(*args, **(kwargs or {}))


class ReadsPerStep(L.Callback):
    """The reads of each step, from the end of the one before to its own."""

    def __init__(self, mode: CountReads) -> None:
        self.mode, self.steps = mode, list[int]()

    def on_train_batch_end(self, *_: Any) -> None:
        self.steps.append(self.mode.reads)
        self.mode.reads = 0


def test_steps_that_log_nothing_read_nothing_from_the_device(tmp_path: Path) -> None:
    more = ("--data.batch_size", "16", "--trainer.max_epochs", "1", "--trainer.log_every_n_steps", "4")
    with CountReads() as mode:
        counted = ReadsPerStep(mode)
        train(training_arguments(tmp_path, "a", *more, "--model.clip_gradient_norm", "1"), callbacks=[counted])
    assert len(counted.steps) == TRAIN // 16
    assert [step for step, reads in enumerate(counted.steps) if reads and step] == [3, 7, 11, 15]


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
    words = r"the loss became (nan|inf) in epoch 0, by step 1; .*--model.learning_rate"
    with pytest.raises(NonFiniteLoss, match=words) as stopped:
        often = ("--trainer.log_every_n_steps", "1")
        train(training_arguments(tmp_path, "a", "--model.learning_rate", "1e30", "--data.batch_size", "16", *often))
    assert "\n" not in str(stopped.value)
    with pytest.raises(NonFiniteLoss, match=r"by step 2"):  # at the end of the epoch at the latest
        train(training_arguments(tmp_path, "a", "--model.learning_rate", "1e30", "--data.batch_size", "128"))
    assert files_below(tmp_path) == []


def test_mixed_precision_trains(tmp_path: Path) -> None:
    run = train(training_arguments(tmp_path, "half", "--trainer.precision", "bf16-mixed", *ONE_STEP))
    assert all(torch.isfinite(value).all() for value in weights(run).values())
    assert weights(run)["network.conv1.weight"].dtype == torch.float32


def test_without_name_and_validation_the_name_says_what_and_nothing_is_invented(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = training_arguments(tmp_path, "x", "--model.norm", "gn", "--trainer.limit_val_batches", "0", *ONE_STEP)
    place = arguments.index("--name")
    run = train([*arguments[:place], *arguments[place + 2 :], "--seed_everything", "7"])
    assert run == tmp_path / "tiny-resnet20x8-gn-s7"
    assert json.loads((run / "summary.json").read_text())["accuracy"] is None
    assert "validation accuracy not measured" in capsys.readouterr().out


def test_wandb_gets_the_first_loss_at_step_1_the_cost_and_the_checkpoint(tmp_path: Path) -> None:
    arguments = training_arguments(tmp_path, "tracked", *ONE_STEP, "--wandb.mode", "offline")
    arguments.remove("--no-wandb")
    run = train(arguments)
    (tracked,) = read_offline_runs(run)
    losses = [row["trainer/global_step"] for row in tracked.history if "train/loss" in row]
    assert losses == [1] and "validation/accuracy" in tracked.summary
    summary = json.loads((run / "summary.json").read_text())
    for key in ("seconds", "images_per_second", "parameters"):
        assert tracked.summary[key] == pytest.approx(summary[key])
    assert tracked.exit_code == 0 and [artifact.type for artifact in tracked.artifacts] == ["model"]


def test_a_trained_network_is_never_written_over(tmp_path: Path) -> None:
    first = copy_of_run(tmp_path / "first")
    before = {path: path.read_bytes() for path in files_below(first) if path.is_file()}
    last, own = trained() / "checkpoints" / "last.ckpt", first / "checkpoints" / "last.ckpt"
    with locked(first, "another training writes to it"):
        with pytest.raises(UserError, match="first: another training writes to it"):
            own.rename(tmp_path / "away")
            train(training_arguments(tmp_path, "first"))
        (tmp_path / "away").rename(own)
    for more, words in (
        ([], f"{first} already holds a trained network: choose another --name, or resume"),
        (["--ckpt_path", str(last), "--trainer.max_epochs", "3"], "first already holds a trained network"),
        (["--ckpt_path", str(own)], "has finished all 2 epoch.s. of --trainer.max_epochs"),
    ):
        with pytest.raises(UserError, match=words):
            train(training_arguments(tmp_path, "first", *more))
    assert {path: path.read_bytes() for path in files_below(first) if path.is_file()} == before


OTHER_TRAININGS: list[tuple[str, str]] = [
    ("--model.norm gn", "norm 'bn', but the config says 'gn'"),
    ("--model.width 4", "width 8, but the config says 4"),
    ("--model.architecture wide_resnet --model.depth 10", "architecture 'resnet'"),
    ("--model.learning_rate 0.2", "model.learning_rate is 0.2, but .* was trained with 0.1: resume with "),
    ("--seed_everything 1", "seed_everything is 1, but .* was trained with 0"),
    ("--data.batch_size 32", "data.batch_size is 32, but .* was trained with 64"),
    ("--data.train_count 200", "data.train_count is 200, but .* was trained with 256"),
    ("--data.in_distribution OTHER", "data.in_distribution: .*other.npz has other images than .*last.ckpt"),
    ("--trainer.max_epochs 3", "trainer.max_epochs is 3, but .* was trained with 2"),
    ("--trainer.precision bf16-mixed", "trainer.precision is bf16-mixed, but .* with 32-true"),
]


@pytest.mark.parametrize(("change", "words"), OTHER_TRAININGS)
def test_another_training_cannot_be_resumed(change: str, words: str, tmp_path: Path) -> None:
    tiny = np.load(data_root() / "tiny" / "train.npz")
    other = write_set(tmp_path / "other.npz", tiny["images"] // 2, tiny["labels"])
    changes = change.replace("OTHER", str(other)).split()
    with pytest.raises(UserError, match=words) as error:
        train(training_arguments(tmp_path, "new", *changes, "--ckpt_path", str(trained() / "checkpoints/last.ckpt")))
    assert "\n" not in str(error.value) and not (tmp_path / "new").exists()


def momentum_of_another_shape(content: dict[str, Any]) -> None:
    content["optimizer_states"][0]["state"][0]["momentum_buffer"] = torch.zeros(3)


# Lightning would train on without these in silence, or miss them in the middle.
DAMAGES: dict[str, Callable[[dict[str, Any]], object]] = {
    "no optimizer": lambda content: content.update(optimizer_states=[]),
    "no momentum": lambda content: content["optimizer_states"][0].update(state={}),
    "another momentum": momentum_of_another_shape,
    "no schedule": lambda content: content.update(lr_schedulers=[]),
    "late schedule": lambda content: content["lr_schedulers"][0].update(last_epoch=1),
    "epoch a text": lambda content: content.update(epoch="one"),
    "loops": lambda content: content["loops"]["fit_loop"].update({"epoch_progress": 3}),
    "callbacks": lambda content: content["callbacks"].update(Stopwatch=[1]),
    "a weight": lambda content: content["state_dict"].update({"network.head.bias": torch.zeros(3)}),
}
NO_STATE: dict[str, Callable[[dict[str, Any]], object]] = {
    "weights alone": lambda content: content.pop("optimizer_states"),
    "version 0.1": lambda content: content.pop("settings"),
}


@pytest.mark.parametrize("damage", [*DAMAGES, *NO_STATE])
def test_a_damaged_checkpoint_cannot_be_resumed(damage: str, tmp_path: Path) -> None:
    content = checkpoint(trained())
    (DAMAGES | NO_STATE)[damage](content)
    torch.save(content, tmp_path / "last.ckpt")
    words = "is damaged" if damage in DAMAGES else "holds a network, but no optimizer state"
    with pytest.raises(UserError, match=rf"last.ckpt.*{words}") as error:
        train(training_arguments(tmp_path, "new", "--ckpt_path", str(tmp_path / "last.ckpt")))
    assert "\n" not in str(error.value) and [path.name for path in files_below(tmp_path)] == ["last.ckpt"]


def test_a_run_without_its_log_cannot_be_resumed(tmp_path: Path) -> None:
    run = copy_of_run(tmp_path / "run")
    (run / "metrics.csv").unlink()
    arguments = training_arguments(tmp_path, "run", "--ckpt_path", str(run / "checkpoints" / "last.ckpt"))
    with pytest.raises(UserError, match=r"metrics.csv is missing: the log of the epochs before"):
        train(arguments)
    (run / "metrics.csv").write_text("a,b\n1,2\n")
    with pytest.raises(UserError, match=r"metrics.csv is not the log of a training"):
        train(arguments)


def test_a_folder_that_was_there_before_is_not_removed(tmp_path: Path) -> None:
    (tmp_path / "new").mkdir()
    (tmp_path / "new" / "notes.txt").write_text("mine")
    with pytest.raises(UserError, match="trainer: "):
        train(training_arguments(tmp_path, "new", "--trainer.accelerator", "abacus"))
    assert (tmp_path / "new" / "notes.txt").read_text() == "mine"


def test_full_disk_is_one_line_and_leaves_no_half_checkpoint(tmp_path: Path) -> None:
    """A limit on the size of files stands for the full disk: writing fails in the middle of the checkpoint."""
    arguments = training_arguments(tmp_path, "full", *ONE_STEP)
    with files_up_to(100_000), pytest.raises(UserError, match=r"last.ckpt can't be written: ") as error:
        train(arguments)
    assert "\n" not in str(error.value)
    assert [path for path in files_below(tmp_path) if path.suffix == ".ckpt" or ".partial" in path.name] == []
