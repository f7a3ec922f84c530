"""A training that was stopped goes on as the training that it was, or not at all."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from refusal import tree
from tiny_runs import checkpoint, copy_of_run, data_root, equal_weights, trained, training_arguments, write_set

from bnood.data.atomic import locked
from bnood.errors import UserError
from bnood.training.train import train


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
        assert tree(tmp_path / name).keys() == tree(whole).keys()
        kept = [torch.load(run / "checkpoints" / "epoch-001.ckpt")["state_dict"] for run in (whole, tmp_path / name)]
        assert all(torch.equal(kept[0][key], kept[1][key]) for key in kept[0])
        assert equal_weights(whole, tmp_path / name)


def test_a_trained_network_is_never_written_over(tmp_path: Path) -> None:
    first = copy_of_run(tmp_path / "first")
    before = tree(first)
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
    with pytest.raises(UserError, match=r"has finished all 2 epoch.s. of --trainer.max_epochs"):
        train(training_arguments(tmp_path, "second", "--ckpt_path", str(own)))
    assert tree(first) == before and not (tmp_path / "second").exists()


OTHER_TRAININGS = [
    ("--model.norm gn", "model.norm is gn, but .* was trained with bn"),
    ("--model.learning_rate 0.2", "model.learning_rate is 0.2, but .* was trained with 0.1: resume with "),
    ("--seed_everything 1", "seed_everything is 1, but .* was trained with 0"),
    ("--data.batch_size 32", "data.batch_size is 32, but .* was trained with 64"),
    ("--data.train_count 200", "data.train_count is 200, but .* was trained with 256"),
    ("--data.in_distribution OTHER", "data.in_distribution: .*other.npz has other images than .*last.ckpt"),
    ("--data.in_distribution LABELS", "data.in_distribution: .*labels.npz has other labels than .*last.ckpt"),
    ("--trainer.max_epochs 3", "trainer.max_epochs is 3, but .* was trained with 2"),
    ("--trainer.callbacks StochasticWeightAveraging --trainer.callbacks.swa_lrs 0.1", "trainer.callbacks is .*swa_lrs"),
    ("--trainer.precision bf16-mixed", "trainer.precision is bf16-mixed, but .* with 32-true"),
]


@pytest.mark.parametrize(("change", "words"), OTHER_TRAININGS)
def test_another_training_cannot_be_resumed(change: str, words: str, tmp_path: Path) -> None:
    tiny = np.load(data_root() / "tiny" / "train.npz")
    other = write_set(tmp_path / "other.npz", tiny["images"] // 2, tiny["labels"])
    labels = write_set(tmp_path / "labels.npz", tiny["images"], tiny["labels"][::-1])
    changes = change.replace("OTHER", str(other)).replace("LABELS", str(labels)).split()
    with pytest.raises(UserError, match=words):
        train(training_arguments(tmp_path, "new", *changes, "--ckpt_path", str(trained() / "checkpoints/last.ckpt")))
    assert not (tmp_path / "new").exists()


# Lightning would train on without these in silence, or miss them in the middle.
DAMAGES: dict[str, Callable[[dict[str, Any]], object]] = {
    "weights alone": lambda content: content.pop("optimizer_states"),
    "version 0.1": lambda content: content.pop("settings"),
    "no optimizer": lambda content: content.update(optimizer_states=[]),
    "no momentum": lambda content: content["optimizer_states"][0].update(state={}),
    "another momentum": lambda all_: all_["optimizer_states"][0].update(state={0: {"momentum_buffer": torch.ones(3)}}),
    "no schedule": lambda content: content.update(lr_schedulers=[]),
    "late schedule": lambda content: content["lr_schedulers"][0].update(last_epoch=1),
    "epoch a text": lambda content: content.update(epoch="one"),
    "loops": lambda content: content["loops"]["fit_loop"].update({"epoch_progress": 3}),
    "callbacks": lambda content: content["callbacks"].update(Stopwatch=[1]),
    "a weight": lambda content: content["state_dict"].update({"network.head.bias": torch.zeros(3)}),
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_checkpoint_cannot_be_resumed(damage: str, tmp_path: Path) -> None:
    content = checkpoint(trained()) | {"epoch": 0}
    DAMAGES[damage](content)
    torch.save(content, tmp_path / "last.ckpt")
    words = "holds a network, but no optimizer state" if damage in ("weights alone", "version 0.1") else "is damaged"
    with pytest.raises(UserError, match=rf"last.ckpt.*{words}"):
        train(training_arguments(tmp_path, "new", "--ckpt_path", str(tmp_path / "last.ckpt")))
    assert tree(tmp_path).keys() == {"last.ckpt"}


def test_a_run_without_its_log_cannot_be_resumed(tmp_path: Path) -> None:
    run = copy_of_run(tmp_path / "run")
    (run / "metrics.csv").unlink()
    (run / "summary.json").unlink()
    arguments = training_arguments(tmp_path, "run", "--ckpt_path", str(run / "checkpoints" / "last.ckpt"))
    with pytest.raises(UserError, match=r"metrics.csv is missing or no file: a resumed training"):
        train(arguments)
    for content, words in (("a,b\n1,2\n", "is not the log of a training"), ("step\n1\n", "has no row of step 8")):
        (run / "metrics.csv").write_text(content)
        with pytest.raises(UserError, match=rf"metrics.csv {words}"):
            train(arguments)
