"""The pictures of an evaluation, from its tables; None where the tables have nothing for a picture."""

import re
from collections.abc import Sequence
from functools import partial
from itertools import cycle
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.axes import Axes

from bnood.report.charts import COLOURS, ID_COLOUR, Panel, Picture, dots, heat
from bnood.report.names import MINUS, display, scale

TARGET = "recalibrated:target"
MAIN = r"running|batch:\d+(?:@[\d.]+)?|recalibrated:(?:id|augmented|target|mixture@[\d.]+)"
CONFIDENCE = (  # title, metric, detector
    ("Largest unit mean, relative to ID", "unit_mean_max_ratio", "units"),
    ("Mean MSP, per cent", "mean", "msp"),
    ("Images with MSP > 0.9, per cent", "share_above_0.9", "msp"),
    ("Mean energy", "mean", "energy"),
)
DETECTION = (
    ("AUROC of MSP, per cent", "auroc", "msp"),
    ("AUROC of energy, per cent", "auroc", "energy"),
    ("FPR95 of MSP, per cent", "fpr95", "msp"),
    ("FPR95 of energy, per cent", "fpr95", "energy"),
    ("Accuracy on ID images, per cent", "accuracy", ""),
)


def run_pictures(table: pd.DataFrame, units: pd.DataFrame) -> list[Picture]:
    """All pictures that the tables of one network have the rows for."""
    dotted = [dots_picture(table, "detection", DETECTION), dots_picture(table, "confidence", CONFIDENCE)]
    return [picture for picture in (units_picture(units), detector_picture(table), *dotted) if picture is not None]


def rows(table: pd.DataFrame, metric: str, detector: str, role: str = "ood") -> pd.DataFrame:
    """One quantity of the OOD sets against the clean ID set, or of that set itself beside the first OOD set."""
    found = table[(table["metric"] == metric) & (table["detector"] == detector) & (table["role"] == role)]
    if role == "ood":
        return found[found["comparison"].isin(["ood", ""]) & (found["companion"] == "")]
    shifts = set(table.loc[table["role"] == "ood", "companion"]) - {""}
    return found[~found["dataset"].isin(shifts)].drop_duplicates(["statistics", "dataset"])


def main_statistics(table: pd.DataFrame) -> list[str]:
    """No layer forms, paths or priors."""
    return [name for name in table["statistics"].unique() if re.fullmatch(MAIN, name)]


def legend_of(names: Sequence[str]) -> list[tuple[str, str]]:
    """Display names and colours of image sets, the ID set in grey."""
    return [("ID", ID_COLOUR), *((display(name), colour) for name, colour in zip(names, cycle(COLOURS), strict=False))]


def units_picture(units: pd.DataFrame) -> Picture | None:
    """ReAct's picture: mean and standard deviation of each penultimate unit, units sorted by their ID mean."""
    if units.empty:
        return None
    kinds = [kind for kind in ("running", TARGET) if (units["statistics"] == kind).any()]
    id_set = units.loc[units["role"] == "id", "dataset"].iloc[:1]  # shifted ID sets follow it
    units = units[units["statistics"].isin(kinds) & ((units["role"] == "ood") | units["dataset"].isin(id_set))]
    names = list(units.loc[units["role"] == "ood", "dataset"].unique())
    legend = legend_of(names)
    known = units[(units["role"] == "id") & (units["statistics"] == "running")]
    order = known.groupby("unit")["mean"].mean().sort_values().index
    top, floor = float((units["mean"] + units["std"]).max()) * 1.03, 0.0 if (units["mean"] >= 0).all() else None

    def draw(axes: Axes, kind: str, dataset: str) -> None:
        here = units[units["statistics"] == kind]
        own = here[here["role"] == "id"]
        if "companion" in own and (own["companion"] == dataset).any():
            own = own[own["companion"] == dataset]
        other, colour = here[here["dataset"] == dataset], legend[names.index(dataset) + 1][1]
        for part, line in ((other, colour), (own, ID_COLOUR)):
            found = part.groupby("unit")[["mean", "std"]].mean().reindex(order)
            low, high = (found["mean"] - found["std"]).clip(lower=floor), found["mean"] + found["std"]
            axes.fill_between(range(len(order)), low, high, color=line, alpha=0.25, linewidth=0)
            axes.plot(range(len(order)), found["mean"], color=line, linewidth=1.2)
        axes.set(ylim=(floor, top), xlabel="unit, sorted by its mean on ID images", ylabel="activation")

    pairs = [(name, kind) for name in names for kind in kinds]
    panels = [Panel(f"{display(n)}, {display(k)} statistics", partial(draw, kind=k, dataset=n)) for n, k in pairs]
    shown = f"{', '.join(map(display, names))}; under {', '.join(map(display, kinds))}"
    alt = f"Mean activation of each penultimate unit, ID in grey, in colour {shown}."
    return Picture("units", alt, panels, len(kinds), legend)


def detector_picture(table: pd.DataFrame) -> Picture | None:
    """AUROC of every detector under every kind of statistics: mean of the OOD sets, then each of them."""
    kinds = main_statistics(table)
    auroc = table[(table["metric"] == "auroc") & (table["companion"] == "") & table["statistics"].isin(kinds)]
    placebo, auroc = (auroc[auroc["comparison"] == name] for name in ("placebo", "ood"))
    if auroc.empty:
        return None
    names, sets = list(auroc["detector"].unique()), list(auroc["dataset"].unique())
    cue = placebo[(placebo["low"] > 0.5) | (placebo["high"] < 0.5)]
    marked = set(zip(cue["dataset"], cue["detector"], cue["statistics"], strict=True))

    def draw(axes: Axes, own: list[str]) -> None:
        part = auroc[auroc["dataset"].isin(own)].groupby(["detector", "statistics"])[["value", "difference"]].mean()
        part = 100 * part.reindex(pd.MultiIndex.from_product([names, kinds]))
        part.loc[(slice(None), "running"), "difference"] = 0.0
        texts = []
        for (name, kind), (value, difference) in zip(part.index, part.to_numpy(), strict=True):
            star = "*" if any((dataset, name, kind) in marked for dataset in own) else ""
            text = f"{value:.1f}{star}" if np.isfinite(value) else "n/a"
            if kind != "running" and np.isfinite(difference):
                text += f"\n({difference:+.1f})".replace("-", MINUS)
            texts.append(text)
        shape = (len(names), len(kinds))
        shades, cells = part["difference"].to_numpy().reshape(shape), np.reshape(texts, shape)
        heat(axes, list(map(display, names)), list(map(display, kinds)), shades, cells)

    size = (1.5 + 0.8 * len(kinds), 0.6 + 0.42 * len(names))
    panels = [Panel("Mean of the OOD sets", partial(draw, own=sets), *size)] if len(sets) > 1 else []
    panels += [Panel(display(dataset), partial(draw, own=[dataset]), *size) for dataset in sets]
    listed = ", ".join(map(display, sets))
    alt = f"Heat maps of AUROC in per cent and its difference to running statistics in points: {listed}."
    return Picture("detectors", alt, panels, 1)


def dots_picture(table: pd.DataFrame, name: str, quantities: Sequence[tuple[str, str, str]]) -> Picture | None:
    """A panel of dots per quantity: rows are statistics, colours are image sets."""
    kinds, panels = main_statistics(table), []
    sets = list(table.loc[table["role"] == "ood", "dataset"].unique())
    colours: dict[Any, str] = dict(zip(sets, cycle(COLOURS), strict=False))
    for title, metric, detector in quantities:
        found = pd.concat([rows(table, metric, detector, role) for role in ("id", "ood")])
        series = []
        for dataset, part in found.groupby("dataset", sort=False):
            ends = part.set_index("statistics")[["value", "low", "high"]].reindex(kinds)
            series.append((colours.get(dataset, ID_COLOUR), scale(metric, detector) * ends))
        if series:
            draw = partial(dots, rows=list(map(display, kinds)), series=series)
            panels.append(Panel(title, draw, height=0.6 + 0.4 * len(kinds)))
    titles = ", ".join(panel.title for panel in panels)
    alt = f"Dot plots under each kind of statistics, ID and {', '.join(map(display, sets))}: {titles}."
    return Picture(name, alt, panels, 2, legend_of(sets)) if panels else None
