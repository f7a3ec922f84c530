"""``scripts/train.py`` as a user runs it: once as a process of its own, the rest through the function it calls."""

import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import lightning as L
import pytest
from refusal import refusal, tree
from tiny_runs import equal_weights, trained, training_arguments

from bnood.errors import run_door
from bnood.training.run_folder import load_run
from bnood.training.train import train

ROOT = Path(__file__).parents[2]


def test_the_script_trains_by_a_config_and_its_overrides(tmp_path: Path) -> None:
    arguments = training_arguments(Path("runs"), "mine", "--model.norm", "ln", "--trainer.max_epochs", "1")
    command = [sys.executable, str(ROOT / "scripts" / "train.py"), "--config", str(ROOT / "configs" / "demo.yaml")]
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    ran = subprocess.run([*command, *arguments], cwd=tmp_path, env=environment, capture_output=True, text=True)
    assert ran.returncode == 0, ran.stderr
    assert ran.stdout.startswith("runs/mine: validation accuracy 0.")
    assert "images/s" in ran.stdout and "Traceback" not in ran.stderr
    run = load_run(tmp_path / "runs" / "mine")
    assert (run.norm, run.summary["epochs"]) == ("ln", 1)
    assert (run.config["data"]["augmentation"], run.config["model"]["warmup"]) == ("flip", 0.25)  # the config's


@pytest.mark.parametrize("name", ["cifar10_small", "cifar10_resnet18"])
def test_the_configs_lack_the_images_alone(name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    config = str(ROOT / "configs" / f"{name}.yaml")
    arguments = ["--config", config, "--data.root", str(tmp_path / "data"), "--runs", str(tmp_path / "runs")]
    line = refusal(train, arguments, capsys)
    assert "cifar10: the images of split 'train' aren't there" in line and "--data.download true" in line
    assert tree(tmp_path) == {}


class Signal(L.Callback):
    """Ctrl-C or SIGTERM in the second epoch."""

    def __init__(self, number: int) -> None:
        self.number = number

    def on_train_epoch_start(self, trainer: L.Trainer, pl_module: Any) -> None:
        if trainer.current_epoch == 1:
            signal.raise_signal(self.number)


@pytest.mark.parametrize(("number", "status", "line"), [(15, 143, "terminated"), (2, 130, "interrupted")])
def test_a_signal_is_one_line_and_leaves_what_can_be_resumed(
    number: int, status: int, line: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = training_arguments(tmp_path, "[bold]new")
    before = signal.getsignal(signal.SIGTERM)
    with pytest.raises(SystemExit) as ended:
        run_door(lambda: train(arguments, callbacks=[Signal(number)]))
    signal.signal(signal.SIGTERM, before)
    assert ended.value.code == status and capsys.readouterr().err.splitlines()[-1] == line
    files = {name for name, content in tree(tmp_path / "[bold]new").items() if content is not None}
    assert files == {"checkpoints/last.ckpt", "config.yaml", "metrics.csv"}
    folder = train([*arguments, "--ckpt_path", str(tmp_path / "[bold]new" / "checkpoints" / "last.ckpt")])
    assert equal_weights(folder, trained())
    assert capsys.readouterr().out.startswith(f"{folder}: validation accuracy")  # brackets and all
