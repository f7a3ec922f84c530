"""The page of a normalisation lab: gradients, learning and pre-activations, then the statements."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from bnood.report.charts import COLOURS, INK, Panel, Picture, profile
from bnood.report.names import display
from bnood.report.page import write_page

if TYPE_CHECKING:
    from matplotlib.axes import Axes

NORM_COLOURS = {"none": INK, "bn": COLOURS[1], "ln": COLOURS[0], "gn": COLOURS[2]}
COLUMNS = ["Statement", "Network", "Verdict", "Number", "Note"]
GRID = ["architecture", "activation", "high_rate"]


def write_lab_report(
    folder: Path,
    table: pd.DataFrame,
    statements: Sequence[Sequence[str]],
    *,
    title: str,
    commands: Sequence[str],
    record: Mapping[str, Any],
    notes: Sequence[str] = (),
    config: Mapping[str, Any] | None = None,
) -> list[Path]:
    """Write `report.html` and `figures/*.png` of a lab into its folder; returns these files, the page first.

    Args:
        folder: the lab's.
        table: its long table (columns in :mod:`bnood.lab.train`).
        statements: rows of :data:`COLUMNS`.
        title: the page's heading.
        commands: what to type to get the lab again.
        record: versions, commit, machine, seconds.
        notes: networks that diverged, for instance.
        config: the lab's options.
    """
    pictures = [_gradients(table), _learning(table), _preactivations(table)]
    return write_page(
        folder, "lab", title=title, commands=commands, notes=notes, record=record,
        pictures=[picture for picture in pictures if picture is not None],
        statements=statements, statement_columns=COLUMNS,
        config=config,
    )  # fmt: skip


def _title(keys: tuple[str, str, bool]) -> str:
    architecture, activation, high = keys
    return f"{display(architecture)}, {display(activation)}{', high learning rate' if high else ''}"


def _panels(rows: pd.DataFrame, draw: Any, labels: tuple[str, str], log: bool = False) -> list[Panel]:
    """A panel per architecture, activation and rate; `draw` gets the axes, a norm's rows and its colour."""

    def drawn(axes: Axes, own: pd.DataFrame) -> None:
        for norm, part in own.groupby("norm", sort=False):
            draw(axes, part, NORM_COLOURS[str(norm)])
        axes.set_xlabel(labels[0])
        axes.set_ylabel(labels[1])
        if log:
            axes.set_yscale("log")

    return [Panel(_title(keys), partial(drawn, own=own)) for keys, own in rows.groupby(GRID, sort=False)]


def _legend(rows: pd.DataFrame) -> list[tuple[str, str]]:
    return [(display(norm), colour) for norm, colour in NORM_COLOURS.items() if norm in set(rows["norm"])]


def _gradients(table: pd.DataFrame) -> Picture | None:
    rows = table[(table["quantity"] == "gradient_norm") & (table["epoch"] <= 1) & (table["value"] > 0)]

    def draw(axes: Axes, part: pd.DataFrame, colour: str) -> None:
        logs = part.assign(value=np.log(part["value"])).groupby(["seed", "layer"])["value"].mean().unstack("layer")
        for _, seed in logs.iterrows():
            axes.plot(logs.columns, np.exp(seed), color=colour, linewidth=0.6, alpha=0.5)
        axes.plot(logs.columns, np.exp(logs.mean()), color=colour, linewidth=1.8, marker="o", markersize=3.5)

    panels = _panels(rows, draw, ("layer, 1 = at the input", "gradient norm"), log=True)
    alt = "Line plots of the gradient norm over the layers, one line per norm, logarithmic axis."
    return Picture("gradients", alt, panels, 2, _legend(rows)) if panels else None


def _learning(table: pd.DataFrame) -> Picture | None:
    rows = table[table["quantity"].isin(["train_accuracy", "validation_accuracy"])]

    def draw(axes: Axes, part: pd.DataFrame, colour: str) -> None:
        for quantity, style in (("train_accuracy", "-"), ("validation_accuracy", "--")):
            mean = 100 * part[part["quantity"] == quantity].groupby("epoch")["value"].mean()
            axes.plot(mean.index, mean, style, color=colour, linewidth=1.5)
        axes.set_ylim(0, 100)

    panels = _panels(rows, draw, ("epoch", "accuracy, per cent"))
    alt = "Line plots of accuracy over the epochs, one colour per norm, training solid and validation dashed."
    return Picture("learning", alt, panels, 2, _legend(rows)) if panels else None


def _preactivations(table: pd.DataFrame) -> Picture | None:
    rows = table[table["quantity"].isin(["preactivation_mean", "preactivation_std"]) & ~table["high_rate"]]
    rows = rows[rows["norm"].isin(["none", "bn"]) & rows["activation"].isin(["sigmoid", "relu"])]
    rows = rows[
        (rows["layer"] == rows.groupby("architecture")["layer"].transform("max")) & (rows["seed"] == rows["seed"].min())
    ]

    def draw(axes: Axes, part: pd.DataFrame, colour: str) -> None:
        found = part.pivot_table("value", "epoch", "quantity")
        profile(axes, found.index, found["preactivation_mean"], found["preactivation_std"], colour)
        axes.axhline(0, color=INK, linewidth=0.8, linestyle=":")

    panels = _panels(rows, draw, ("epoch", "pre-activation"))
    alt = "Line plots of the last layer's mean pre-activation over the epochs, with a band of one standard deviation."
    return Picture("preactivations", alt, panels, 2, _legend(rows)) if panels else None
