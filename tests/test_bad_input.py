"""What users get wrong, as one table: what is given, and words that the one line has to say.

A row runs a script's function in this process, as the script does, or calls the library. Each has to end in one line
(exit status 2, or ``UserError``) that names the true cause, and to write nothing. ``@name`` is a file of
``bad_files.py``. Files with damaged pixels, statistics, scores and metrics are tested beside their code.
"""

import re
import shlex
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from bad_files import FILES, good, scales
from bad_rows import NETWORK, RUN, TRAIN
from check_recalibration import main as check
from eval_ood import main as evaluate
from lab import main as lab
from refusal import refusal, tree
from study import main as study
from tiny_runs import evaluation_arguments, trained, training_arguments
from tiny_study import TRAINING, lab_config, study_config
from torch import nn

import bnood
from bnood.errors import UserError
from bnood.training.train import train

NAN = float("nan")
SETS = {"id": "digits", "ood": ["textures"]}  # of given networks


def network(**entry: Any) -> dict[str, Any]:
    """A study of one network that is given."""
    return {"networks": [entry], "sets": SETS, "claim": {"primary_sets": ["textures"]}}


def recipe(section: str, **changes: Any) -> dict[str, Any]:
    return {"recipe": {**TRAINING, section: {**TRAINING[section], **changes}}}


STUDY: list[tuple[str | dict[str, Any], str]] = [
    ("--executor.backend cloud", "'cloud'; expected sequential or loky"),
    ("--judge_only true", "tiny: there is no such study to be judged; run it without --judge_only true"),
    ("--name ../x", "name is '../x': expected the name of a folder"),
    ("--runs /dev/null", "/dev/null/tiny/study.yaml can't be written: Not a directory"),
    ("--networks '[{trainin: a}]'", "trainin"),
    ("--sets.root /nowhere", "'tiny' is no known set, and neither a folder here nor below the data root /nowhere"),
    ("--sets.ood []", "sets.ood is empty: a study needs at least one OOD set"),
    ("--executor.workers 0", "executor.workers is 0; it has to be at least 1"),
    ("--claim.level 2", "claim.level is 2.0; expected a number from 0.5 to below 1"),
    ("--claim.primary_sets []", "claim.primary_sets is (): expected a list of one or more names"),
    ({"networks": []}, "networks is empty: expected one or more entries with training, run or model"),
    ({"networks": [{"run": "runs/no*"}]}, "networks: run runs/no* has no checkpoints/last.ckpt; expected a run folder"),
    ({"networks": [{"model": f"timm:{n}", "name": "a"} for n in "xy"], "sets": SETS}, "is there twice, by its name or"),
    ({"networks": [{"model": "x", "name": n, "family": "f"} for n in "ab"], "sets": SETS}, "(f bn, seed 0) is there"),
    ({"networks": [{"model": "timm:x", "name": "a/b"}]}, "networks: name is 'a/b'; expected the name of a folder"),
    ({"networks": [{"model": "bad_files:good"}], "sets": {}}, "sets.id is missing: name the ID images of the models"),
    ({"entry": {"run": "x"}}, "networks: an entry has training and run; expected one of training, run and model"),
    ({"entry": {"training": "none.yaml"}}, "none.yaml: no such config file"),
    ({"entry": {"seeds": [-1]}}, "networks: seeds has -1; expected whole numbers from 0"),
    ({"entry": {"overrides": {"gn": {}}}}, "overrides.gn: there is no such norm in norms (bn, ln)"),
    ({"entry": {"overrides": {"ln": {"data.image_size": 8}}}}, "sets data.image_size itself, the same for all norms"),
    ({"entry": {"overrides": {"ln": {"nothing": 3}}}}, "with overrides.ln): there is no option --nothing"),
    ({"entry": {"family": "a/b"}}, "family is 'a/b'; expected a name without spaces and slashes"),
    ({"entry": {"head": "x"}}, "has head, which is for model"),
    (recipe("data", in_distribution="nowhere"), "'nowhere' is no known set"),
    (recipe("model", nothing=3), "training.yaml: there is no key model.nothing"),
    (network(model="bad_files:none"), "bad_files:none cannot be made (AttributeError"),
    ({"at runs/tiny/study.yaml": "x: ["}, "study.yaml is not readable as YAML"),
    ({"at runs/tiny/study.yaml": "name: x"}, "was made with name x, but the config says tiny: choose another name"),
    ({"at runs/tiny/bn-s0/config.yaml": "x: 1"}, "config.yaml: expected a number (seed_everything) and the sections"),
    ({"at runs/tiny/bn-s0/checkpoints/last.ckpt": ""}, "config.yaml is missing: how the network was trained is un"),
    ({"at training.yaml": "model: {norm: bn}\nmodel: {norm: gn}"}, "training.yaml: line 2: the key model is given a"),
]

LAB: list[tuple[str | dict[str, Any], str]] = [
    ("--workers 0", "workers is 0; expected a whole number from 1 to 1000"),
    ("--images @unlabelled.npz", "unlabelled.npz: images are 16 x 16 pixels; expected 32 x 32"),
    ("--images @dark.npz", "dark: labels are 0 to 0; expected two classes or more, numbered below 80"),
    ("--images @gap.npz", "gap: labels are 0 to 1099511627776; expected two classes or more, numbered below 80"),
    ({"grids": []}, "grids is empty; give a config"),
    ({"grid": {"norms": []}}, "the grid of mlp: norms is empty; expected one or more"),
    ({"grid": {"norms": ["bn", "bn"]}}, "grids: a network is in two of them; expected each network once"),
    ({"grid": {"norms": ["gn"], "width": 9}}, "width is 9; GroupNorm's 8 groups need a multiple of 8"),
    ({"grid": {"learning_rate": NAN}}, "learning_rate is nan; expected a number above 0"),
    ({"grid": {"architecture": "plain"}}, "depth is 2; expected a whole number from 3 to 1000"),
    ({"grid": {"depth": 1000, "width": 8000}}, "depth 1000, width 8000 and batch_size 20 need 6e+10 numbers in memory"),
    ({"train_count": 500}, "bright has 80 images with labels; train_count 500 and validation_count 20 need 520 with"),
    ({"at runs/tiny/networks/mlp-sigmoid-bn-s0.json": "[]"}, "mlp-sigmoid-bn-s0.json or its .parquet is damaged"),
    ({"at runs/tiny/networks/mlp-sigmoid-bn-s0.json": 100_000 * "["}, "is damaged (RecursionError: maximum recursion"),
]

CHECK = {
    "": "the following arguments are required: id, traffic",
    "--id @id.npz --traffic @one.npz": "one: 1 images are too few to advise; give at least 40",
    "--id @id.npz --traffic @large.npz": "good cannot take a batch [",
    "--id @id.npz --traffic @ood.npz --ood_fraction 0": "the OOD fraction is 0.0; it has to lie between 0 and 1",
}


BATCH = torch.zeros(4, 3, 8, 8)
IDS = bnood.images(np.zeros((8, 8, 8, 3), np.uint8))

LIBRARY: list[tuple[Callable[[], object], str]] = [
    (lambda: bnood.images(3), "it is a int; expected the name or path of a set, or a map-style dataset"),
    (lambda: bnood.images("digits", split="best"), "digits: there is no split 'best'; expected one of train, val"),
    (lambda: bnood.images("digits", image_size=64), "digits: drawn at 32 x 32 pixels; expected an image size of 32"),
    (lambda: bnood.images("a\0b.npz"), "it cannot be read (embedded null byte)"),
    (lambda: bnood.images([]), "list: there are no images in it; expected at least one"),
    (lambda: bnood.images([0, 0], image_size=32), "list: image_size and count are for names and paths; expected nei"),
    (lambda: bnood.images("~nobody-of-this-name/x"), "~nobody-of-this-name/x: it cannot be read (No such file"),
    (lambda: bnood.images("x" * 300), "xx: it cannot be read (OSError: [Errno 36] File name too long"),
    (lambda: bnood.BatchNormStatistics({"a": 1}), "layer 'a': expected LayerStatistics, not int"),
    (lambda: bnood.Network(good), "a network needs a torch.nn.Module, not function"),
    (lambda: bnood.Network(good(), transform=3), "transform has to be callable, not int"),
    (lambda: bnood.Network(good(), head="haed"), "Sequential has no layer 'haed'"),
    (lambda: bnood.Network(good()).head, "call probe(batch) or outputs(batch) first, which find the head"),
    (lambda: bnood.Network(scales()).outputs(BATCH), "name the layer whose input are the features (head="),
    (lambda: bnood.Network(good()).outputs(torch.zeros(4, 3, 9, 9)), "Sequential cannot take a batch [4, 3, 9, 9] ("),
    (lambda: bnood.evaluate(bnood.Network(good()), IDS, ood_sets={}), "no OOD set was named: give --ood"),
    (lambda: bnood.evaluate(bnood.Network(good()), IDS, ood_sets={"a": IDS}, statistic="x"), "statistic"),
    (lambda: bnood.evaluate(bnood.Network(good()), IDS, ood_sets={}, calibration="v1"), "choose matched or v0.1"),
    (lambda: bnood.evaluate(bnood.Network(good()), IDS, ood_sets={"a": "x.npz"}), "a is a str; expected images, as"),
    (lambda: bnood.evaluate(bnood.Network(good()), IDS, ood_sets={"a": IDS}), "a are the same images as id_set: give"),
    (lambda: bnood.evaluate(bnood.Network(good()), IDS, ood_sets=[IDS]), "ood_sets is a list; expected a dict"),
    (lambda: bnood.evaluate(bnood.Network(good()), IDS, ood_sets={}, seed=None), "seed is None; expected a whole num"),
    (lambda: bnood.evaluate(bnood.Network(good()), IDS, ood_sets={}, placebo="no"), "placebo is 'no'; expected true"),
    (lambda: bnood.evaluate(bnood.Network(good()), IDS, ood_sets={}, detectors=3), "3 is no list of names: give one"),
    (lambda: bnood.evaluate(bnood.Network(good()), IDS, ood_sets={"": IDS}), "a set of images has the name ''"),
    (lambda: bnood.Network(good().to("meta")), "layer '0' is on the meta device, which holds no values"),
    (lambda: bnood.evaluate(bnood.Network(good()), IDS, ood_sets={}, options={}), "options is a dict; expected Evalu"),
    (lambda: bnood.evaluate(good(), IDS, ood_sets={}), "network is a Sequential; expected bnood.Network(model, trans"),
    (lambda: bnood.check_recalibration(good(), IDS, IDS), "network is a Sequential; expected bnood.Network(model"),
    (lambda: bnood.check_recalibration(bnood.Network(good()), IDS, IDS), "traffic are the same images as id_set"),
    (lambda: bnood.read_statistics(bnood.Network(good())), "the model is a Network; expected a torch.nn.Module (a Ne"),
    (lambda: bnood.Network(torch.jit.script(good())), "is scripted or traced, which compiles its BatchNorm's stati"),
    (lambda: bnood.Network(nn.Sequential(nn.LazyBatchNorm2d())), "layer '0' is lazy and has no channels yet: run one"),
    (lambda: bnood.Network(good(), call=lambda model, x: x["a"]).outputs(BATCH), "Sequential cannot take a batch [4"),
]

TABLES: dict[str, Any] = {
    "train": TRAIN, "run": RUN, "network": NETWORK, "study": STUDY, "lab": LAB, "check": CHECK, "library": LIBRARY
}  # fmt: skip
ROWS: list[tuple[str, Any, str]] = [
    *((door, *row) for door, rows in TABLES.items() for row in (rows.items() if isinstance(rows, dict) else rows)),
    ("evaluate", "--id @id.npz", "--model needs images: give --ood (names, .npz files or folders)"),
    ("evaluate", "--runs @folder", "folder/: train one with scripts/train.py, or name it with --run"),
]


def config_of(door: str, folder: Path, given: Any) -> str:
    """The config of a study or a lab with a row's changes; a key that begins with "at " is a file and its content."""
    changes = {} if isinstance(given, str) else given
    files = {folder / key[3:]: text for key, text in changes.items() if key.startswith("at ")}
    changes = {key: value for key, value in changes.items() if not key.startswith("at ")}
    config = study_config(folder, **changes) if door == "study" else lab_config(folder, **changes)
    for file, text in files.items():
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(text)
    return str(config)


def call_of(door: str, given: Any, folder: Path) -> tuple[Any, list[str]]:
    """The function of a script and its arguments; files that a row names are made first."""
    config = config_of(door, folder, given) if door in ("study", "lab") else ""
    typed = given if isinstance(given, str) else ""
    if typed.startswith("yaml "):
        (folder / "mine.yaml").write_text(typed.removeprefix("yaml "))
        typed = "--config @mine.yaml"
    if door == "network":
        typed = f"--id @id.npz --ood @ood.npz {typed}"
    if door in ("network", "check") and "--model" not in typed:
        typed = f"--model bad_files:good {typed}"
    for name in FILES:
        if re.search(rf"@{re.escape(name)}(?![\w.-])", typed):
            FILES[name](folder / name)
    arguments = [re.sub("@(?=[a-z])", f"{folder}/", each) for each in shlex.split(typed)]  # and not batch:8@0.5
    out = ["--out", str(folder / "out")]
    if door == "run":
        run = ["--run", str(trained()), "--ood", "marks", "--statistics", "running"]
        return evaluate, evaluation_arguments(*run, *out, *arguments)
    if door == "check":
        return check, arguments
    main, options = {
        "train": (train, training_arguments(folder / "runs", "new")),
        "network": (evaluate, ["--statistics", "running,recalibrated:target", "--detectors", "msp", *out]),
        "evaluate": (evaluate, []), "study": (study, ["--config", config]), "lab": (lab, ["--config", config]),
    }[door]  # fmt: skip
    return main, [*options, *arguments]


@pytest.mark.parametrize(("door", "given", "words"), ROWS, ids=[f"{row[0]}-{n}" for n, row in enumerate(ROWS)])
def test_bad_input_is_one_line_that_names_the_cause_and_writes_nothing(
    door: str, given: Any, words: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    monkeypatch.chdir(tmp_path)
    if door == "library":
        with pytest.raises(UserError) as caught:
            given()
        line = str(caught.value)
    else:
        main, arguments = call_of(door, given, tmp_path)
        before = tree(tmp_path) | {"runs": None}
        line = refusal(main, arguments, capsys)
        assert tree(tmp_path) | {"runs": None} == before
    assert words in line and "\n" not in line
