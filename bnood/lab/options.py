"""What a lab trains: the keys of `configs/lab/*.yaml`."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass, field
from itertools import product
from pathlib import Path
from typing import Any, Literal, NamedTuple

from bnood.errors import UserError
from bnood.networks.norm import Norm
from bnood.networks.plain import Activation

LARGEST = 10**9  # weights and activations that a network may hold: 4 GB


@dataclass
class Grid:
    """Networks of one architecture: every activation with every norm."""

    architecture: Literal["mlp", "plain"]  # plain is a ConvNet without shortcuts
    depth: int  # hidden layers
    width: int  # units or channels of each
    learning_rate: float  # the schedule's peak
    epochs: int
    activations: list[Activation] = field(default_factory=lambda: ["sigmoid", "relu"])
    norms: list[Norm] = field(default_factory=lambda: ["none", "bn", "ln", "gn"])

    def __post_init__(self) -> None:
        where = f"the grid of {self.architecture}: "
        for name in ("activations", "norms"):
            if not getattr(self, name):
                raise UserError(f"{where}{name} is empty; expected one or more")
        least = 3 if self.architecture == "plain" else 1
        _check(self, where, depth=(least, 1000), width=(1, 10_000), epochs=(1, 10**6))
        if "gn" in self.norms and self.width % 8:
            raise UserError(f"{where}width is {self.width}; GroupNorm's 8 groups need a multiple of 8")
        if not 0 < self.learning_rate < math.inf:
            raise UserError(f"{where}learning_rate is {self.learning_rate}; expected a number above 0")


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
        workers: networks that are trained at the same time.
        runs: the folder that holds the lab's folder.
        root: folder of the data sets; else the environment's BNOOD_DATA, else ./data.
    """

    name: str = "lab"
    grids: list[Grid] = field(default_factory=list)
    seeds: list[int] = field(default_factory=lambda: [0, 1, 2])
    images: str = "shapes"
    train_count: int = 5000
    validation_count: int = 1000
    flip: bool = False
    batch_size: int = 128
    workers: int = 2
    runs: Path = Path("runs")
    root: Path | None = None

    def __post_init__(self) -> None:
        if self.name in ("", ".", "..") or "/" in self.name:
            raise UserError(f"name is {self.name!r}; expected a folder name without a path")
        if not self.grids:
            raise UserError("grids is empty; give a config, for example --config configs/lab/demo.yaml")
        usable = {seed for seed in self.seeds if 0 <= seed < 2**32}
        if not usable or len(usable) < len(self.seeds):
            raise UserError(f"seeds is {self.seeds}; expected one or more from 0 to 4294967295, each once")
        _check(self, "", train_count=(1, 10**6), validation_count=(1, 10**6), workers=(1, 1000))
        _check(self, "", batch_size=(2, self.train_count))  # one image has no batch statistics
        for grid in self.grids:
            taps, pixels = (9, 32**2) if grid.architecture == "plain" else (1, 1)
            if (held := grid.depth * grid.width * (taps * grid.width + self.batch_size * pixels)) > LARGEST:
                found = f"depth {grid.depth}, width {grid.width} and batch_size {self.batch_size} need {held:.0e}"
                most = f"expected at most {LARGEST:.0e}"
                raise UserError(f"the grid of {grid.architecture}: {found} numbers in memory; {most}")
        names = [one.name for one in self.networks()]
        if len(set(names)) < len(names):
            raise UserError("grids: a network is in two of them; expected each network once")
        self.folder = self.runs / self.name

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
    def keys(self) -> dict[str, Any]:
        """The columns that name it in the lab's table."""
        own = {"activation": self.activation, "norm": self.norm, "seed": self.seed}
        return {"architecture": self.grid.architecture, **own}

    @property
    def name(self) -> str:
        """Of its files."""
        return "{architecture}-{activation}-{norm}-s{seed}".format_map(self.keys)

    def settings(self, options: LabOptions) -> dict[str, Any]:
        """All that its records depend on."""
        common = ("images", "train_count", "validation_count", "flip", "batch_size")
        found = asdict(self.grid) | self.keys | {key: getattr(options, key) for key in common}
        return {key: value for key, value in found.items() if key not in ("activations", "norms")}


def _check(options: Grid | LabOptions, where: str, **ranges: tuple[int, int]) -> None:
    for name, (least, most) in ranges.items():
        if not least <= (value := getattr(options, name)) <= most:
            raise UserError(f"{where}{name} is {value}; expected a whole number from {least} to {most}")
