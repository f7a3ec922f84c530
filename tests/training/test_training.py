"""Training as the command line does it: what it leaves behind, what it repeats, how it goes on, how it stops."""

import csv
import json
import math
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import lightning as L
import numpy as np
import pytest
import torch
import yaml
from lightning.pytorch.callbacks import LambdaCallback
from refusal import files_up_to, tree
from sklearn.metrics import accuracy_score, log_loss
from tiny_runs import SIZE, STEPS, TRAIN, checkpoint, data_root, equal_weights, trained, training_arguments, weights
from torch.utils._python_dispatch import TorchDispatchMode
from wandb_files import read_offline_runs

from bnood.data.datamodule import ImageDataModule
from bnood.data.image_set import ImageSet
from bnood.data.sources import training_split
from bnood.errors import UserError
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


def test_a_run_leaves_what_the_contract_lists() -> None:
    run = trained()
    assert tree(run).keys() == {"checkpoints", "checkpoints/last.ckpt", "config.yaml", "metrics.csv", "summary.json"}
    summary = json.loads((run / "summary.json").read_text())
    assert {"accuracy", "parameters", "versions", "commit"} <= summary.keys() and summary["epochs"] == 2
    assert summary["images_per_second"] == pytest.approx(2 * TRAIN / summary["seconds"])


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
    expected = {
        "accuracy": right.mean(),
        "nll": log_loss(validation.labels, probabilities, labels=range(10)),
        "ece": sum(abs(right[bins == b].mean() - confidence[bins == b].mean()) * (bins == b).mean() for b in set(bins)),
    }
    for name, value in expected.items():
        logged = column(run, f"validation/{name}")
        assert len(logged) == 2 and logged[-1] == pytest.approx(loaded.summary[name], rel=1e-5)
        assert loaded.summary[name] == pytest.approx(value, rel=1e-4, abs=1e-4)


def test_same_seed_same_weights_also_by_the_saved_config_and_another_seed_others(tmp_path: Path) -> None:
    again = train(training_arguments(tmp_path, "again"))
    by_config = train(["--config", str(trained() / "config.yaml"), "--runs", str(tmp_path), "--name", "by-config"])
    assert equal_weights(trained(), again) and equal_weights(trained(), by_config)
    first, second = (yaml.safe_load((run / "config.yaml").read_text()) for run in (trained(), by_config))
    assert {key for key in first if first[key] != second[key]} == {"name", "runs"}
    seen = SaveStart()
    other = train(training_arguments(tmp_path, "other", "--seed_everything", "1", *ONE_STEP), callbacks=[seen])
    assert not torch.equal(weights(other)["network.conv1.weight"], weights(again)["network.conv1.weight"])
    assert len(seen.batches) == 1 and seen.data_seed == 1
    swa = ("--trainer.callbacks+=StochasticWeightAveraging", "--trainer.callbacks.swa_lrs", "0.1")
    averaged = train(training_arguments(tmp_path, "averaged", *ONE_STEP, *swa))
    train(["--config", str(averaged / "config.yaml"), "--runs", str(tmp_path), "--name", "averaged-again"])


def run_script(*arguments: str) -> subprocess.CompletedProcess[str]:
    root = Path(__file__).parents[2]
    environment = os.environ | {"PYTHONPATH": os.pathsep.join([str(root / "tests"), str(root)])}
    command = [sys.executable, str(root / "scripts" / "train.py"), *arguments]
    return subprocess.run(command, env=environment, capture_output=True, text=True)


def plain_ddp(rank: int, folder: str, batches: list[tuple[torch.Tensor, torch.Tensor]]) -> None:
    """PyTorch's own DistributedDataParallel on this process's half of each batch."""
    torch.set_num_threads(1)
    torch.distributed.init_process_group("gloo", f"file://{folder}/meeting", rank=rank, world_size=2)
    model = Classifier(depth=20, width=8, groups=4)
    model.load_state_dict(torch.load(f"{folder}/start.pt"))
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
    """Keeps the weights before the first step, the batches of one device, and the seed of their order."""

    def __init__(self) -> None:
        self.batches: list[tuple[torch.Tensor, torch.Tensor]] = []
        self.state: dict[str, torch.Tensor] = {}

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self.state = {key: value.clone() for key, value in pl_module.state_dict().items()}
        self.data_seed = trainer.datamodule.seed  # type: ignore[attr-defined]

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
    assert tree(tmp_path / "two").keys() == tree(trained()).keys()


def test_a_batch_that_devices_cannot_share_is_refused() -> None:
    data = ImageDataModule("tiny", data_root(), batch_size=63, validation=2, image_size=SIZE)
    data.setup("fit")
    known = ((2, "batch_size is 63, which 2 devices"), (63, "one image .*at least 126"), (3, "an image for"))
    for devices, words in known:
        with pytest.raises(UserError, match=words):
            check_data(data, Classifier(width=4), devices)


class CountReads(TorchDispatchMode):
    """Counts how often the host reads a value of a tensor, for which it has to wait for the device."""

    reads = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.reads += func is torch.ops.aten._local_scalar_dense.default
        return func(*args, **(kwargs or {}))


def test_steps_that_log_nothing_read_nothing_from_the_device(tmp_path: Path) -> None:
    more = ("--data.batch_size", "16", "--trainer.max_epochs", "1", "--trainer.log_every_n_steps", "4")
    reads: list[int] = []  # until the end of each step
    with CountReads() as mode:
        count = LambdaCallback(on_train_batch_end=lambda *_: reads.append(mode.reads))
        train(training_arguments(tmp_path, "a", *more, "--model.clip_gradient_norm", "1"), callbacks=[count])
    assert len(reads) == TRAIN // 16
    assert [step for step in range(1, TRAIN // 16) if reads[step] > reads[step - 1]] == [3, 7, 11, 15]


def test_the_schedule_moves_at_every_step(tmp_path: Path) -> None:
    settings = ("--trainer.log_every_n_steps", "1", "--model.learning_rate", "0.2", "--model.warmup", "0.25")
    settings += ("--data.batch_size", "8", "--data.train_count", "32")
    cosine = train(training_arguments(tmp_path, "cosine", *settings, "--trainer.max_epochs", "1"))
    # 4 steps, the first of which rises by half; then half a cosine of 3 steps from 0.2 towards 1e-6.
    expected = [0.1] + [1e-6 + (0.2 - 1e-6) * (1 + math.cos(math.pi * step / 3)) / 2 for step in range(3)]
    np.testing.assert_allclose(column(cosine, "learning_rate"), expected, rtol=1e-6)
    cycle = train(training_arguments(tmp_path, "cycle", *settings, "--model.schedule", "one_cycle"))
    rates = column(cycle, "learning_rate")
    assert len(rates) == 8 and max(rates) == rates[1] == pytest.approx(0.2)  # a quarter of the steps lead to the peak


def test_non_finite_loss_stops_with_epoch_and_step(tmp_path: Path) -> None:
    words = r"the loss became (nan|inf) in epoch 0, by step 1: .*--model.learning_rate"
    often = ("--data.batch_size", "16", "--trainer.log_every_n_steps", "1")
    for more, match in ((often, words), (("--data.batch_size", "128"), "by step 2")):
        with pytest.raises(NonFiniteLoss, match=match):
            train(training_arguments(tmp_path, "a", "--model.learning_rate", "1e30", *more))
    assert tree(tmp_path) == {}


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
    (tracked,) = read_offline_runs(train(arguments))
    losses = [row["trainer/global_step"] for row in tracked.history if "train/loss" in row]
    assert losses == [1] and "validation/accuracy" in tracked.summary
    assert {"seconds", "images_per_second", "parameters"} <= tracked.summary.keys()
    assert tracked.exit_code == 0 and [artifact.type for artifact in tracked.artifacts] == ["model"]


def test_full_disk_is_one_line_and_leaves_no_half_checkpoint(tmp_path: Path) -> None:
    """A limit on the size of files stands for the full disk: writing fails in the middle of the checkpoint."""
    arguments = training_arguments(tmp_path, "full", *ONE_STEP)
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "notes.txt").write_text("a folder that was there before is not removed")
    with files_up_to(100_000), pytest.raises(UserError, match=r"last.ckpt can't be written: "):
        train(arguments)
    left = tree(tmp_path).keys()
    assert "full/notes.txt" in left and not any(".ckpt" in name or ".partial" in name for name in left)
