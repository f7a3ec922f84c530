"""What a lab trains and what counts as an effect: the keys of `configs/lab/*.yaml`."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass, field
from itertools import product
from pathlib import Path
from typing import Any, Literal, NamedTuple

from bnood.errors import UserError
from bnood.networks.norm import Norm
from bnood.networks.plain import Activation


@dataclass
class Grid:
    """Networks of one architecture: every activation with every norm.

    Args:
        architecture: ``mlp`` or ``plain`` (a ConvNet without shortcuts).
        depth: hidden layers.
        width: units (``mlp``) or channels (``plain``) of each.
        learning_rate: the schedule's peak, the same for all networks of the grid.
        epochs: passes over the training images.
        activations: any of ``sigmoid``, ``relu``, ``tanh`` and ``gelu``.
        norms: any of ``none``, ``bn``, ``ln`` and ``gn``.
        record_every: steps between two records.
        probe_images: training images of a record.
    """

    architecture: Literal["mlp", "plain"]
    depth: int
    width: int
    learning_rate: float
    epochs: int
    activations: list[Activation] = field(default_factory=lambda: ["sigmoid", "relu"])
    norms: list[Norm] = field(default_factory=lambda: ["none", "bn", "ln", "gn"])
    record_every: int = 50
    probe_images: int = 256

    def __post_init__(self) -> None:
        where = f"the grid of {self.architecture}"
        for name in ("activations", "norms"):
            if not getattr(self, name):
                raise UserError(f"{where}: {name} is empty; expected one or more")
        for name in ("depth", "width", "epochs", "record_every", "probe_images"):
            least = 3 if name == "depth" and self.architecture == "plain" else 1 + (name == "probe_images")
            if getattr(self, name) < least:
                raise UserError(f"{where}: {name} is {getattr(self, name)}; expected a whole number from {least} up")
        if "gn" in self.norms and self.width % 8:
            raise UserError(f"{where}: width is {self.width}; GroupNorm's 8 groups need a multiple of 8")
        if not 0 < self.learning_rate < math.inf:
            raise UserError(f"{where}: learning_rate is {self.learning_rate}; expected a number above 0")


@dataclass(frozen=True)
class Thresholds:
    """What counts as an effect, stated before the lab is run; lengths of gradients and distances in powers of ten."""

    starved: float = 1.0  # between the first and the last layer's gradient: the first then takes ten times as long
    raised: float = 0.3  # rise of that ratio: a factor of two
    gained: float = 0.05  # gain in accuracy: five points, which nobody would call small
    small: float = 0.03  # differences in accuracy within ± three points are small
    centred: float = 0.3  # fall of the units' distance from zero: to a half
    between: float = 0.01  # how far GroupNorm's accuracy may lie outside LayerNorm's and BatchNorm's
    overfitted: float = 0.1  # training accuracy this far above validation accuracy is called so
    learnt: float = 0.8  # training accuracy of a network that has learnt most of its images

    def __post_init__(self) -> None:
        for name, value in vars(self).items():
            if not 0 <= value < math.inf:
                raise UserError(f"thresholds.{name} is {value}; expected a finite number of at least 0")


@dataclass
class LabOptions:
    """A lab.

    Args:
        name: of the lab and its folder.
        grids: the networks.
        seeds: that every network is trained with.
        images: a labelled set, by name or path (``shapes`` is built in).
        train_count: training images.
        validation_count: images held out of the training split.
        flip: mirror training images at random.
        batch_size: images per step.
        thresholds: what counts as an effect.
        workers: networks that are trained at the same time.
        runs: the folder that holds the lab's folder.
        root: folder of the data sets; else the environment's BNOOD_DATA, else ./data.
        download: let torchvision download what is missing.
    """

    name: str = "lab"
    grids: list[Grid] = field(default_factory=list)
    seeds: list[int] = field(default_factory=lambda: [0, 1, 2])
    images: str = "shapes"
    train_count: int = 5000
    validation_count: int = 1000
    flip: bool = False
    batch_size: int = 128
    thresholds: Thresholds = field(default_factory=Thresholds)
    workers: int = 2
    runs: Path = Path("runs")
    root: Path | None = None
    download: bool = False

    def __post_init__(self) -> None:
        if self.name in ("", ".", "..") or "/" in self.name:
            raise UserError(f"name is {self.name!r}; expected a folder name without a path")
        if not self.grids:
            raise UserError("grids is empty; give a config, for example --config configs/lab/demo.yaml")
        if not self.seeds or len(set(self.seeds)) < len(self.seeds):
            raise UserError(f"seeds is {self.seeds}; expected one or more seeds, each once")
        if wrong := [seed for seed in self.seeds if not 0 <= seed < 2**32]:
            raise UserError(f"seeds has {wrong[0]}; expected whole numbers from 0 to 4294967295")
        # One image has no batch statistics.
        for name, least in {"train_count": 1, "validation_count": 1, "batch_size": 2, "workers": 1}.items():
            if getattr(self, name) < least:
                raise UserError(f"{name} is {getattr(self, name)}; expected a whole number from {least} up")
        probe = max(grid.probe_images for grid in self.grids)
        if max(probe, self.batch_size) > self.train_count:
            needed = f"probe_images ({probe}) and batch_size ({self.batch_size})"
            raise UserError(f"train_count is {self.train_count}; expected at least {needed}")
        names = [one.name for one in self.networks()]
        if twice := [name for name in names if names.count(name) > 1]:
            raise UserError(f"grids: {twice[0]} is in two of them; expected each network once")

    @property
    def folder(self) -> Path:
        """``<runs>/<name>``."""
        return self.runs / self.name

    def networks(self) -> list[LabNetwork]:
        """Every network of every grid and seed."""
        return [
            LabNetwork(grid, activation, norm, seed)
            for grid in self.grids
            for seed, activation, norm in product(self.seeds, grid.activations, grid.norms)
        ]


class LabNetwork(NamedTuple):
    """One training."""

    grid: Grid
    activation: Activation
    norm: Norm
    seed: int

    @property
    def name(self) -> str:
        """Of its files."""
        return f"{self.grid.architecture}-{self.activation}-{self.norm}-s{self.seed}"

    @property
    def keys(self) -> dict[str, Any]:
        """The columns that name it in the lab's table."""
        return {
            "architecture": self.grid.architecture, "activation": self.activation, "norm": self.norm, "seed": self.seed
        }  # fmt: skip

    def settings(self, options: LabOptions) -> dict[str, Any]:
        """All that its records depend on."""
        grid = {key: value for key, value in asdict(self.grid).items() if key not in ("activations", "norms")}
        common = ("images", "train_count", "validation_count", "flip", "batch_size")
        return grid | self.keys | {key: getattr(options, key) for key in common}
