"""The pictures of an evaluation, from its tables: ReAct's picture, detectors × statistics, and the sweeps.

Every function gives a :class:`bnood.report.charts.Picture`, or None where the tables have nothing for it. Tables are
those of the evaluation (columns in :mod:`bnood.evaluation.tables`); of several networks they are first averaged by
:func:`over_networks`. AUROC, FPR95 and accuracy are drawn in per cent, their differences in points.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Sequence
from functools import partial
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd

from bnood.report.charts import COLOURS, ID_COLOUR, INK, Panel, Picture, Series, dots, heat, lines, profile
from bnood.report.names import PLAIN_METRICS, display

if TYPE_CHECKING:
    from matplotlib.axes import Axes

TARGET = "recalibrated:target"
MAIN = re.compile(r"running|batch:\d+(@[\d.]+)?|recalibrated:(id|augmented|target|mixture@[\d.]+)")
FORM = re.compile(r"recalibrated:target/(only|first|last):(\d+)")
BATCH = re.compile(r"batch:(\d+)(?:@([\d.]+))?")
FORMS = {"only": "this layer alone", "first": "the first layers", "last": "the last layers"}
SHADE_LIMIT = 15.0  # points at which a heat map's colour is full
KEYS = ["statistics", "dataset", "role", "companion", "comparison", "detector", "metric"]
NUMBERS = ["value", "low", "high", "difference", "difference_low", "difference_high"]


def over_networks(table: pd.DataFrame) -> pd.DataFrame:
    """The mean over the networks of a table; intervals are those of one network, so that several have none."""
    if len(table.drop_duplicates(["run", "network", "seed"])) < 2:
        return table
    mean = table.groupby(KEYS, sort=False, dropna=False)[NUMBERS].mean().reset_index()
    return mean.assign(low=np.nan, high=np.nan, difference_low=np.nan, difference_high=np.nan)


def rows(table: pd.DataFrame, metric: str, detector: str = "", role: str = "ood") -> pd.DataFrame:
    """The rows of one quantity: of OOD sets against the clean ID set, or of the clean ID set itself."""
    shifted = set(table.loc[(table["role"] == "ood") & (table["comparison"] == "ood"), "companion"]) - {""}
    found = table[(table["metric"] == metric) & (table["detector"] == detector) & (table["role"] == role)]
    if role == "ood":
        return found[found["comparison"].isin(["ood", ""]) & (found["companion"] == "")]
    # ID images have one row per OOD set where both shared statistics or batches; the picture shows their mean.
    found = found[~found["dataset"].isin(shifted)]
    several = found.groupby("statistics")["companion"].transform("nunique") > 1
    found = found.assign(low=found["low"].where(~several), high=found["high"].where(~several))
    return found.groupby(["statistics", "dataset"], sort=False)[NUMBERS].mean().reset_index()


def main_statistics(table: pd.DataFrame) -> list[str]:
    """The kinds of statistics that pictures compare: no sweeps over layers, paths or priors, one size of batch."""
    names = [name for name in table["statistics"].unique() if MAIN.fullmatch(name)]
    sizes = [int(found[1]) for name in names if (found := BATCH.fullmatch(name))]
    size = 128 if 128 in sizes else max(sizes, default=0)
    return [name for name in names if not (found := BATCH.fullmatch(name)) or int(found[1]) == size]


def ood_sets(table: pd.DataFrame) -> list[str]:
    """OOD sets in the table's order."""
    return list(table.loc[(table["role"] == "ood") & table["comparison"].isin(["ood", ""]), "dataset"].unique())


def colours(names: Iterable[str]) -> dict[str, str]:
    """A colour per image set, by its place."""
    return {name: COLOURS[i % len(COLOURS)] for i, name in enumerate(names)}


def scale(metric: str, detector: str) -> float:
    """What values are multiplied with: 100 for fractions."""
    return 1.0 if metric in PLAIN_METRICS or (metric == "mean" and detector in PLAIN_METRICS) else 100.0


def units_picture(units: pd.DataFrame, name: str = "units", network: str = "") -> Picture | None:
    """ReAct's picture: mean and standard deviation of each penultimate unit, units sorted by their ID mean."""
    if units.empty:
        return None
    kinds = [kind for kind in ("running", TARGET) if (units["statistics"] == kind).any()]
    units = units[units["statistics"].isin(kinds)]
    id_rows, names = units[units["role"] == "id"], list(units.loc[units["role"] == "ood", "dataset"].unique())
    order = id_rows[id_rows["statistics"] == "running"].groupby("unit")["mean"].mean().sort_values().index
    top = float((units["mean"] + units["std"]).max()) * 1.03
    floor = 0.0 if (units["mean"] >= 0).all() else None

    def draw(axes: Axes, kind: str, dataset: str) -> None:
        here = units[units["statistics"] == kind]
        own = here[here["role"] == "id"]
        if "companion" in own and (own["companion"] == dataset).any():
            own = own[own["companion"] == dataset]
        other = here[here["dataset"] == dataset]
        for part, colour, line in ((other, colours(names)[dataset], ""), (own, ID_COLOUR, INK)):
            found = part.groupby("unit")[["mean", "std"]].mean().reindex(order)
            profile(axes, found["mean"].to_numpy(), found["std"].to_numpy(), colour, floor, line)
        axes.set_ylim(floor, top)
        axes.set_xlabel("unit, sorted by its mean on ID images")
        axes.set_ylabel("activation")

    panels = [
        Panel(f"{display(dataset)}, {display(kind)} statistics", partial(draw, kind=kind, dataset=dataset))
        for dataset in names
        for kind in kinds
    ]
    figures = units.groupby(["dataset", "statistics"], sort=False)["mean"].agg(["mean", "std", "max"]).reset_index()
    return Picture(
        name,
        f"Line plots of the activation of each penultimate unit{network}, mean with a band of one standard deviation, "
        f"ID images in grey, in colour {', '.join(map(display, names))}; under "
        f"{' and '.join(f'{display(kind)} statistics' for kind in kinds)}.",
        panels, len(kinds), [("ID", ID_COLOUR), *((display(key), value) for key, value in colours(names).items())],
        shown(figures, {"mean": "mean over units", "std": "spread over units", "max": "largest unit mean"}),
    )  # fmt: skip


def detector_picture(table: pd.DataFrame) -> Picture | None:
    """AUROC of every detector under every kind of statistics: mean of the OOD sets, then each of them."""
    auroc = table[(table["metric"] == "auroc") & table["statistics"].isin(main_statistics(table))]
    placebo = auroc[auroc["comparison"] == "placebo"]
    auroc = auroc[(auroc["role"] == "ood") & auroc["comparison"].isin(["ood", ""]) & (auroc["companion"] == "")]
    if auroc.empty:
        return None
    names, kinds = list(auroc["detector"].unique()), main_statistics(auroc)
    cue = placebo[(placebo["low"] > 0.5) | (placebo["high"] < 0.5)]
    marked = set(zip(cue["detector"], cue["statistics"], strict=True))

    def draw(axes: Axes, part: pd.DataFrame) -> None:
        value, difference = (
            100 * part.groupby(["detector", "statistics"])[column].mean().unstack().reindex(names, axis=0).reindex(kinds, axis=1)
            for column in ("value", "difference")
        )  # fmt: skip
        texts = [
            [
                _cell(value.loc[name, kind], difference.loc[name, kind], kind, (name, kind) in marked)
                for kind in kinds
            ]
            for name in names
        ]  # fmt: skip
        heat(
            axes,
            [display(name) for name in names],
            [display(k) for k in kinds],
            difference.to_numpy(float),
            texts,
            SHADE_LIMIT,
        )

    size = (1.5 + 0.8 * len(kinds), 0.6 + 0.42 * len(names))
    sets = list(auroc["dataset"].unique())
    parts = [("Mean of the OOD sets", auroc)] if len(sets) > 1 else []
    parts += [(display(dataset), auroc[auroc["dataset"] == dataset]) for dataset in sets]
    counts = placebo.groupby(["detector", "statistics"])["value"].mean().mul(100).round(1).rename("placebo AUROC")
    numbers = auroc.groupby(["detector", "statistics"], sort=False)["value"].mean().mul(100).round(1).rename("AUROC")
    numbers = numbers.to_frame().join(counts).reset_index() if len(counts) else numbers.reset_index()
    return Picture(
        "detectors",
        f"Heat maps of AUROC in per cent, detectors by statistics, with the difference to running statistics in "
        f"points: {', '.join(title for title, _ in parts)}.",
        [Panel(title, partial(draw, part=part), *size) for title, part in parts], 1, (), shown(numbers, {}),
    )  # fmt: skip


def _cell(value: float, difference: float, statistics: str, marked: bool) -> str:
    if not np.isfinite(value):
        return "n/a"
    text = f"{value:.1f}{'*' if marked else ''}"
    if statistics == "running" or not np.isfinite(difference):
        return text
    return f"{text}\n({difference:+.1f})".replace("-", "−")


def _dots_picture(
    table: pd.DataFrame, name: str, alt: str, quantities: Sequence[tuple[str, str, str]], with_id: bool
) -> Picture | None:
    """A panel of dots per (title, metric, detector): rows are statistics, colours are image sets."""
    kinds, sets = main_statistics(table), ood_sets(table)
    panels, numbers = [], []
    for title, metric, detector in quantities:
        found = [] if metric == "accuracy" else [(one, rows(table, metric, detector)) for one in sets]
        series = [(display(one), colours(sets)[one], part[part["dataset"] == one]) for one, part in found]
        if with_id or metric == "accuracy":
            series.insert(0, ("ID", ID_COLOUR, rows(table, metric, detector, "id")))
        factor = scale(metric, detector)
        drawn = []
        for label, colour, part in series:
            if part.empty:
                continue
            ends = factor * part.set_index("statistics")[["value", "low", "high"]].reindex(kinds)
            numbers.append(ends.assign(quantity=title, set=label).reset_index())
            known = ends["low"].notna().any()
            drawn.append(
                Series(label, colour, ends["value"], ends["low"] if known else (), ends["high"] if known else ())
            )
        if drawn:
            x_label = title.split(" of ")[0] + (", per cent" if factor == 100 else "")
            draw = partial(dots, rows=[display(kind) for kind in kinds], series=drawn, x_label=x_label)
            panels.append(Panel(title, draw, 3.4, 0.9 + 0.42 * len(kinds)))
    if not panels:
        return None
    legend = [("ID", ID_COLOUR), *((display(key), value) for key, value in colours(sets).items())]
    return Picture(name, f"{alt}: {', '.join(map(display, sets))}.", panels, 2, legend, shown(pd.concat(numbers), {}))


def detection_picture(table: pd.DataFrame) -> Picture | None:
    """AUROC and FPR95 of MSP and energy, and ID accuracy, under each kind of statistics."""
    scores = [name for name in ("msp", "energy") if (table["detector"] == name).any()]
    quantities = [(f"{display(m)} of {display(s)}", m, s) for m in ("auroc", "fpr95") for s in scores]
    return _dots_picture(
        table, "detection", "Dot plots of AUROC, FPR95 and ID accuracy under each kind of statistics",
        [*quantities, ("Accuracy of ID images", "accuracy", "")], with_id=False,
    )  # fmt: skip


def confidence_picture(table: pd.DataFrame) -> Picture | None:
    """Mean MSP, its share above 0.9 and mean energy, of ID and OOD images."""
    quantities = [
        ("Mean MSP", "mean", "msp"),
        ("Images with MSP above 0.9", "share_above_0.9", "msp"),
        ("Mean energy", "mean", "energy"),
        ("Largest unit mean, relative to ID", "unit_mean_max_ratio", "units"),
    ]
    alt = "Dot plots of confidence under each kind of statistics, ID images in grey, in colour"
    return _dots_picture(table, "confidence", alt, quantities, with_id=True)


SWEPT = (
    ("AUROC of energy, per cent", "auroc", "energy"),
    ("Mean MSP on OOD images, per cent", "mean", "msp"),
    ("Largest unit mean, relative to ID", "unit_mean_max_ratio", "units"),
)


def layer_forms_picture(table: pd.DataFrame) -> Picture | None:
    """Target statistics in only one layer, in the first K and in the last K; mean of the OOD sets."""
    forms = table["statistics"].str.extract(FORM)
    if forms[0].isna().all():
        return None
    table = table.assign(form=forms[0], count=pd.to_numeric(forms[1]))
    places = np.sort(table["count"].dropna().unique())
    colour = dict(zip(FORMS, COLOURS, strict=False))
    panels, numbers = [], []
    for title, metric, detector in SWEPT:
        found = rows(table, metric, detector)
        mean = scale(metric, detector) * found.groupby(["form", "count"])["value"].mean()
        ends = scale(metric, detector) * found.groupby("statistics")["value"].mean()
        if mean.empty:
            continue
        series = [
            Series(FORMS[form], colour[form], mean[form].reindex(places).to_numpy())
            for form in FORMS
            if form in mean.index.get_level_values(0)
        ]
        numbers.append(mean.rename("value").reset_index().assign(quantity=title))
        references = [ends[kind] for kind in ("running", TARGET) if kind in ends]
        panels.append(Panel(title, partial(_with_references, series, places, references)))
    legend = [(FORMS[form], colour[form]) for form in FORMS if form in set(table["form"])]
    alt = f"Line plots over the layers: {', '.join(title for title, *_ in SWEPT)}, with target statistics in "
    alt += f"{', '.join(label for label, _ in legend)}; dotted lines are running and target statistics in all layers."
    return Picture("layer_forms", alt, panels, 3, legend, shown(pd.concat(numbers), {})) if panels else None


def _with_references(series: list[Series], places: np.ndarray, references: list[float], axes: Axes) -> None:
    lines(axes, places.tolist(), series, ("layer, or number of layers", ""))
    for value, style, label in zip(references, (":", "--"), ("running", "target"), strict=False):
        axes.axhline(value, color=ID_COLOUR, linewidth=1, linestyle=style)
        axes.annotate(label, (1, value), xycoords=("axes fraction", "data"), ha="right", va="bottom", fontsize=8)


def layer_distances_picture(layers: pd.DataFrame) -> Picture | None:
    """How far each layer's statistics on a set are from the running ones."""
    if layers.empty or "symmetric_kl" not in layers:
        return None
    found = layers.groupby(["dataset", "role", "position"], sort=False)["symmetric_kl"].mean().reset_index()
    names = list(found.loc[found["role"] == "ood", "dataset"].unique())
    colour = colours(names) | dict.fromkeys(found.loc[found["role"] == "id", "dataset"], ID_COLOUR)
    places = np.sort(found["position"].unique())
    series = [
        Series(display(name), colour[name], part.set_index("position")["symmetric_kl"].reindex(places).to_numpy())
        for name, part in found.groupby("dataset", sort=False)
    ]

    def draw(axes: Axes) -> None:
        lines(axes, places.tolist(), series, ("BatchNorm layer, from the input", "symmetric KL divergence"))
        axes.set_yscale("log")

    legend = [(one.label, one.colour) for one in series]
    alt = f"Line plot of the distance of each BatchNorm layer's statistics from the running ones: {', '.join(n for n, _ in legend)}."
    return Picture(
        "layer_distances", alt, [Panel("Distance from running statistics", draw)], 1, legend, shown(found, {})
    )


def batch_picture(table: pd.DataFrame) -> Picture | None:
    """Batch statistics over OOD fractions, or over batch sizes where several were evaluated."""
    found = table["statistics"].str.extract(BATCH)
    table = table.assign(size=pd.to_numeric(found[0]), fraction=pd.to_numeric(found[1]).fillna(0.0))
    table = table[table["size"].notna()]
    if len(table[["size", "fraction"]].drop_duplicates()) < 2:
        return None
    sizes, fractions = np.sort(table["size"].unique()), np.sort(table["fraction"].unique())
    names = [f"{100 * fraction:.0f} % OOD" if fraction else "pure" for fraction in fractions]
    panels, numbers = [], []
    for title, metric, detector in SWEPT:
        values = (
            scale(metric, detector)
            * rows(table, metric, detector).groupby(["size", "fraction"])["value"].mean().unstack()
        )
        if values.empty:
            continue
        numbers.append(values.stack().rename("value").reset_index().assign(quantity=title))
        if len(sizes) > 1:
            series = [
                Series(n, COLOURS[i], values[f].reindex(sizes).to_numpy())
                for i, (n, f) in enumerate(zip(names, fractions, strict=True))
            ]
            draw: Callable[[Axes], None] = partial(
                lines,
                places=range(len(sizes)),
                series=series,
                labels=("images in a batch", ""),
                names=[f"{size:g}" for size in sizes],
            )
        else:
            own = [Series("", COLOURS[1], values.loc[sizes[0]].reindex(fractions).to_numpy())]
            draw = partial(lines, places=range(len(fractions)), series=own, labels=("batch", ""), names=names)
        panels.append(Panel(title, draw))
    if not panels:
        return None
    legend = [(name, COLOURS[i]) for i, name in enumerate(names)] if len(sizes) > 1 else []
    alt = f"Line plots of {', '.join(title for title, *_ in SWEPT)} under batch statistics, over the batch's size and OOD fraction."
    return Picture("batches", alt, panels, 3, legend, shown(pd.concat(numbers), {}))


def tradeoff_picture(table: pd.DataFrame) -> Picture | None:
    """Accuracy on shifted ID images against AUROC of OOD images, from running to target statistics."""
    detection = table[(table["metric"] == "auroc") & (table["detector"] == "energy") & (table["companion"] != "")]
    detection = detection[(detection["role"] == "ood") & detection["comparison"].isin(["ood", ""])]
    accuracy = table[(table["metric"] == "accuracy") & (table["role"] == "id")]
    shifts = [name for name in detection["companion"].unique() if (accuracy["dataset"] == name).any()]
    if not shifts:
        return None
    names = list(detection["dataset"].unique())
    pairs = detection.merge(
        accuracy[["statistics", "dataset", "value"]], left_on=["statistics", "companion"],
        right_on=["statistics", "dataset"], suffixes=("", "_accuracy"),
    )  # fmt: skip
    pairs = pairs.groupby(["companion", "dataset", "statistics"], sort=False)[["value_accuracy", "value"]].mean() * 100

    def draw(axes: Axes, shift: str) -> None:
        for name in names:
            ends = pairs.loc[shift, name] if (shift, name) in pairs.index.droplevel(2) else pairs.iloc[:0]
            kept = [kind for kind in ("running", TARGET) if kind in ends.index]
            axes.plot(
                ends.loc[kept, "value_accuracy"], ends.loc[kept, "value"], color=colours(names)[name], linewidth=1.2
            )
            for kind, face in zip(kept, ("none", colours(names)[name]), strict=False):
                axes.plot(*ends.loc[kind], "o", color=colours(names)[name], markerfacecolor=face, markersize=6)
        axes.set_xlabel("accuracy on shifted ID images, per cent")
        axes.set_ylabel("AUROC of energy, per cent")
        axes.margins(0.12)

    alt = f"Scatter plots of accuracy against AUROC, from running (open) to target statistics (filled): {', '.join(map(display, shifts))}."
    legend = [(display(key), value) for key, value in colours(names).items()]
    numbers = pairs.round(1).rename(columns={"value_accuracy": "accuracy", "value": "AUROC"}).reset_index()
    return Picture(
        "tradeoff", alt, [Panel(display(s), partial(draw, shift=s)) for s in shifts], 2, legend,
        shown(numbers, {"companion": "shift"}),
    )  # fmt: skip


def shown(numbers: pd.DataFrame, titles: dict[str, str]) -> pd.DataFrame:
    """A table for readers: display names, three digits that matter."""
    numbers = numbers.rename(columns=titles)
    for column in numbers:
        if column in ("statistics", "dataset", "detector", "shift"):
            numbers[column] = numbers[column].map(display)
        elif pd.api.types.is_float_dtype(numbers[column]):
            numbers[column] = numbers[column].map(lambda value: f"{value:.3g}" if np.isfinite(value) else "")
    return numbers


def run_pictures(table: pd.DataFrame, units: pd.DataFrame, layers: pd.DataFrame) -> list[Picture]:
    """All pictures that the tables of one network, or the mean of several, have the rows for."""
    found = [
        units_picture(units),
        detector_picture(table),
        detection_picture(table),
        confidence_picture(table),
        batch_picture(table),
        layer_forms_picture(table),
        layer_distances_picture(layers),
        tradeoff_picture(table),
    ]
    return [picture for picture in found if picture is not None]
