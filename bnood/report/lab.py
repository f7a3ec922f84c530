"""The page of a normalisation lab: gradients and learning, then the statements."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from bnood.report.charts import COLOURS, INK, Panel, Picture
from bnood.report.names import display
from bnood.report.page import write_page

if TYPE_CHECKING:
    from matplotlib.axes import Axes

NORM_COLOURS = {"none": INK, "bn": COLOURS[1], "ln": COLOURS[0], "gn": COLOURS[2]}
COLUMNS = ["Statement", "Network", "Verdict", "Number", "Note"]


def write_lab_report(folder: Path, table: pd.DataFrame, statements: list[list[str]], **page: Any) -> list[Path]:
    """Write `report.html` and `figures/*.png` of a lab into its folder; returns these files, the page first.

    `table` is the long one (:mod:`bnood.lab.train`), `statements` are rows of :data:`COLUMNS`, `page` goes to
    :func:`bnood.report.page.write_page`.
    """
    pictures = [
        _picture(
            table[(table["quantity"] == "gradient_norm") & (table["epoch"] <= 1) & (table["value"] > 0)],
            _gradients,
            "gradients",
            "Line plots of the gradient norm over the layers, one line per norm, logarithmic axis.",
        ),
        _picture(
            table[table["quantity"].isin(["train_accuracy", "validation_accuracy"])],
            _learning,
            "learning",
            "Line plots of accuracy over the epochs, one colour per norm, training solid and validation dashed.",
        ),
    ]
    drawn = [picture for picture in pictures if picture.panels]  # a network that diverges at once has nothing to draw
    return write_page(folder, "lab", pictures=drawn, statements=(COLUMNS, statements), **page)


def _picture(rows: pd.DataFrame, draw: Any, name: str, alt: str) -> Picture:
    """A panel per architecture and activation; `draw` gets the axes, a norm's rows and its colour."""

    def drawn(axes: Axes, own: pd.DataFrame) -> None:
        for norm, part in own.groupby("norm", sort=False):
            draw(axes, part, NORM_COLOURS[str(norm)])

    panels = []
    for (architecture, activation), own in rows.groupby(["architecture", "activation"], sort=False):
        panels.append(Panel(f"{display(architecture)}, {display(activation)}", partial(drawn, own=own)))
    legend = [(display(norm), colour) for norm, colour in NORM_COLOURS.items() if norm in set(rows["norm"])]
    return Picture(name, alt, panels, 2, legend)


def _gradients(axes: Axes, part: pd.DataFrame, colour: str) -> None:
    logs = part.assign(value=np.log(part["value"])).groupby(["seed", "layer"])["value"].mean().unstack("layer")
    for _, seed in logs.iterrows():
        axes.plot(logs.columns, np.exp(seed), color=colour, linewidth=0.6, alpha=0.5)
    axes.plot(logs.columns, np.exp(logs.mean()), color=colour, linewidth=1.8, marker="o", markersize=3.5)
    axes.set(yscale="log", xlabel="layer, 1 = at the input", ylabel="gradient norm")


def _learning(axes: Axes, part: pd.DataFrame, colour: str) -> None:
    for quantity, style in (("train_accuracy", "-"), ("validation_accuracy", "--")):
        mean = 100 * part[part["quantity"] == quantity].groupby("epoch")["value"].mean()
        axes.plot(mean.index, mean, style, color=colour, linewidth=1.5)
    axes.set(ylim=(0, 100), xlabel="epoch", ylabel="accuracy, per cent")
