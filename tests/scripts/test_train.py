"""``scripts/train.py`` as a user runs it: once as a process of its own, the rest through the function it calls."""

import json
import shlex
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import lightning as L
import numpy as np
import pytest
from refusal import refusal, tree
from tiny_runs import SIZE, equal_weights, trained, training_arguments, write_set

from bnood.errors import run_door
from bnood.training.run_folder import load_run
from bnood.training.train import train

ROOT = Path(__file__).parents[2]


def test_the_script_trains_by_a_config_and_its_overrides(tmp_path: Path) -> None:
    arguments = training_arguments(Path("runs"), "mine", "--model.norm", "ln", "--trainer.max_epochs", "1")
    config = ["--config", str(ROOT / "configs" / "demo.yaml")]
    ran = subprocess.run(
        [sys.executable, str(ROOT / "scripts" / "train.py"), *config, *arguments],
        cwd=tmp_path,
        capture_output=True,
        text=True,
    )
    assert ran.returncode == 0, ran.stderr
    assert ran.stdout.startswith("runs/mine: validation accuracy 0.")
    assert "images/s" in ran.stdout and "Traceback" not in ran.stderr
    files = {name for name, content in tree(tmp_path / "runs" / "mine").items() if content is not None}
    assert files == {"checkpoints/last.ckpt", "config.yaml", "metrics.csv", "summary.json"}
    run = load_run(tmp_path / "runs" / "mine")
    assert run.norm == "ln"
    assert (run.config["data"]["augmentation"], run.config["model"]["warmup"]) == ("flip", 0.25)  # the config's
    assert json.loads((run.folder / "summary.json").read_text())["epochs"] == 1


@pytest.mark.parametrize("name", ["cifar10_small", "cifar10_resnet18"])
def test_the_configs_are_read_and_lack_the_images_alone(
    name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config = str(ROOT / "configs" / f"{name}.yaml")
    arguments = ["--config", config, "--data.root", str(tmp_path / "data"), "--runs", str(tmp_path / "runs")]
    line = refusal(train, arguments, capsys)
    assert "cifar10: the images of split 'train' aren't there" in line and "--data.download true" in line
    assert tree(tmp_path) == {}


CONFIGS: list[tuple[str, str]] = [
    ("model: {norn: gn}", "there is no key model.norn (did you mean model.norm?)"),
    ("modle: {norm: gn}", "there is no key modle"),
    ("model: {norm: batch}", "model.norm is 'batch'; expected bn or ln or gn or none"),
    ("trainer: {max_epochs: many}", "trainer.max_epochs is 'many'; expected a whole number"),
    ("model: [1", "is not readable as YAML"),
    ("- model", "holds a list; expected a mapping"),
    ("", "holds nothing; expected a mapping"),
    ("model: {norm: bn}\nmodel: {norm: gn}", "line 2: the key model is given a second time"),
    ("trainer:", "line 1: the key trainer has no value"),
]


@pytest.mark.parametrize(("text", "words"), CONFIGS, ids=[text or "empty" for text, _ in CONFIGS])
def test_what_is_wrong_in_a_config_names_the_file(
    text: str, words: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config = tmp_path / "mine.yaml"
    config.write_text(text)
    line = refusal(train, ["--config", str(config), *training_arguments(tmp_path / "runs", "new")], capsys)
    assert line.startswith(f"error: {config}") and words in line
    assert tree(tmp_path).keys() == {"mine.yaml"}


def test_wrong_options_are_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for more, words in (
        (["--modle.norm", "gn"], "there is no option --modle.norm (did you mean --model.norm?)"),
        (["--seed", "1"], "there is no option --seed"),
        (["--trainer.max_epoch", "1"], "there is no option --trainer.max_epoch (did you mean --trainer.max_epochs?)"),
        (["--model.width", "90000"], "not enough memory"),
        (["gn"], "'gn' is not expected here: every setting has the form --key value"),
        (["--config", str(tmp_path / "none.yaml")], "none.yaml: no such config file"),
        (["--trainer.max_epochs", "two"], "trainer.max_epochs is 'two'; expected a whole number or null"),
        (["--data.ood", "[marks, grunds]"], "data.ood: 'grunds' is no known set, "),
        (["--data.ood", "[svnh]"], "did you mean 'svhn'?"),
        (["--data.in_distribution", "cifra10"], "data.in_distribution: 'cifra10' is no known set, "),
    ):
        assert words in refusal(train, training_arguments(tmp_path / "runs", "new", *more), capsys)
    assert tree(tmp_path) == {}


def test_a_file_where_the_runs_should_be(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "runs").write_text("mine")
    line = refusal(train, training_arguments(tmp_path / "runs", "new"), capsys)
    assert f"{tmp_path / 'runs' / 'new' / 'config.yaml'} can't be written" in line
    assert tree(tmp_path) == {"runs": b"mine"}


def test_a_truncated_checkpoint_cannot_be_resumed(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    last = tmp_path / "last.ckpt"
    last.write_bytes((trained() / "checkpoints" / "last.ckpt").read_bytes()[:-100])
    arguments = training_arguments(tmp_path / "runs", "new", "--ckpt_path", str(last), "--trainer.max_epochs", "3")
    assert f"{last} is not a readable checkpoint (truncated" in refusal(train, arguments, capsys)
    assert tree(tmp_path).keys() == {"last.ckpt"}


class Signal(L.Callback):
    """Ctrl-C or SIGTERM in the second epoch."""

    def __init__(self, number: int) -> None:
        self.number = number

    def on_train_epoch_start(self, trainer: L.Trainer, pl_module: Any) -> None:
        if trainer.current_epoch == 1:
            signal.raise_signal(self.number)


def test_sigterm_is_one_line_and_leaves_what_can_be_resumed(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    arguments = training_arguments(tmp_path, "[red]new[/red]")
    before = signal.getsignal(signal.SIGTERM)
    with pytest.raises(SystemExit) as ended:
        run_door(lambda: train(arguments, callbacks=[Signal(signal.SIGTERM)]))
    signal.signal(signal.SIGTERM, before)
    assert ended.value.code == 143 and capsys.readouterr().err.splitlines()[-1] == "terminated"
    files = {name for name, content in tree(tmp_path / "[red]new[/red]").items() if content is not None}
    assert files == {"checkpoints/last.ckpt", "config.yaml", "metrics.csv"}
    folder = train([*arguments, "--ckpt_path", str(tmp_path / "[red]new[/red]" / "checkpoints" / "last.ckpt")])
    assert equal_weights(folder, trained())
    assert capsys.readouterr().out.startswith(f"{folder}: validation accuracy")  # brackets and all


def test_an_interrupted_training_says_how_to_go_on(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        run_door(lambda: train(training_arguments(tmp_path / "runs", "new"), callbacks=[Signal(signal.SIGINT)]))
    assert ended.value.code == 130
    printed = capsys.readouterr()
    assert printed.err.splitlines()[-1] == "interrupted"
    (line,) = [line for line in printed.out.splitlines() if line.startswith("to go on: ")]
    folder = train(shlex.split(line)[5:])  # after "to go on: python scripts/train.py"
    assert equal_weights(folder, trained())


def test_data_that_lack_labels_are_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = write_set(tmp_path / "plain.npz", np.zeros((9, SIZE, SIZE, 3), np.uint8))
    arguments = training_arguments(tmp_path / "runs", "new", "--data.in_distribution", str(file))
    line = refusal(train, arguments, capsys)
    assert f"{file}: training needs labels (in an .npz: int64 [N]), but the set has none" in line
    assert tree(tmp_path).keys() == {"plain.npz"}
