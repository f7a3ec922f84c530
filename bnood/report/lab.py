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
GRADIENTS = "Line plots of the gradient norm over the layers, one line per norm, logarithmic axis."
LEARNING = "Line plots of accuracy over the epochs, one colour per norm, training solid and validation dashed."


def write_lab_report(folder: Path, table: pd.DataFrame, **page: Any) -> list[Path]:
    """Write `report.html` and `figures/*.png` of a lab from its table (:mod:`bnood.lab.run`); the page comes first."""
    first_epoch = table[(table["quantity"] == "gradient_norm") & (table["epoch"] <= 1) & (table["value"] > 0)]
    legend = [(display(norm), colour) for norm, colour in NORM_COLOURS.items() if norm in set(table["norm"])]
    pictures = [
        Picture("gradients", GRADIENTS, _panels(first_epoch, _gradients), 2, legend),
        Picture("learning", LEARNING, _panels(table[table["layer"] == 0], _learning), 2, legend),
    ]
    drawn = [picture for picture in pictures if picture.panels]  # a network that diverges at once has nothing to draw
    return write_page(folder, "lab", pictures=drawn, **page)


def _panels(rows: pd.DataFrame, draw: Any) -> list[Panel]:
    """A panel per architecture and activation."""
    groups = rows.groupby(["architecture", "activation"], sort=False)
    return [Panel(f"{display(name)}, {display(kind)}", partial(draw, rows=own)) for (name, kind), own in groups]


def _gradients(axes: Axes, rows: pd.DataFrame) -> None:
    for norm, part in rows.assign(value=np.log(rows["value"])).groupby("norm", sort=False):
        colour, logs = NORM_COLOURS[str(norm)], part.pivot_table("value", "layer", "seed")
        axes.plot(logs.index, np.exp(logs), color=colour, linewidth=0.6, alpha=0.5)
        axes.plot(logs.index, np.exp(logs.mean(axis=1)), color=colour, linewidth=1.8, marker="o", markersize=3.5)
    axes.set(yscale="log", xlabel="layer, 1 = at the input", ylabel="gradient norm")


def _learning(axes: Axes, rows: pd.DataFrame) -> None:
    for (norm, quantity), mean in rows.groupby(["norm", "quantity", "epoch"])["value"].mean().groupby(level=[0, 1]):
        style = "-" if quantity == "train_accuracy" else "--"
        axes.plot(mean.index.get_level_values("epoch"), 100 * mean, style, color=NORM_COLOURS[norm], linewidth=1.5)
    axes.set(ylim=(0, 100), xlabel="epoch", ylabel="accuracy, per cent")
