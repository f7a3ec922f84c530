"""The pictures of an evaluation, from its tables: ReAct's picture, detectors by statistics, and the sweeps.

Every function gives a :class:`bnood.report.charts.Picture`, or None where the tables have nothing for it. Tables are
those of the evaluation (columns in :mod:`bnood.evaluation.tables`); several seeds are first averaged by
:func:`over_networks`. AUROC, FPR95 and accuracy are drawn in per cent, their differences in points.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from functools import partial
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd

from bnood.report.charts import COLOURS, ID_COLOUR, INK, Panel, Picture, Series, dots, heat, lines, profile
from bnood.report.names import MINUS, display, scale

if TYPE_CHECKING:
    from matplotlib.axes import Axes

TARGET = "recalibrated:target"
MAIN = r"running|batch:\d+(?:@[\d.]+)?|recalibrated:(?:id|augmented|target|mixture@[\d.]+)"
FORM = r"^recalibrated:target/(only|first|last):(\d+)$"
BATCH = r"^batch:(\d+)(?:@([\d.]+))?$"
FORMS = {"only": "target in one layer", "first": "in the first layers", "last": "in the last layers"}
SHADE_LIMIT = 15.0  # points at which a heat map's colour is full
KEYS = ["statistics", "dataset", "role", "companion", "comparison", "detector", "metric"]
ENDS = ["value", "low", "high"]
SWEPT = (  # what sweeps show: title, metric, detector
    ("AUROC of energy, per cent", "auroc", "energy"),
    ("Mean MSP on OOD images, per cent", "mean", "msp"),
    ("Largest unit mean, relative to ID", "unit_mean_max_ratio", "units"),
)
CONFIDENCE = (
    ("Mean MSP, per cent", "mean", "msp"),
    ("Images with MSP > 0.9, per cent", "share_above_0.9", "msp"),
    ("Mean energy", "mean", "energy"),
    ("Largest unit mean, relative to ID", "unit_mean_max_ratio", "units"),
)
DETECTION = (
    ("AUROC of MSP, per cent", "auroc", "msp"),
    ("AUROC of energy, per cent", "auroc", "energy"),
    ("FPR95 of MSP, per cent", "fpr95", "msp"),
    ("FPR95 of energy, per cent", "fpr95", "energy"),
    ("Accuracy on ID images, per cent", "accuracy", ""),
)


def run_pictures(table: pd.DataFrame, units: pd.DataFrame, layers: pd.DataFrame) -> list[Picture]:
    """All pictures that the tables of one network, or the mean of several seeds, have the rows for."""
    found = [
        units_picture(units),
        detector_picture(table),
        dots_picture(table, "detection", DETECTION),
        dots_picture(table, "confidence", CONFIDENCE),
        batch_picture(table),
        layer_forms_picture(table),
        layer_distances_picture(layers),
        tradeoff_picture(table),
    ]
    return [picture for picture in found if picture is not None]


def over_networks(table: pd.DataFrame) -> pd.DataFrame:
    """The mean over the seeds of a table, without intervals, which are those of one network; one seed as it is."""
    if table["run"].nunique() < 2:
        return table
    mean = table.groupby(KEYS, sort=False, dropna=False)[["value", "difference"]].mean().reset_index()
    return mean.assign(low=np.nan, high=np.nan)


def rows(table: pd.DataFrame, metric: str, detector: str, role: str = "ood") -> pd.DataFrame:
    """The rows of one quantity, of the OOD sets against the clean ID set or of that set itself.

    ID images that share batches or statistics with OOD images have a row for each OOD set; the first is taken.
    """
    found = table[(table["metric"] == metric) & (table["detector"] == detector) & (table["role"] == role)]
    if role == "ood":
        return found[found["comparison"].isin(["ood", ""]) & (found["companion"] == "")]
    shifts = set(table.loc[table["role"] == "ood", "companion"]) - {""}
    keys = [key for key in ("network", "seed", "statistics", "dataset") if key in found]
    return found[~found["dataset"].isin(shifts)].drop_duplicates(keys)


def main_statistics(table: pd.DataFrame) -> list[str]:
    """The kinds of statistics that pictures compare: no sweeps over layers, paths or priors, one size of batch."""
    names = [name for name in table["statistics"].unique() if re.fullmatch(MAIN, name)]
    sizes = {name: int(found[1]) for name in names if (found := re.fullmatch(BATCH, name))}
    size = 128 if 128 in sizes.values() else max(sizes.values(), default=0)
    return [name for name in names if sizes.get(name, size) == size]


def colours(names: Iterable[str]) -> dict[str, str]:
    """A colour per image set, by its place."""
    return {name: COLOURS[i % len(COLOURS)] for i, name in enumerate(names)}


def legend_of(names: Iterable[str]) -> list[tuple[str, str]]:
    """Display names and colours of image sets, the ID set in grey."""
    return [("ID", ID_COLOUR), *((display(name), colour) for name, colour in colours(names).items())]


def listed(names: Iterable[str]) -> str:
    """Display names with commas between them."""
    return ", ".join(map(display, names))


def units_picture(units: pd.DataFrame) -> Picture | None:
    """ReAct's picture: mean and standard deviation of each penultimate unit, units sorted by their ID mean."""
    if units.empty:
        return None
    kinds = [kind for kind in ("running", TARGET) if (units["statistics"] == kind).any()]
    units = units[units["statistics"].isin(kinds)]
    names = list(units.loc[units["role"] == "ood", "dataset"].unique())
    known = units[(units["role"] == "id") & (units["statistics"] == "running")]
    order = known.groupby("unit")["mean"].mean().sort_values().index
    top, floor = float((units["mean"] + units["std"]).max()) * 1.03, 0.0 if (units["mean"] >= 0).all() else None

    def draw(axes: Axes, kind: str, dataset: str) -> None:
        here = units[units["statistics"] == kind]
        own = here[here["role"] == "id"]
        if "companion" in own and (own["companion"] == dataset).any():
            own = own[own["companion"] == dataset]
        other = here[here["dataset"] == dataset]
        for part, colour, line in ((other, colours(names)[dataset], ""), (own, ID_COLOUR, INK)):
            found = part.groupby("unit")[["mean", "std"]].mean().reindex(order)
            profile(axes, range(len(order)), found["mean"], found["std"], colour, line, floor)
        axes.set_ylim(floor, top)
        axes.set_xlabel("unit, sorted by its mean on ID images")
        axes.set_ylabel("activation")

    panels = [
        Panel(f"{display(n)}, {display(k)} statistics", partial(draw, kind=k, dataset=n)) for n in names for k in kinds
    ]
    alt = f"Mean activation of each penultimate unit, ID in grey, in colour {listed(names)}; under {listed(kinds)}."
    return Picture("units", alt, panels, len(kinds), legend_of(names))


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
        heat(axes, list(map(display, names)), list(map(display, kinds)), shades, cells, SHADE_LIMIT)

    size = (1.5 + 0.8 * len(kinds), 0.6 + 0.42 * len(names))
    panels = [Panel("Mean of the OOD sets", partial(draw, own=sets), *size)] if len(sets) > 1 else []
    panels += [Panel(display(dataset), partial(draw, own=[dataset]), *size) for dataset in sets]
    alt = f"Heat maps of AUROC in per cent and its difference to running statistics in points: {listed(sets)}."
    return Picture("detectors", alt, panels, 1)


def dots_picture(table: pd.DataFrame, name: str, quantities: Sequence[tuple[str, str, str]]) -> Picture | None:
    """A panel of dots per quantity: rows are statistics, colours are image sets."""
    kinds, panels = main_statistics(table), []
    sets = list(table.loc[table["role"] == "ood", "dataset"].unique())
    for title, metric, detector in quantities:
        found = pd.concat([rows(table, metric, detector, role) for role in ("id", "ood")])
        series = []
        for dataset, part in found.groupby("dataset", sort=False):
            ends = scale(metric, detector) * part.set_index("statistics")[ENDS].reindex(kinds)
            series.append(Series(colours(sets).get(str(dataset), ID_COLOUR), *(ends[column] for column in ENDS)))
        if series:
            draw = partial(dots, rows=list(map(display, kinds)), series=series)
            panels.append(Panel(title, draw, height=0.6 + 0.4 * len(kinds)))
    titles = ", ".join(panel.title for panel in panels)
    alt = f"Dot plots under each kind of statistics, ID and {listed(sets)}: {titles}."
    return Picture(name, alt, panels, 2, legend_of(sets)) if panels else None


def layer_forms_picture(table: pd.DataFrame) -> Picture | None:
    """Target statistics in only one layer, in the first K and in the last K."""
    found = table["statistics"].str.extract(FORM).dropna().drop_duplicates()
    places = sorted(found[1].astype(int).unique())
    swept = {
        FORMS[form]: [f"{TARGET}/{form}:{place}" for place in places] for form in FORMS if (found[0] == form).any()
    }
    return _sweep(table, "layer_forms", swept, places, "layer, or number of layers", references=("running", TARGET))


def batch_picture(table: pd.DataFrame) -> Picture | None:
    """Batch statistics over OOD fractions, one line per batch size."""
    found = table["statistics"].str.extract(BATCH).dropna(subset=0).drop_duplicates()
    fractions = sorted(found[1].fillna("").unique(), key=lambda text: float(text or 0))
    names = [f"{100 * float(text):.0f}\u00a0% OOD" if text else "pure" for text in fractions]
    swept = {
        f"batch of {size}": [f"batch:{size}@{text}" if text else f"batch:{size}" for text in fractions]
        for size in sorted(found[0].unique(), key=int)
    }
    return _sweep(table, "batches", swept, range(len(names)), "", names) if len(found) > 1 else None


def _sweep(
    table: pd.DataFrame, name: str, swept: dict[str, list[str]], places: Sequence[float], x_label: str,
    names: Sequence[str] = (), references: Sequence[str] = (),
) -> Picture | None:  # fmt: skip
    """Lines over `places` through the kinds of statistics in `swept`; means over the OOD sets."""
    panels, legend = [], list(zip(swept, COLOURS, strict=False))
    for title, metric, detector in SWEPT:
        mean = scale(metric, detector) * rows(table, metric, detector).groupby("statistics")["value"].mean()
        series = [Series(colour, mean.reindex(swept[label])) for label, colour in legend]
        known = {display(kind): mean[kind] for kind in references if kind in mean}
        draw = partial(lines, places=places, series=series, x_label=x_label, names=names, references=known)
        panels += [Panel(title, draw)] if len(mean) else []
    alt = f"Line plots, mean of the OOD sets: {', '.join(panel.title for panel in panels)}; {', '.join(swept)}."
    return Picture(name, alt, panels, 3, legend) if swept and panels else None


def layer_distances_picture(layers: pd.DataFrame) -> Picture | None:
    """How far each layer's statistics on a set are from the running ones."""
    if layers.empty:
        return None
    names = list(layers.loc[layers["role"] == "ood", "dataset"].unique())
    places = sorted(layers["position"].unique())
    means = layers.groupby(["dataset", "position"], sort=False)["symmetric_kl"].mean().unstack("dataset")
    series = [Series(colours(names).get(name, ID_COLOUR), values) for name, values in means.reindex(places).items()]
    draw = partial(lines, places=places, series=series, x_label="BatchNorm layer", log=True)
    alt = f"Line plot of the distance of each layer's statistics from the running ones: ID and {listed(names)}."
    return Picture("layer_distances", alt, [Panel("Symmetric KL divergence", draw)], 1, legend_of(names))


def tradeoff_picture(table: pd.DataFrame) -> Picture | None:
    """Accuracy on shifted ID images against AUROC of OOD images, from running to target statistics."""
    auroc = table[(table["metric"] == "auroc") & (table["detector"] == "energy") & (table["comparison"] == "ood")]
    accuracy = table[(table["metric"] == "accuracy") & (table["role"] == "id")]
    accuracy = accuracy.drop_duplicates(["statistics", "dataset"])  # one row per OOD set where these share statistics
    pairs = auroc[auroc["companion"] != ""].merge(
        accuracy[["statistics", "dataset", "value"]], left_on=["statistics", "companion"],
        right_on=["statistics", "dataset"], suffixes=("", "_accuracy"),
    )  # fmt: skip
    if not pairs["statistics"].eq(TARGET).any():
        return None
    names, shifts = list(pairs["dataset"].unique()), list(pairs["companion"].unique())

    def draw(axes: Axes, shift: str) -> None:
        for name, part in pairs[pairs["companion"] == shift].groupby("dataset", sort=False):
            ends = 100 * part.set_index("statistics")[["value_accuracy", "value"]].reindex(["running", TARGET])
            colour = colours(names)[str(name)]
            axes.plot(*ends.T.to_numpy(), color=colour, linewidth=1.2)
            for end, face in zip(ends.to_numpy(), ("none", colour), strict=True):
                axes.plot(*end, "o", color=colour, markerfacecolor=face, markersize=6)
        axes.set_xlabel("accuracy on shifted ID images, per cent")
        axes.set_ylabel("AUROC of energy, per cent")
        axes.margins(0.12)

    alt = f"AUROC against accuracy on shifted ID images, running (open) and target (filled): {listed(shifts)}."
    panels = [Panel(display(shift), partial(draw, shift=shift)) for shift in shifts]
    return Picture("tradeoff", alt, panels, 2, legend_of(names)[1:])
