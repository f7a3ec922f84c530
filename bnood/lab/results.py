"""What a lab measured: its tables, read back and checked, and the parts of them that are compared.

The normalisation lab trains small networks that differ in activation and norm and records what happens inside.
Pictures (lab_figures.py) and page (lab_report.py) both take their numbers from here.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd

from bnood.errors import UserError

NORMS = ("none", "bn", "ln", "gn")
NORM_LABELS = {"none": "no norm", "bn": "BatchNorm", "ln": "LayerNorm", "gn": "GroupNorm"}
ACTIVATIONS = ("sigmoid", "tanh", "relu", "gelu")
ARCHITECTURES = {"mlp": "MLP", "plain": "plain ConvNet"}
UNIT_LABELS = {"dead_share": "dead", "always_on_share": "always on", "saturated_share": "saturated"}
NETWORK = "network architecture activation norm norm_position learning_rate seed"
COLUMNS = {  # what each table has to hold
    "lab.parquet": f"{NETWORK} step epoch layer layers quantity value",
    "histograms.parquet": f"{NETWORK} step epoch layer mode bin_low bin_high share",
    "accuracy.csv": f"{NETWORK} epoch train_accuracy validation_accuracy",
}


@dataclass(frozen=True)
class LabTables:
    """All that a lab measured.

    Attributes:
        name: the lab's name, the title of its page.
        measurements: ``lab.parquet``, one row per network, seed, step, layer and quantity.
        histograms: ``histograms.parquet``, the shares of pre-activations in bins.
        accuracy: ``accuracy.csv``, shares in [0, 1] after each epoch.
        checks: ``checks.json``: ``{"checks": [{"check": "a", "statement", "verdict", "sentence", ...}]}``.
        record: ``lab.json``: configuration, versions, commit, machine, seconds, share of time spent on recording.
        commands: what to type to get the lab again.
    """

    name: str
    measurements: pd.DataFrame
    histograms: pd.DataFrame
    accuracy: pd.DataFrame
    checks: Mapping[str, Any]
    record: Mapping[str, Any]
    commands: list[str]


def read_lab(folder: Path, commands: list[str]) -> LabTables:
    """Read the tables that ``scripts/lab.py`` wrote into `folder`.

    Raises:
        UserError: a table is missing or cannot be read, or lacks a column.
    """
    folder = Path(folder)

    def read(name: str, reader: Callable[[Path], Any]) -> Any:
        path = folder / name
        if not path.is_file():
            raise UserError(f"{path}: no such file; scripts/lab.py writes it")
        try:
            return reader(path)
        except (ValueError, OSError) as error:
            reason = next(iter(str(error).splitlines()), "damaged")
            raise UserError(f"{path} can't be read ({reason}); run scripts/lab.py once more") from error

    def of_json(path: Path) -> Any:
        return json.loads(path.read_text(encoding="utf-8"))

    lab = LabTables(
        folder.resolve().name,
        read("lab.parquet", pd.read_parquet),
        read("histograms.parquet", pd.read_parquet),
        read("accuracy.csv", pd.read_csv),
        read("checks.json", of_json),
        read("lab.json", of_json),
        commands,
    )
    return checked(lab)


def checked(lab: LabTables) -> LabTables:
    """The same lab, its three tables checked for their columns.

    Raises:
        UserError: a table is empty or lacks columns.
    """
    tables = {"lab.parquet": lab.measurements, "histograms.parquet": lab.histograms, "accuracy.csv": lab.accuracy}
    for name, frame in tables.items():
        missing = [column for column in COLUMNS[name].split() if column not in frame.columns]
        if missing:
            raise UserError(f"{name} of lab '{lab.name}' lacks the column(s) {', '.join(missing)}; run scripts/lab.py")
        if frame.empty:
            raise UserError(f"{name} of lab '{lab.name}' has no rows; train at least one network of the lab first")
    return lab


def in_order(found: Iterable[Any], known: Iterable[str]) -> list[str]:
    """The names that were found, the known ones first and in their order."""
    names, order = {str(name) for name in found}, list(known)
    return sorted(names, key=lambda name: (order.index(name) if name in order else len(order), name))


def suffixes(frame: pd.DataFrame) -> pd.Series:
    """What ends the name of each row's network beyond its architecture, activation, norm and position: "high", say.

    Grids of one lab that differ in other settings (a high learning rate, another depth) are told apart by it.
    """
    kinds = frame.drop_duplicates("network")
    found = {}
    for row in kinds.itertuples():
        parts = [row.architecture, row.activation, row.norm, "after" if row.norm_position == "after" else ""]
        name, prefix = str(row.network), "-".join(str(part) for part in parts if part)
        found[name] = name.removeprefix(prefix).lstrip("-") if name.startswith(prefix) else ""
    return frame["network"].map(found)


def main_grid(frame: pd.DataFrame, both_positions: bool = False) -> pd.DataFrame:
    """One setting for each architecture, activation and norm: the rows that are compared with each other.

    Of several grids that is the one whose networks' names have no suffix. Of what remains, the learning rate is kept
    at which most norms of that architecture and activation ran (of equals the lowest). Of the two places of a norm,
    before and after the activation, only the first is kept, unless `both_positions`.
    """
    kept = []
    frame = frame.assign(suffix=suffixes(frame))
    for _, group in frame.groupby(["architecture", "activation"], sort=False):
        group = group[group["suffix"] == group["suffix"].min()]  # "" comes first
        norms = group.groupby("learning_rate")["norm"].nunique()
        group = group[group["learning_rate"] == norms.index[norms.to_numpy().argmax()]]  # groupby sorts the rates
        kept.append(group if both_positions else first_position(group))
    return pd.concat(kept)


def first_position(frame: pd.DataFrame) -> pd.DataFrame:
    """Of nets with the norm after the activation only those whose norm was never tried before it."""
    after = frame["norm_position"].eq("after")
    before = set(frame.loc[~after, "norm"])
    return frame[~(after & frame["norm"].isin(before))]


def first_positions(frame: pd.DataFrame) -> pd.DataFrame:
    """:func:`first_position` of each grid for itself, with the grids' names in the new column ``suffix``."""
    frame = frame.assign(suffix=suffixes(frame))
    keys = ["architecture", "activation", "learning_rate", "suffix"]
    return pd.concat([first_position(group) for _, group in frame.groupby(keys)])


def architectures(lab: LabTables) -> list[str]:
    """The architectures of a lab, the MLP first."""
    return in_order(lab.measurements["architecture"].unique(), ARCHITECTURES)


def at_the_end(frame: pd.DataFrame) -> pd.DataFrame:
    """The rows of the last recorded step of each network and seed."""
    return frame[frame["step"] == frame.groupby(["network", "learning_rate", "seed"])["step"].transform("max")]


def broke_off(rows: pd.DataFrame) -> dict[str, float]:
    """The norms of which some seed was not recorded until the end (its loss was infinite, say), and that epoch."""
    last = rows.groupby(["norm", "seed"])["epoch"].max()
    first = last.groupby("norm").min()
    return {norm: float(first[norm]) for norm in in_order(first.index, NORMS) if first[norm] < last.max()}


def gradient_ratios(rows: pd.DataFrame, last: bool = True) -> pd.Series:
    """First layer's gradient norm over the last layer's, for each seed, at the last (or first) recorded step.

    Not a number where the last layer has no gradient either.
    """
    rows = at_the_end(rows) if last else rows[rows["step"] == rows["step"].min()]
    ends = rows.pivot_table("value", "seed", "layer")
    return ends[ends.columns.min()] / ends[ends.columns.max()]


def short(value: float) -> str:
    """Two digits that matter: 0.31, 4.2e-05, 1,300; "undefined" for what is no number."""
    if not math.isfinite(value):
        return "undefined"
    return f"{value:,.0f}" if abs(value) >= 100 else f"{value:.2g}"


def percent(value: float) -> str:
    """A share as "46.5 %"; "undefined" for what is no number."""
    return f"{100 * value:.1f} %" if math.isfinite(value) else "undefined"
