"""Run folders: what is read back, which run is the newest, and what is refused."""

import json
import os
import pickle
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from tiny_runs import checkpoint, copy_of_run, trained, weights

from bnood.errors import UserError
from bnood.training.run_folder import CHECKPOINT, load_classifier, load_run, newest_run, read_checkpoint


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


def test_weights_stored_as_float16_are_read_as_float32(tmp_path: Path) -> None:
    content = checkpoint(trained())
    content["state_dict"] = {k: v.half() if v.is_floating_point() else v for k, v in content["state_dict"].items()}
    content["hyper_parameters"]["compile"] = True
    torch.save(content, tmp_path / "last.ckpt")
    state = load_classifier(tmp_path / "last.ckpt").state_dict()
    assert all(torch.equal(state[key], value.to(state[key].dtype)) for key, value in content["state_dict"].items())
    assert {value.dtype for value in state.values()} == {torch.float32, torch.int64}


def test_reading_a_run_imports_neither_lightning_nor_plots() -> None:
    code = "import sys, pathlib; from bnood.training.run_folder import load_run; load_run(pathlib.Path(sys.argv[1]))"
    command = [sys.executable, "-X", "importtime", "-c", code, str(trained())]
    ran = subprocess.run(command, capture_output=True, text=True, check=True)
    imported = {line.rpartition("|")[2].strip().partition(".")[0] for line in ran.stderr.splitlines()}
    assert "torch" in imported and not imported & {"lightning", "torchmetrics", "wandb", "matplotlib", "pandas"}


def test_groups_are_those_of_gn_alone() -> None:
    config = load_run(trained()).config["model"] | {"groups": 2}
    assert load_classifier(trained() / CHECKPOINT, config).norm == "bn"
    with pytest.raises(UserError, match="groups 4, but the config says 2"):
        load_classifier(trained("gn") / CHECKPOINT, config | {"norm": "gn"})


def test_newest_run_is_the_one_whose_checkpoint_is(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"no run with a checkpoint in .*: train one with scripts/train.py"):
        newest_run(tmp_path / "none")
    for name, time in (("b", 3_000), ("a", 2_000), ("c", 1_000)):
        file = tmp_path / name / CHECKPOINT
        file.parent.mkdir(parents=True)
        file.touch()
        os.utime(file, (time, time))
    (tmp_path / "untrained").mkdir()
    (tmp_path / "notes.txt").write_text("a file among the runs")
    assert newest_run(tmp_path) == tmp_path / "b"


def cut(length: int) -> Callable[[Path], object]:
    return lambda path: path.write_bytes(path.read_bytes()[:length])


def text(content: str) -> Callable[[Path], object]:
    return lambda path: path.write_text(content)


def saved(change: Callable[[dict[str, Any]], Any]) -> Callable[[Path], object]:
    """Write the checkpoint again, as ``change`` makes it of the old one."""
    return lambda path: torch.save(change(torch.load(path, weights_only=True)), path)


def hyper_parameter(key: str, value: object) -> Callable[[Path], object]:
    return saved(lambda content: content | {"hyper_parameters": content["hyper_parameters"] | {key: value}})


def weight(value: object) -> Callable[[Path], object]:
    return saved(lambda content: content | {"state_dict": content["state_dict"] | {"network.head.bias": value}})


class Pickled:
    """Something that only a pickle which runs code could bring back."""


CONFIG, SUMMARY, LAST = "config.yaml", "summary.json", str(CHECKPOINT)
SPOILT: list[tuple[str, Callable[[Path], object], str]] = [
    (CONFIG, Path.unlink, "config.yaml is missing: .* is not a run of scripts/train.py"),
    (CONFIG, text("data: [1"), "config.yaml is not readable as YAML"),
    (CONFIG, lambda path: path.write_bytes(b"\xff\xfe\x00a"), "config.yaml is not readable"),
    (CONFIG, text(""), "config.yaml holds nothing; expected a mapping"),
    (CONFIG, text("lr: 1"), "config.yaml: expected a number"),
    (CONFIG, text("{data: {}, model: [], seed_everything: 0}"), "config.yaml: expected a number"),
    (CONFIG, text("{data: {}, model: {}, seed_everything: 0}"), "config.yaml: expected under data a name"),
    (CONFIG, text("data: {}\ndata: {}"), "config.yaml: line 2: the key data is given"),
    (SUMMARY, cut(20), "summary.json is not readable as JSON"),
    (SUMMARY, text("[1]"), "summary.json is not readable as JSON; expected a mapping"),
    (LAST, Path.unlink, "last.ckpt is missing: the run has not finished its first epoch"),
    (LAST, cut(0), "last.ckpt is not a readable checkpoint .truncated"),
    (LAST, cut(-1), "last.ckpt is not a readable checkpoint .truncated"),
    (LAST, text("no checkpoint"), "last.ckpt is not a readable checkpoint"),
    (LAST, lambda path: path.write_bytes(pickle.dumps(Pickled())), "last.ckpt is not a readable checkpoint"),
    (LAST, saved(lambda content: content | {"more": Pickled()}), "last.ckpt is not a readable checkpoint"),
    (LAST, saved(lambda _: torch.zeros(3)), "last.ckpt is not a checkpoint of bnood"),
    (LAST, saved(lambda content: content["state_dict"]), "is not a checkpoint of bnood"),
    (LAST, hyper_parameter("norm", "gn"), "norm 'gn', but the config says 'bn'"),
    (LAST, hyper_parameter("depth", None), "depth None, but the config says 20"),
    (LAST, hyper_parameter("image_size", "x"), "last.ckpt .*model.image_size is x"),
    (LAST, saved(lambda content: content | {"hyper_parameters": [1]}), "damaged: expected .* hyper_parameters"),
    (LAST, saved(lambda content: content | {"state_dict": []}), "damaged: expected .* state_dict"),
    (LAST, weight("text"), "damaged: expected .* state_dict"),
    (LAST, weight(torch.zeros(3)), "does not fit the network that its own settings"),
]


@pytest.mark.parametrize(("file", "spoil", "words"), SPOILT, ids=[f"{file}: {words}" for file, _, words in SPOILT])
def test_a_spoilt_run_is_one_line(file: str, spoil: Callable[[Path], object], words: str, tmp_path: Path) -> None:
    run = copy_of_run(tmp_path / "run")
    spoil(run / file)
    with pytest.raises(UserError, match=words) as error:
        load_run(run)
    assert "\n" not in str(error.value)


def test_what_is_not_there_is_named(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"none.ckpt: no such checkpoint"):
        read_checkpoint(tmp_path / "none.ckpt")
    (tmp_path / "file").touch()
    for place in ("none", "file"):
        with pytest.raises(UserError, match=f"{place}: no such run folder"):
            load_run(tmp_path / place)
