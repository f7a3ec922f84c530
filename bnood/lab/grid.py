"""The normalisation lab: a grid of small networks, trained by the main job's code and recorded while they train.

``runs/<lab>/`` holds one run folder per cell in ``cells/``, as ``scripts/train.py`` writes it, with ``cell.json`` once
it is finished; and these tables of all finished cells, whose rows begin with the keys network, architecture,
activation, norm, norm_position, learning_rate, seed, step, epoch (:func:`collect`):

- ``lab.parquet``: layer (from 1 at the input), layers, quantity (see :mod:`bnood.lab.recorder`), value.
- ``histograms.parquet``: layer, layers, mode (training; of BN nets also evaluation, with the running averages),
  bin_low, bin_high (infinite at both ends), share of pre-activations.
- ``accuracy.csv``: layers, train_accuracy, validation_accuracy after each epoch.
- ``lab.json``: the configuration, versions, commit, machine, and for each cell its seconds and what recording took.
- ``checks.json`` and ``checks.csv``: the statements and what became of them (:mod:`bnood.lab.checks`).
"""

import csv
import json
import math
import shutil
import time
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, field
from itertools import product
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pandas as pd

from bnood.data.sources import load_images
from bnood.data.synthetic import SYNTHETIC
from bnood.errors import UserError
from bnood.lab.recorder import Recorder
from bnood.lab.thresholds import CheckOptions
from bnood.networks.hidden_layer import Activation, NormPosition
from bnood.networks.norm import Norm
from bnood.study.executors import ExecutorOptions
from bnood.tracking import TrackingOptions
from bnood.training.classifier import NonFiniteLoss
from bnood.training.provenance import commit, machine, versions
from bnood.training.run_folder import write_beside
from bnood.training.train import train

Setting = bool | int | float | str

# What a lab decides itself, so that its settings may not.
FIXED = (
    *("config", "name", "runs", "seed_everything", "ckpt_path", "keep_epochs", "data.root", "data.download"),
    *("model.architecture", "model.depth", "model.width", "model.norm", "model.activation", "model.norm_position"),
    "model.learning_rate",
)


@dataclass
class Grid:
    """Networks of one architecture: every activation with every norm.

    Args:
        architecture: ``mlp`` or ``plain``.
        depth: hidden layers.
        width: units (``mlp``) or channels (``plain``) of each.
        learning_rate: the schedule's peak, the same for all networks of the grid.
        activations: any of ``sigmoid``, ``relu``, ``tanh`` and ``gelu``.
        norms: any of ``none``, ``bn``, ``ln`` and ``gn``.
        norm_positions: ``before`` and/or ``after`` the activation; without a norm, ``before`` stands for both.
        suffix: ends the names of the grid's networks, to tell them from those of another grid. The checks take
            networks without a suffix for the main grid, those with ``high`` for the one at a high learning rate.
        record_every: steps between two records; choose it so that recording takes a tenth of the training at most.
        probe_images: images of a record.
        settings: of the training, beside the lab's, under the names of ``scripts/train.py``.
    """

    architecture: Literal["mlp", "plain"]
    depth: int
    width: int
    learning_rate: float
    activations: list[Activation] = field(default_factory=lambda: ["sigmoid", "relu"])
    norms: list[Norm] = field(default_factory=lambda: ["none", "bn", "ln", "gn"])
    norm_positions: list[NormPosition] = field(default_factory=lambda: ["before"])
    suffix: str = ""
    record_every: int = 50
    probe_images: int = 256
    settings: dict[str, Setting] = field(default_factory=dict)

    def __post_init__(self) -> None:
        where = f"the grid of {self.architecture}{f', {self.suffix}' if self.suffix else ''}"
        for name in ("activations", "norms", "norm_positions"):
            if not getattr(self, name):
                raise UserError(f"{where}: {name} is empty; expected one or more")
        if "/" in self.suffix or self.suffix in (".", ".."):
            raise UserError(f"{where}: suffix is {self.suffix!r}: it ends the names of folders, so it can't be a path")
        for name in ("depth", "width", "record_every", "probe_images"):
            if getattr(self, name) < 1:
                raise UserError(f"{where}: {name} is {getattr(self, name)}; expected a whole number from 1 up")
        if not 0 < self.learning_rate < math.inf:
            raise UserError(f"{where}: learning_rate is {self.learning_rate}; expected a number above 0")


@dataclass
class LabOptions:
    """What a lab trains, records and checks.

    Args:
        name: of the lab, of its folder and of its group in Weights & Biases.
        grids: the networks.
        seeds: the seeds that every network is trained with.
        settings: of all trainings, under the names that ``scripts/train.py`` gives them, for instance
            ``trainer.max_epochs: 10``.
        checks: the thresholds of the checks.
        executor: where the cells run.
        wandb: what is logged; the group is the lab's name unless another is given.
        runs: the folder that holds the lab's folder.
        root: folder of the data sets; else the environment's BNOOD_DATA, else ./data.
        download: let torchvision download what is missing.
    """

    name: str
    grids: list[Grid]
    seeds: list[int] = field(default_factory=lambda: [0, 1, 2])
    settings: dict[str, Setting] = field(default_factory=dict)
    checks: CheckOptions = field(default_factory=CheckOptions)
    executor: ExecutorOptions = field(default_factory=ExecutorOptions)
    wandb: TrackingOptions = field(default_factory=lambda: TrackingOptions(mode="offline"))
    runs: Path = Path("runs")
    root: Path | None = None
    download: bool = False

    def __post_init__(self) -> None:
        if self.name in ("", ".", "..") or "/" in self.name:
            raise UserError(f"name is {self.name!r}: it names a folder in {self.runs}, so it can't be or have a path")
        if not self.grids:
            raise UserError("grids is empty: a lab needs at least one grid of networks")
        if not self.seeds or len(set(self.seeds)) < len(self.seeds):
            raise UserError(f"seeds is {self.seeds}: give one or more seeds, each once")
        for where, settings in [
            ("settings", self.settings),
            *((f"grids[{position}].settings", grid.settings) for position, grid in enumerate(self.grids)),
        ]:
            for key in FIXED:
                if key in settings:
                    raise UserError(f"{where}.{key}: the lab sets {key} itself")
        names = [cell.name for cell in cells(self)]
        twice = next((name for name in names if names.count(name) > 1), None)
        if twice is not None:
            raise UserError(f"grids: {twice} is in two of them (or twice in one): give one of them a suffix")

    @property
    def folder(self) -> Path:
        """``runs/<lab>``."""
        return self.runs / self.name


@dataclass(frozen=True)
class LabCell:
    """One network of a lab and the seed that it is trained with; ``grid`` is its position in the lab's grids."""

    grid: int
    network: str
    activation: Activation
    norm: Norm
    norm_position: NormPosition
    seed: int

    @property
    def name(self) -> str:
        """Of its folder."""
        return f"{self.network}-s{self.seed}"


def cells(options: LabOptions) -> list[LabCell]:
    """All cells, a whole seed after the other, so that an unfinished lab has whole seeds."""
    return [
        cell
        for seed in options.seeds
        for position in range(len(options.grids))
        for cell in _of(options, position, seed)
    ]


def _of(options: LabOptions, position: int, seed: int) -> Iterator[LabCell]:
    grid = options.grids[position]
    for activation, norm, place in product(grid.activations, grid.norms, grid.norm_positions):
        if norm == "none" and place == "after" and "before" in grid.norm_positions:
            continue  # without a norm, there is nothing that could stand elsewhere
        parts = [grid.architecture, activation, norm, "after" if place == "after" else "", grid.suffix]
        yield LabCell(position, "-".join(part for part in parts if part), activation, norm, place, seed)


def training_settings(options: LabOptions, cell: LabCell) -> dict[str, Setting]:
    """All that decides what a cell learns, under the names of ``scripts/train.py``."""
    grid = options.grids[cell.grid]
    settings: dict[str, Setting] = {
        "trainer.enable_progress_bar": False,
        "trainer.precision": "32-true",
        **options.settings,
        **grid.settings,
        "seed_everything": cell.seed,
        "model.architecture": grid.architecture,
        "model.depth": grid.depth,
        "model.width": grid.width,
        "model.norm": cell.norm,
        "model.activation": cell.activation,
        "model.norm_position": cell.norm_position,
        "model.learning_rate": grid.learning_rate,
    }
    return settings


def training_arguments(options: LabOptions, cell: LabCell) -> list[str]:
    """The command line of ``scripts/train.py`` that trains a cell."""
    given: dict[str, Any] = dict(training_settings(options, cell))
    drawn = drawn_images(options, given)
    if drawn is not None:
        given["data.in_distribution"] = drawn
    given |= {"runs": options.folder / "cells", "name": cell.name}
    if options.root is not None:
        given["data.root"] = options.root
    if options.download:
        given["data.download"] = True
    tracking = asdict(options.wandb) | {"group": options.wandb.group or options.name, "tags": list(options.wandb.tags)}
    given |= {f"wandb.{key}": value for key, value in tracking.items() if value is not None}
    return [part for key, value in given.items() for part in (f"--{key}", _text(value))]


def _text(value: Any) -> str:
    """As it stands on a command line."""
    if isinstance(value, bool):
        return str(value).lower()
    return json.dumps(value) if isinstance(value, list) else str(value)


def drawn_images(options: LabOptions, settings: Mapping[str, Any]) -> Path | None:
    """The file of the lab that holds the images of a built-in set; None for sets that need no drawing.

    Every training would draw them anew, which takes longer than training the smaller networks on them.
    """
    name = str(settings.get("data.in_distribution", "shapes"))
    if name not in SYNTHETIC:
        return None
    size, count = settings.get("data.image_size", 32), image_count(settings)
    return options.folder / "images" / f"{size}px-{count or 'all'}" / f"{name}.npz"


def image_count(settings: Mapping[str, Any]) -> int | None:
    """How many images a training needs; None for all that there are."""
    if settings.get("data.train_count") is None:
        return None
    return int(settings["data.train_count"]) + int(settings.get("data.validation", 1000))


def draw_images(options: LabOptions) -> None:
    """Draw the images of the built-in sets, once for all cells."""
    for cell in cells(options):
        settings = training_settings(options, cell)
        file = drawn_images(options, settings)
        if file is None or file.exists():
            continue
        name, size = str(settings.get("data.in_distribution", "shapes")), int(settings.get("data.image_size", 32))
        images = load_images(name, "train", image_size=size, count=image_count(settings))
        assert images.labels is not None
        arrays = {"images": images.images, "labels": images.labels}
        write_beside(file, lambda path, arrays=arrays: np.savez(path, **arrays))  # type: ignore[misc]


def is_done(options: LabOptions, cell: LabCell) -> bool:
    """Whether a cell is finished.

    Raises:
        UserError: if its folder holds the cell of other settings.
    """
    file = options.folder / "cells" / cell.name / "cell.json"
    if not file.exists():
        return False
    found, wanted = read_record(file)["settings"], cell_settings(options, cell)
    if found != wanted:
        key = next(key for key in sorted({*found, *wanted}) if found.get(key) != wanted.get(key))
        raise UserError(
            f"{file.parent} was trained with {key} {found.get(key)}, not {wanted.get(key)}: choose another name for "
            "the lab, or remove that folder"
        )
    return True


def cell_settings(options: LabOptions, cell: LabCell) -> dict[str, Setting]:
    """All that a cell's tables depend on."""
    grid = options.grids[cell.grid]
    recorded: dict[str, Setting] = {"record_every": grid.record_every, "probe_images": grid.probe_images}
    return training_settings(options, cell) | recorded


def read_record(file: Path) -> dict[str, Any]:
    """The content of a ``cell.json``."""
    try:
        return json.loads(file.read_text())
    except ValueError as error:
        raise UserError(
            f"{file} is not readable as JSON ({error}): remove it, and the cell is trained again"
        ) from error


def train_cell(options: LabOptions, cell: LabCell) -> None:
    """Train and record a cell from the start; a loss that becomes NaN or infinite is a result, too."""
    grid, folder = options.grids[cell.grid], options.folder / "cells" / cell.name
    shutil.rmtree(folder, ignore_errors=True)  # the half of a cell: its records went with its process
    recorder, began, ended = Recorder(grid.record_every, grid.probe_images), time.perf_counter(), "trained"
    try:
        train(training_arguments(options, cell), callbacks=[recorder])
    except NonFiniteLoss as error:
        ended = f"diverged: {error}"
    keys = {
        "network": cell.network,
        "architecture": grid.architecture,
        "activation": cell.activation,
        "norm": cell.norm,
        "norm_position": cell.norm_position,
        "learning_rate": float(grid.learning_rate),
        "seed": cell.seed,
    }
    quantities, histograms = recorder.tables(keys)
    accuracy = accuracy_table(folder / "metrics.csv", keys, grid.depth)
    write_beside(folder / "quantities.parquet", lambda path: quantities.to_parquet(path, index=False))
    write_beside(folder / "histograms.parquet", lambda path: histograms.to_parquet(path, index=False))
    write_beside(folder / "accuracy.csv", lambda path: accuracy.to_csv(path, index=False))
    record = {
        "network": cell.network,
        "seed": cell.seed,
        "ended": ended,
        "seconds": time.perf_counter() - began,
        "seconds_training": recorder.seconds_training,
        "seconds_recording": recorder.seconds_recording,
        "settings": cell_settings(options, cell),
        "commit": commit(),
    }
    write_beside(folder / "cell.json", lambda path: path.write_text(json.dumps(record, indent=2) + "\n"))


def accuracy_table(log: Path, keys: Mapping[str, Any], layers: int) -> pd.DataFrame:
    """Accuracy after each finished epoch, from a run's ``metrics.csv``; ``epoch`` counts from 1, as ``step`` does."""
    found: dict[int, dict[str, float]] = {}
    if log.exists():
        with log.open(newline="") as file:
            for row in csv.DictReader(file):
                for name in ("train/accuracy", "validation/accuracy"):
                    if row.get(name):
                        step, epoch = int(row["step"]) + 1, float(row["epoch"]) + 1
                        key = name.replace("/", "_")
                        found.setdefault(step, {"epoch": epoch})[key] = float(row[name])
    rows = [{**keys, "step": step, "layers": layers, **values} for step, values in sorted(found.items())]
    columns = [*keys, "step", "epoch", "layers", "train_accuracy", "validation_accuracy"]
    return pd.DataFrame(rows, columns=columns)


def collect(options: LabOptions, done: list[LabCell]) -> tuple[pd.DataFrame, pd.DataFrame, pd.DataFrame]:
    """Write the tables of all cells that are done, and ``lab.json``; returns quantities, histograms and accuracy."""
    folders = [options.folder / "cells" / cell.name for cell in done]
    quantities = pd.concat([pd.read_parquet(folder / "quantities.parquet") for folder in folders], ignore_index=True)
    histograms = pd.concat([pd.read_parquet(folder / "histograms.parquet") for folder in folders], ignore_index=True)
    accuracy = pd.concat([pd.read_csv(folder / "accuracy.csv") for folder in folders], ignore_index=True)
    write_beside(options.folder / "lab.parquet", lambda path: quantities.to_parquet(path, index=False))
    write_beside(options.folder / "histograms.parquet", lambda path: histograms.to_parquet(path, index=False))
    write_beside(options.folder / "accuracy.csv", lambda path: accuracy.to_csv(path, index=False))
    records = [read_record(folder / "cell.json") for folder in folders]
    lab = lab_record(options, records)
    write_beside(options.folder / "lab.json", lambda path: path.write_text(json.dumps(lab, indent=2) + "\n"))
    return quantities, histograms, accuracy


def lab_record(options: LabOptions, records: list[dict[str, Any]]) -> dict[str, Any]:
    """The contents of ``lab.json``; ``recording_share`` is seconds_recording / seconds_training."""
    rows = [{key: value for key, value in record.items() if key != "settings"} for record in records]
    for row in rows:
        row["recording_share"] = row["seconds_recording"] / max(row["seconds_training"], 1e-9)
    total = {key: sum(row[key] for row in rows) for key in ("seconds", "seconds_training", "seconds_recording")}
    return {
        "name": options.name,
        "config": _plain(asdict(options)),
        "versions": versions(),
        "commit": commit(),
        "machine": machine(),
        **total,
        "recording_share": total["seconds_recording"] / max(total["seconds_training"], 1e-9),
        "cells": rows,
    }


def _plain(value: Any) -> Any:
    """As JSON can hold it."""
    if isinstance(value, dict):
        return {key: _plain(each) for key, each in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(each) for each in value]
    return str(value) if isinstance(value, Path) else value
