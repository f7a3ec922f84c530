"""One evaluation as one self-contained HTML page: the result first, then the pictures, then every number.

The page needs no network and no other file: images are embedded, style and script are inline, and its own security
policy forbids loading anything. `run_report.html.j2` holds its layout; this module holds what is filled in.
"""

from __future__ import annotations

import base64
from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

import pandas as pd

from bnood.errors import UserError
from bnood.report.charts import plotly_script
from bnood.report.figures import complete, id_rows, ood_sets
from bnood.report.headline_conditions import headline_conditions
from bnood.report.shown import show, template
from bnood.report.study_figures import run_pictures, write_picture
from bnood.training.run_folder import write_beside

# File name without suffix -> (title, what the figure shows, what it looks like for who cannot see it).
_DOTS = (
    "Dot plot with one row per condition and one coloured dot with its interval per OOD set: AUROC on the left, "
    "FPR95 on the right. The metric table below holds the same numbers."
)
_HISTOGRAMS = (
    "Grid of histograms with one row per condition and one column per OOD set, the ID set in grey and the OOD set in "
    "colour on one common axis. The metric table below holds the means."
)
CAPTIONS = {
    "detection_energy": (
        "Detection by energy score",
        "How well the energy score separates OOD from ID images under each kind of statistics.",
        _DOTS,
    ),
    "scores_energy": (
        "Energy scores",
        "Where the energy scores of ID (grey) and OOD images (coloured) lie under each kind of statistics.",
        _HISTOGRAMS,
    ),
    "unit_profiles": (
        "Penultimate units",
        "What each penultimate unit does on ID (grey) and OOD images (coloured), under running and, for BatchNorm, "
        "under matched statistics: the comparison of ReAct (Sun, Guo and Li, 2021).",
        "Line plots with one row per OOD set: mean activation of each unit with a band of one standard deviation, "
        "units sorted by their ID mean. The metric table below holds the spread and the maximum relative to ID.",
    ),
    "detection_msp": (
        "Detection by MSP",
        "The same as for the energy score, for the maximum softmax probability.",
        _DOTS,
    ),
    "scores_msp": (
        "Confidence",
        "How confident the network is on ID (grey) and OOD images (coloured); the density axis is logarithmic.",
        _HISTOGRAMS,
    ),
    "reliability": (
        "Reliability on ID images",
        "Whether confidence equals accuracy on ID images: dots below the diagonal are overconfident.",
        "Reliability diagrams, one per condition: accuracy against confidence beside the diagonal, and beneath it the "
        "share of images in each bin. The metric table below holds the calibration errors.",
    ),
}

# Columns of the headline table: title, role of the set, score, metric.
HEADLINE = (
    ("AUROC (energy)", "ood", "energy", "auroc"),
    ("FPR95 (energy)", "ood", "energy", "fpr95"),
    ("Mean MSP on OOD", "ood", "msp", "mean"),
    ("ID accuracy", "id", "", "accuracy"),
)
NUMBERS = ("seed", "batch_size", "value", "low", "high", "n", "n_id")  # columns that are sorted as numbers
MATCHED = "recalibrated:target"


class Number(NamedTuple):
    """A figure and its 95 % interval, as printed."""

    value: str
    interval: str


class Picture(NamedTuple):
    """A figure of the page; `source` is a data URI."""

    title: str
    caption: str
    alt: str
    source: str


def write_report(
    folder: Path,
    *,
    run_name: str,
    config: Mapping[str, object],
    summary: Mapping[str, object],
    table: pd.DataFrame,
    figures: list[Path],
    commands: list[str],
) -> Path:
    """Write `report.html` into `folder` and give its path.

    Where `folder` also holds `layers.parquet`, `layer_distances.csv`, `interventions.csv` or `shift.csv`, the pictures
    of these tables are shown as charts that answer to a pointer, and drawn into `folder/figures` too.

    Args:
        folder: where `table.csv` and `figures/` of this evaluation lie.
        run_name: the run's name, the page's title.
        config: the run's complete configuration (nested).
        summary: the run's `summary.json`.
        table: the metric table (columns in evaluation.py).
        figures: PNG files in the order in which they are to be shown.
        commands: what to type to get this page again.

    Raises:
        UserError: the table lacks columns or rows, or a figure does not exist.
    """
    needed = "norm seed statistics composition batch_size dataset role score metric value low high n companion n_id"
    frame = complete(table, needed, "the metric table")
    columns = ["statistics", "composition", "batch_size", "dataset", "role", "score", "metric", "value", "low", "high"]
    columns += ["n", "n_id", "companion"]
    lenses = run_pictures(Path(folder))
    for lens in lenses:
        write_picture(Path(folder) / "figures", lens)
    page = template("run_report.html.j2").render(
        run_name=run_name,
        about=_about(frame, summary),
        changes=_changes(frame),
        headline_columns=[title for title, *_ in HEADLINE],
        headline=_headline(frame),
        pictures=[_picture(path) for path in figures],
        lenses=[show(lens) for lens in lenses],
        plotly=plotly_script() if lenses else "",
        columns=columns,
        numbers=NUMBERS,
        rows=[[_cell(name, row[name]) for name in columns] for row in frame[columns].to_dict("records")],
        commands=commands,
        made_with=_flat(summary),
        config=_flat(config),
    )
    path = Path(folder) / "report.html"
    write_beside(path, lambda beside: beside.write_text(page, encoding="utf-8"))
    return path


def _about(frame: pd.DataFrame, summary: Mapping[str, object]) -> list[tuple[str, str]]:
    """The run in a few words: norm, seed, sets with their numbers of images, commit."""
    counts = frame.groupby(["role", "dataset"], sort=False)["n"].max()
    sets = {
        role: ", ".join(f"{name} ({n:,} images)" for name, n in counts.get(role, {}).items())
        for role in counts.index.levels[0]
    }
    found = [
        ("Norm", ", ".join(map(str, frame["norm"].unique()))),
        ("Seed", ", ".join(map(str, frame["seed"].unique()))),
        ("In-distribution (ID)", sets.get("id", "none")),
        ("Out-of-distribution (OOD)", sets.get("ood", "none")),
    ]
    return found + ([("Commit", str(summary["commit"]))] if summary.get("commit") else [])


def _number(rows: pd.DataFrame) -> Number | None:
    """The only row's figure; None if the condition was not evaluated for this set."""
    if rows.empty:
        return None
    row = rows.iloc[0]
    interval = "" if pd.isna(row["low"]) else f"[{row['low']:.3f}, {row['high']:.3f}]"
    return Number(f"{row['value']:.3f}", interval)


def _headline(frame: pd.DataFrame) -> list[tuple[str, list[tuple[str, list[Number | None]]]]]:
    """For each OOD set and headline condition the four figures of `HEADLINE`."""
    groups = []
    for name in ood_sets(frame):
        lines = []
        for condition in headline_conditions(frame[frame["dataset"] == name]):
            part = condition.rows(frame)
            numbers = []
            for _, role, score, metric in HEADLINE:
                rows = part[part["dataset"] == name] if role == "ood" else id_rows(part, name)
                numbers.append(_number(rows[(rows["score"] == score) & (rows["metric"] == metric)]))
            lines.append((condition.label, numbers))
        groups.append((name, lines))
    return groups


def _changes(frame: pd.DataFrame) -> list[tuple[str, Number, Number]]:
    """Per OOD set its energy AUROC under running and under matched statistics, where both were evaluated."""
    found = []
    area = frame[(frame["score"] == "energy") & (frame["metric"] == "auroc")]
    for name in ood_sets(frame):
        own = area[area["dataset"] == name]
        running, matched = (_number(own[own["statistics"] == statistics]) for statistics in ("running", MATCHED))
        if running and matched:
            found.append((name, running, matched))
    return found


def _picture(path: Path) -> Picture:
    if not path.is_file():
        raise UserError(f"{path}: no such figure; draw the figures before the report")
    title, caption, alt = CAPTIONS.get(path.stem, (path.stem.replace("_", " "), "", f"Figure {path.stem}"))
    return Picture(title, caption, alt, _uri(path))


def _uri(path: Path) -> str:
    return "data:image/png;base64," + base64.b64encode(path.read_bytes()).decode()


def _cell(column: str, value: object) -> str:
    """A table cell as text: figures to four decimals, missing ones empty."""
    if not isinstance(value, str) and pd.isna(value):
        return ""
    if column in ("value", "low", "high"):
        return f"{value:.4f}"
    return str(int(value)) if column in NUMBERS else str(value)  # type: ignore[call-overload]


def _flat(nested: Mapping[str, object], prefix: str = "") -> list[tuple[str, str]]:
    """`{"model": {"norm": "bn"}}` -> `[("model.norm", "bn")]`, the names that the command line takes."""
    found: list[tuple[str, str]] = []
    for key, value in nested.items():
        if isinstance(value, Mapping) and value:
            found += _flat(value, f"{prefix}{key}.")
        else:
            found.append((f"{prefix}{key}", f"{value:.6g}" if isinstance(value, float) else str(value)))
    return found
