"""Run folders: what is read back, which run is the newest, and what is refused."""

import json
import subprocess
import sys
from pathlib import Path

import torch
import yaml
from ship_networks import ship
from tiny_runs import checkpoint, copy_of_run, trained, weights

from bnood.training.run_folder import load_run


def test_a_run_is_read_back_as_it_was_trained(tmp_path: Path) -> None:
    folder = trained()
    run = load_run(folder)
    assert (run.name, run.seed, run.folder, run.checkpoint) == ("bn", 0, folder, folder / "checkpoints" / "last.ckpt")
    assert run.config == yaml.safe_load((folder / "config.yaml").read_text())
    assert run.summary == json.loads((folder / "summary.json").read_text())
    state, saved = run.classifier.state_dict(), weights(folder)
    assert state.keys() == saved.keys()
    assert all(torch.equal(state[key], saved[key]) for key in saved)
    assert not any(module.training for module in run.classifier.modules())
    interrupted = copy_of_run(tmp_path / "run")
    (interrupted / "summary.json").unlink()
    assert load_run(interrupted).summary == {}


def test_a_shipped_run_has_the_weights_in_float16_and_the_statistics_as_they_were(tmp_path: Path) -> None:
    run = load_run(ship(trained(), tmp_path))
    state, whole, stored = run.classifier.state_dict(), weights(trained()), checkpoint(run.folder)["state_dict"]
    assert all(stored[key].dtype == (torch.float16 if value.ndim > 1 else value.dtype) for key, value in whole.items())
    assert all(torch.equal(state[key], value.to(stored[key].dtype).to(value.dtype)) for key, value in whole.items())
    assert {value.dtype for value in state.values()} == {torch.float32, torch.int64}
    assert run.config["data"]["root"] is None and run.summary == load_run(trained()).summary


def test_reading_a_run_imports_neither_lightning_nor_plots() -> None:
    code = "import sys, pathlib; from bnood.training.run_folder import load_run; load_run(pathlib.Path(sys.argv[1]))"
    command = [sys.executable, "-X", "importtime", "-c", code, str(trained())]
    ran = subprocess.run(command, capture_output=True, text=True, check=True)
    imported = {line.rpartition("|")[2].strip().partition(".")[0] for line in ran.stderr.splitlines()}
    assert "torch" in imported and not imported & {"lightning", "torchmetrics", "wandb", "matplotlib", "pandas"}
