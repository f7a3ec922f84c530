"""The pictures of an evaluation: tables in, matplotlib figures out.

The functions are pure and use no global state (no pyplot): they read the tables that the evaluation writes
(`table.csv`, `scores.parquet`, `units.parquet`; see evaluation.py for their columns) and draw what stands there.
Colours are Okabe and Ito's, which readers with any colour vision can tell apart, but for the last two, a brown and a
violet: their orange and sky blue have too little contrast on white (WCAG 2 asks for 3:1). The in-distribution (ID) set
is always dark grey, and an out-of-distribution (OOD) set has one colour in every figure of an evaluation.
"""

from __future__ import annotations

import textwrap
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import NullFormatter

from bnood.errors import UserError
from bnood.report.headline_conditions import at_one_batch_size, conditions, headline_conditions, row_label
from bnood.training.run_folder import write_beside

ID_COLOUR = "#333333"
OOD_COLOURS = ("#D55E00", "#0072B2", "#009E73", "#CC79A7", "#734922", "#8A2EE5")
NORM_MARKERS = {"bn": "o", "ln": "s", "gn": "D", "none": "^"}
SCORE_LABELS = {
    "energy": "energy score (nats; higher = more in-distribution)",
    "msp": "maximum softmax probability (share; higher = more in-distribution)",
    "max_logit": "maximum logit (nats; higher = more in-distribution)",
}
BINS = 50
DPI = 150
STYLE: dict[Any, Any] = {
    "font.size": 10,
    "font.family": "sans-serif",
    "axes.titlesize": 10,
    "axes.labelsize": 10,
    "xtick.labelsize": 9,
    "ytick.labelsize": 9,
    "legend.fontsize": 10,
    "figure.titlesize": 11.5,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.axisbelow": True,
    "axes.grid": False,
    "legend.frameon": False,
    "figure.facecolor": "white",
    "text.color": "#222222",
    "axes.labelcolor": "#222222",
    "text.parse_math": False,  # the name of a run or of a folder of images may hold a "$"
}


def complete(frame: pd.DataFrame, columns: str, what: str) -> pd.DataFrame:
    """Check that `frame` has the columns (separated by spaces) and give empty names back their "".

    pandas reads an empty CSV field as NaN, which no comparison with "" would find.

    Raises:
        UserError: a column is missing, or there is no row.
    """
    missing = [name for name in columns.split() if name not in frame.columns]
    if missing:
        raise UserError(f"{what} lacks the column(s) {', '.join(missing)}; bnood.evaluation.evaluate writes them")
    if frame.empty:
        raise UserError(f"{what} has no rows; evaluate at least one OOD set first")
    named = {"statistics", "composition", "companion", "score"} & set(frame.columns)
    holed = [name for name in named if frame[name].isna().any()]
    return frame.assign(**{name: frame[name].astype(object).fillna("") for name in holed})


def ood_sets(frame: pd.DataFrame) -> list[str]:
    """Names of the OOD sets, in the order in which they were evaluated."""
    return [str(name) for name in frame.loc[frame["role"] == "ood", "dataset"].unique()]


def id_rows(frame: pd.DataFrame, companion: str) -> pd.DataFrame:
    """The ID rows that belong to an OOD set: those that shared its batches, or else those that shared with none."""
    own = frame[frame["role"] == "id"]
    shared = own[own["companion"] == companion]
    return shared if len(shared) else own[own["companion"] == ""]


def colours(sets: list[str]) -> dict[str, str]:
    """One colour per OOD set; from the seventh set on they repeat."""
    return {name: OOD_COLOURS[i % len(OOD_COLOURS)] for i, name in enumerate(sets)}


def _count(numbers: list[int]) -> str:
    """ "n = 1,000", or the range where the conditions differ (under batch a short last batch may be left out)."""
    low, high = min(numbers), max(numbers)
    return f"n = {low:,}" if low == high else f"n = {low:,} to {high:,}"


def _id_name(frame: pd.DataFrame) -> str:
    names = frame.loc[frame["role"] == "id", "dataset"].unique()
    if len(names) == 0:
        raise UserError("no row has role 'id'; an evaluation scores the in-distribution set under every condition")
    return str(names[0])


def _blank(axes: Axes) -> None:
    axes.text(0.5, 0.5, "not evaluated", transform=axes.transAxes, ha="center", va="center", color="#777777")


@matplotlib.rc_context(STYLE)
def score_histograms(scores: pd.DataFrame, score: str) -> Figure:
    """Densities of one score, ID against each OOD set (columns) under each headline condition (rows), shuffle 0.

    Raises:
        UserError: `score` is no column of `scores`, or there is nothing to draw.
    """
    needed = "statistics composition batch_size shuffle companion dataset role"
    frame = complete(scores, f"{needed} {score}", "the table of scores")
    frame = frame[frame["shuffle"] == 0]
    rows, sets, id_name = headline_conditions(frame), ood_sets(frame), _id_name(frame)
    frame = pd.concat([condition.rows(frame) for condition in rows])
    edges = np.histogram_bin_edges(frame[score].to_numpy(np.float64), bins=BINS)
    figure = Figure(figsize=(1.9 + 2.25 * len(sets), 1.5 + 1.25 * len(rows)), layout="constrained")
    grid = figure.subplots(len(rows), len(sets), squeeze=False, sharex=True, sharey=True)
    id_counts: list[int] = []
    ood_counts: dict[str, list[int]] = {name: [] for name in sets}
    for condition, row in zip(rows, grid, strict=True):
        part = condition.rows(frame)
        for name, axes in zip(sets, row, strict=True):
            own, other = id_rows(part, name)[score], part.loc[part["dataset"] == name, score]
            if own.empty or other.empty:
                _blank(axes)
                continue
            _histogram(axes, own.to_numpy(np.float64), edges, ID_COLOUR, fill=True)
            _histogram(axes, other.to_numpy(np.float64), edges, colours(sets)[name], fill=False)
            id_counts.append(len(own))
            ood_counts[name].append(len(other))
        row[0].set_ylabel(textwrap.fill(condition.label, 16), rotation=0, ha="right", va="center", labelpad=10)
    for name, axes in zip(sets, grid[0], strict=True):
        title = f"{textwrap.fill(name, 24)}\n{_count(ood_counts[name] or [0])}"
        axes.set_title(title, color=colours(sets)[name], fontweight="bold")
    if score == "msp":  # nearly all of its mass lies at 1: only a logarithm shows the rest
        grid[0, 0].set_yscale("log")
        grid[0, 0].yaxis.set_major_formatter("{x:g}")
        grid[0, 0].yaxis.set_minor_formatter(NullFormatter())
    figure.supxlabel(SCORE_LABELS.get(score, score), fontsize=10)
    figure.supylabel("density (per unit of the score)", fontsize=10)
    own = f"{id_name} (ID, grey, {_count(id_counts or [0])})"
    figure.suptitle(f"{score} on {own} and on each OOD set (coloured); dashed: means")
    return figure


def _histogram(axes: Axes, values: np.ndarray, edges: np.ndarray, colour: str, fill: bool) -> None:
    density, _ = np.histogram(values, bins=edges, density=True)
    axes.stairs(density, edges, fill=fill, color=colour, alpha=0.35 if fill else 1.0, linewidth=0 if fill else 1.6)
    axes.axvline(values.mean(), color=colour, linestyle=(0, (4, 2)), linewidth=1.1)


@matplotlib.rc_context(STYLE)
def unit_profiles(
    units: pd.DataFrame, matched: str = "recalibrated:target", images: Mapping[str, int] | None = None
) -> Figure:
    """Mean ± standard deviation of each penultimate unit, ID against one OOD set per row (ReAct, figure 1).

    The left column is under running statistics, the right one under `matched` ones if `units` holds them. Units are
    sorted by their ID mean under running statistics, in the same order everywhere, so that raggedness is the OOD
    set's own. `images` (set -> number of images) adds n to the titles.
    """
    frame = complete(units, "statistics composition batch_size companion dataset role unit mean std", "the unit table")
    sets, id_name, images = ood_sets(frame), _id_name(frame), images or {}
    columns = [name for name in ("running", matched) if name in set(frame["statistics"])]
    running = id_rows(frame[frame["statistics"] == columns[0]], "") if columns else frame.iloc[:0]
    if running.empty or columns[0] != "running":
        raise UserError("the unit table has no ID rows under running statistics, by which the units are sorted")
    order = running.sort_values("mean")["unit"].to_numpy()
    figure = Figure(figsize=(10.5 if len(columns) > 1 else 7.5, 1.4 + 1.75 * len(sets)), layout="constrained")
    grid = figure.subplots(len(sets), len(columns), squeeze=False, sharex=True, sharey=True)
    for name, row in zip(sets, grid, strict=True):
        for column, axes in zip(columns, row, strict=True):
            part = frame[frame["statistics"] == column]
            own, other = id_rows(part, name), part[part["dataset"] == name]
            count = f", n = {images[name]:,} images" if name in images else ""
            axes.set_title(f"{name} under {column}{count}", color=colours(sets)[name], fontweight="bold", loc="left")
            if own.empty or other.empty:
                _blank(axes)
                continue
            _profile(axes, other, order, colours(sets)[name])
            _profile(axes, own, order, ID_COLOUR)
            axes.margins(x=0.01)
    count = f", n = {images[id_name]:,} images" if id_name in images else ""
    figure.suptitle(f"Penultimate units, mean ± std over images\n{id_name} (ID, grey{count}), OOD sets coloured")
    figure.supxlabel(f"unit (all {len(order)}, sorted by their ID mean under running statistics)", fontsize=10)
    figure.supylabel("activation after ReLU and pooling (arbitrary units)", fontsize=10)
    return figure


def _profile(axes: Axes, rows: pd.DataFrame, order: np.ndarray, colour: str) -> None:
    sorted_rows = rows.set_index("unit").loc[order]
    mean, std = sorted_rows["mean"].to_numpy(np.float64), sorted_rows["std"].to_numpy(np.float64)
    place = np.arange(len(order))
    axes.fill_between(place, mean - std, mean + std, color=colour, alpha=0.2, linewidth=0)
    axes.plot(place, mean, color=colour, linewidth=1.2)


@matplotlib.rc_context(STYLE)
def detection_by_condition(table: pd.DataFrame, score: str = "energy") -> Figure:
    """AUROC and FPR95 of one score with their 95 % intervals: a row per condition, a colour per OOD set.

    Tables of several runs may be joined: each norm is a group of rows with its own marker, each run a dot.
    """
    needed = "run norm seed statistics composition batch_size dataset role score metric value low high n n_id"
    frame = complete(table, needed, "the metric table")
    frame = frame[(frame["role"] == "ood") & (frame["score"] == score) & frame["metric"].isin(["auroc", "fpr95"])]
    if frame.empty:
        raise UserError(f"the metric table has no AUROC or FPR95 of the score '{score}'")
    sets, norms = ood_sets(frame), [str(norm) for norm in frame["norm"].unique()]
    rows = [(norm, condition) for norm in norms for condition in conditions(frame[frame["norm"] == norm])]
    most_runs = max(frame[frame["norm"] == norm]["run"].nunique() for norm in norms)
    height = max(3.6, 1.9 + len(rows) * max(0.5, 0.12 * len(sets) * most_runs))
    figure = Figure(figsize=(10.5, height), layout="constrained")
    panels = figure.subplots(1, 2, sharey=True)
    for axes, metric in zip(panels, ("auroc", "fpr95"), strict=True):
        for place, (norm, condition) in enumerate(rows):
            if place % 2 == 0:
                axes.axhspan(place - 0.5, place + 0.5, color="#F1F1F1", linewidth=0, zorder=0)
            part = condition.rows(frame[(frame["norm"] == norm) & (frame["metric"] == metric)])
            _dots(axes, part, place, sets, NORM_MARKERS.get(norm, "o"))
        for place in range(1, len(rows)):
            if rows[place][0] != rows[place - 1][0]:
                axes.axhline(place - 0.5, color="#555555", linewidth=1)
        axes.grid(axis="x", color="#D5D5D5", linewidth=0.7)
    labels = [condition.label if len(norms) == 1 else row_label(norm, condition) for norm, condition in rows]
    panels[0].set_yticks(range(len(rows)), labels)
    panels[0].set_ylim(len(rows) - 0.5, -0.5)
    panels[0].set_ylabel("statistics" if len(norms) == 1 else "norm · statistics")
    panels[0].set_xlabel("AUROC (share)\nhigher is better")
    panels[1].set_xlabel("FPR95 (share of OOD accepted where 95 % of ID is)\nlower is better")
    figure.legend(handles=_legend(frame, sets, norms), loc="outside lower center", ncols=3)
    runs = frame["run"].unique()
    what = str(runs[0]) if len(runs) == 1 else f"{len(runs)} runs"
    figure.suptitle(f"OOD detection by {score}, 95 % intervals: {what}, ID {_count(frame['n_id'].tolist())}")
    return figure


def _dots(axes: Axes, rows: pd.DataFrame, place: int, sets: list[str], marker: str) -> None:
    """One row of the dot plot; the dots of its sets and runs lie beneath each other."""
    runs = list(rows["run"].unique())
    slots = np.linspace(-0.33, 0.33, max(len(sets) * len(runs), 2))
    for i, name in enumerate(sets):
        own = rows[rows["dataset"] == name]
        y = [place + slots[i * len(runs) + runs.index(run)] for run in own["run"]]
        colour = colours(sets)[name]
        face = colour if i < len(OOD_COLOURS) else "white"  # hollow dots where colours repeat
        axes.hlines(y, own["low"], own["high"], color=colour, linewidth=1.8)
        axes.plot(own["value"], y, marker, markersize=5, color=colour, markerfacecolor=face)


def _legend(frame: pd.DataFrame, sets: list[str], norms: list[str]) -> list[Line2D]:
    handles = []
    for i, name in enumerate(sets):
        colour = colours(sets)[name]
        label = f"{name} ({_count(frame.loc[frame['dataset'] == name, 'n'].tolist())})"
        face = colour if i < len(OOD_COLOURS) else "white"
        marker = NORM_MARKERS.get(norms[0], "o") if len(norms) == 1 else "o"
        handles.append(Line2D([], [], color=colour, marker=marker, markerfacecolor=face, linewidth=1.8, label=label))
    if len(norms) > 1:
        for norm in norms:
            marker = NORM_MARKERS.get(norm, "o")
            handles.append(Line2D([], [], color="#555555", marker=marker, linewidth=0, label=f"norm {norm}"))
    return handles


@matplotlib.rc_context(STYLE)
def reliability_diagram(scores: pd.DataFrame, table: pd.DataFrame, bins: int = 15) -> Figure:
    """Accuracy against confidence (MSP) on the ID set under each headline condition, shuffle 0 (Guo et al., 2017).

    `bins` equal bins over [0, 1]; bars on the dots are Wilson 95 % intervals of the accuracy; beneath, the share of
    images per bin. The expected calibration error (ECE) in the titles is the metric table's. Where ID images shared
    their batches with an OOD set, the first set stands for all and is named.

    Raises:
        UserError: no ID image has a label.
    """
    needed = "statistics composition batch_size shuffle companion dataset role label prediction msp"
    frame = complete(scores, needed, "the table of scores")
    measured = complete(table, "statistics composition batch_size companion role metric value low high", "the table")
    known = frame[(frame["role"] == "id") & (frame["shuffle"] == 0) & (frame["label"] >= 0)]
    if known.empty:
        raise UserError("no ID image has a label, so confidence can't be compared with accuracy")
    first, id_name = next(iter(ood_sets(frame)), ""), _id_name(frame)
    chosen = headline_conditions(known)
    across = min(3, len(chosen))
    down = -(-len(chosen) // across)
    figure = Figure(figsize=(max(5.5, 1.0 + 3.2 * across), 0.9 + 4.2 * down), layout="constrained")
    grid = figure.subplots(2 * down, across, squeeze=False, height_ratios=[3, 1] * down, sharex=True, sharey="row")
    for place in range(across * down):
        upper, lower = grid[2 * (place // across), place % across], grid[2 * (place // across) + 1, place % across]
        if place >= len(chosen):
            upper.remove()
            lower.remove()
            continue
        rows = id_rows(chosen[place].rows(known), first)
        _reliability(upper, lower, rows, bins)
        beside = f", shared with {rows['companion'].iloc[0]}" if rows["companion"].iloc[0] else ""
        ece = id_rows(chosen[place].rows(measured), str(rows["companion"].iloc[0])).query("metric == 'ece'")
        error = f"ECE {_with_interval(ece.iloc[0])}" if len(ece) else "ECE not in the table"
        upper.set_title(f"{chosen[place].label}\n{error}\nn = {len(rows):,}{beside}")
        lower.set_xlabel("confidence (MSP, share)")
        if place % across == 0:
            upper.set_ylabel("accuracy (share)")
            lower.set_ylabel("share of\nimages")
    figure.suptitle(f"Reliability on {id_name} (ID)\naccuracy by confidence in {bins} bins, 95 % intervals")
    return figure


def _with_interval(row: pd.Series) -> str:
    return f"{row['value']:.3f} [{row['low']:.3f}, {row['high']:.3f}]"


def _reliability(upper: Axes, lower: Axes, rows: pd.DataFrame, bins: int) -> None:
    confidence = rows["msp"].to_numpy(np.float64)
    right = (rows["label"] == rows["prediction"]).to_numpy(np.float64)
    edges = np.linspace(0.0, 1.0, bins + 1)
    # Bins as in metrics.expected_calibration_error, but for confidences of exactly 1, which join the last bin here.
    held = np.minimum(np.searchsorted(edges, confidence, "right") - 1, bins - 1)
    n = np.bincount(held, minlength=bins)
    some = n > 0
    x = np.bincount(held, confidence, minlength=bins)[some] / n[some]
    y = np.bincount(held, right, minlength=bins)[some] / n[some]
    low, high = _wilson(y, n[some])
    upper.plot([0, 1], [0, 1], color="#999999", linewidth=1, linestyle=(0, (4, 2)))
    upper.vlines(x, low, high, color=ID_COLOUR, linewidth=1.4)
    upper.plot(x, y, "o", color=ID_COLOUR, markersize=5, clip_on=False, zorder=3)
    upper.set(xlim=(0, 1), ylim=(0, 1), xticks=[0, 0.25, 0.5, 0.75, 1], xticklabels=["0", "", "0.5", "", "1"])
    lower.stairs(n / n.sum(), edges, fill=True, color=ID_COLOUR, alpha=0.5)
    lower.set_ylim(0, 1)


def _wilson(share: np.ndarray, n: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Wilson's 95 % interval of a share of n, which stays within [0, 1] also for few images."""
    z = 1.959964
    middle = (share + z**2 / (2 * n)) / (1 + z**2 / n)
    half = z / (1 + z**2 / n) * np.sqrt(share * (1 - share) / n + z**2 / (4 * n**2))
    return middle - half, middle + half


@matplotlib.rc_context(STYLE)
def write_figures(table: pd.DataFrame, scores: pd.DataFrame, units: pd.DataFrame, folder: Path) -> list[Path]:
    """Draw all figures of one evaluation into `folder` as PNGs, the main result first; give their paths."""
    table = complete(table, "role dataset metric n statistics composition batch_size", "the metric table")
    shown = pd.concat([condition.rows(table) for condition in at_one_batch_size(conditions(table))])
    images = {str(name): int(n) for name, n in table.groupby("dataset")["n"].max().items()}
    figures = {
        "detection_energy": detection_by_condition(shown, "energy"),
        "scores_energy": score_histograms(scores, "energy"),
        "unit_profiles": unit_profiles(units, images=images),
        "detection_msp": detection_by_condition(shown, "msp"),
        "scores_msp": score_histograms(scores, "msp"),
    }
    if ((scores["role"] == "id") & (scores["label"] >= 0)).any():
        figures["reliability"] = reliability_diagram(scores, table)
    paths = []
    for name, figure in figures.items():
        paths.append(Path(folder) / f"{name}.png")
        write_beside(paths[-1], partial(figure.savefig, format="png", dpi=DPI))
    return paths
