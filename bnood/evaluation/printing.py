"""The table that an evaluation prints, in as much detail as the terminal's width allows."""

import io
from collections.abc import Sequence
from typing import Any, NamedTuple

import pandas as pd
from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table
from rich.text import Text


class Column(NamedTuple):
    """A column of the printed table: where its figure stands in the table of metrics, and how it is shown.

    ``side`` is ``row`` (the detector's own), ``ood`` or ``id`` (of the set, once for each condition). The figure is
    shown from a detail on, and its interval from another; None: never.
    """

    side: str
    detector: str
    metric: str
    shown_from: int
    interval_from: int | None = None
    value: str = "value"
    factor: int = 100


COLUMNS = {
    "AUROC": Column("row", "", "auroc", 0, 1),
    "change from\nrunning": Column("row", "", "auroc", 0, 2, "difference"),
    "FPR95": Column("row", "", "fpr95", 0, 3),
    "FPR95, OOD\npositive": Column("row", "", "fpr95_ood_positive", 1, 3),
    "OOD\nMSP": Column("ood", "msp", "mean", 2, None, factor=1),
    "unit\nmax": Column("ood", "units", "unit_mean_max_ratio", 2, None, factor=1),
    "ID\nacc.": Column("id", "", "accuracy", 0),
}
DETAILS = (3, 2, 1, 0)
NARROWEST = 100
# Figures (value, low, high) by all that tells rows apart.
Figures = dict[tuple[Any, ...], tuple[float, float, float]]


def results_table(table: pd.DataFrame, title: str, width: int | None = None) -> Table:
    """One row per OOD set, condition and detector: detection, and the accuracy, confidence and activations beside it.

    AUROC, FPR95 and accuracy are in per cent, changes in points; ``unit max`` is the largest per-unit mean of the
    penultimate layer as a multiple of the ID one under running statistics.

    Args:
        table: the metrics of one or several runs (:data:`bnood.evaluation.tables.COLUMNS`), also as read from
            ``table.csv``.
        title: printed above.
        width: columns of the terminal. The most detailed table that fits is returned: with 95 % intervals of all
            detection figures, of AUROC and its change, of AUROC alone, or of none. None: full detail.
    """
    texts = ["companion", "comparison", "detector"]
    table = table.astype(dict.fromkeys(texts, object)).fillna(dict.fromkeys(texts, ""))  # a CSV reader makes them NaN
    shown = _build(table, title, DETAILS[0])
    for detail in DETAILS[1:]:
        if width is None or _natural_width(shown) <= width:
            break
        shown = _build(table, title, detail)
    return shown


def not_beyond_placebo(table: pd.DataFrame) -> pd.Series:
    """Which AUROC rows change by no more than the placebo does where there is nothing to detect, by the table's index.

    Those whose placebo's interval excludes one half, and whose change is not wholly beyond +- |placebo - one half|.
    """
    keys = ["run", "statistics", "dataset", "detector"]
    auroc = table[table["metric"] == "auroc"]
    placebo = auroc[auroc["comparison"] == "placebo"].set_index(keys)
    rows = auroc[(auroc["comparison"] == "ood") & auroc["difference"].notna()]
    marked = pd.Series(False, index=table.index)
    for index, row in rows.iterrows():
        key = tuple(row[keys])
        if key in placebo.index and not placebo.loc[key, "low"] <= 0.5 <= placebo.loc[key, "high"]:
            reach = abs(placebo.loc[key, "value"] - 0.5)
            marked[index] = row["difference_low"] <= reach and row["difference_high"] >= -reach
    return marked


def as_text(table: pd.DataFrame, title: str, notes: Sequence[str], width: int = 160) -> str:
    """The printed table and its notes as plain text."""
    console = Console(file=io.StringIO(), width=width)
    print_results(console, table, title, notes)
    return console.file.getvalue()  # type: ignore[attr-defined]


def print_results(console: Console, table: pd.DataFrame, title: str, notes: Sequence[str]) -> None:
    """Print the table in the console's width, then what was left out and why."""
    console.print(results_table(table, title, console.width))
    for note in notes:
        console.print(Text(f"note: {note}"))


def _build(table: pd.DataFrame, title: str, detail: int) -> Table:
    shown = Table(
        title=Text(title), title_justify="left", caption_justify="left", header_style="bold", box=SIMPLE_HEAD,
        padding=(0, 1, 0, 0), pad_edge=False,
    )  # fmt: skip
    several = table["run"].nunique() > 1
    columns = {name: column for name, column in COLUMNS.items() if column.shown_from <= detail}
    for name in [*["run"] * several, "OOD set", "statistics", "detector"]:
        shown.add_column(name, no_wrap=detail > 0, overflow="fold")
    for name in [*columns, "n OOD/\nID"]:
        shown.add_column(name, justify="right", no_wrap=True)
    of_sets = _figures(table)
    ood = table[(table["role"] == "ood") & (table["comparison"] != "placebo")]
    marked = not_beyond_placebo(table)
    for (run, dataset, companion), group in ood.groupby(["run", "dataset", "companion"], sort=False):
        label = f"{dataset} ({companion})" if companion else str(dataset)
        for statistics, rows in group.groupby("statistics", sort=False):
            detection = rows[rows["n_id"].gt(0) & rows["n_ood"].gt(0)]
            names = list(dict.fromkeys(detection["detector"])) or ["-"]
            for position, detector in enumerate(names):
                own = detection[detection["detector"] == detector].set_index("metric")
                star = len(own) > 0 and bool(marked[detection.index[detection["detector"] == detector]].any())
                known = (run, statistics, companion)
                cells = [
                    _of_row(own, column, detail, star)
                    if column.side == "row"
                    else _of_set(of_sets, known, dataset, column)
                    if position == 0
                    else ""
                    for column in columns.values()
                ]
                n = f"{own['n_ood'].iloc[0]}/{own['n_id'].iloc[0]}" if len(own) else "-"
                first = [*[str(run)] * several, label, str(statistics)] if position == 0 else [""] * (2 + several)
                # Text, not str: a set's name may hold brackets, which Rich would take for markup.
                shown.add_row(*(Text(text) for text in (*first, str(detector), *cells, n)))
        shown.add_section()
    shown.caption = _caption(detail, bool(marked.any()))
    return shown


def _figures(table: pd.DataFrame) -> Figures:
    """Figures of single sets."""
    alone = table[table["n_id"].eq(0) | table["n_ood"].eq(0)]
    keys = ["run", "statistics", "role", "dataset", "companion", "detector", "metric"]
    return {tuple(row[:-1]): row[-1] for row in alone[[*keys, "value"]].itertuples(index=False)}


def _of_row(own: pd.DataFrame, column: Column, detail: int, star: bool) -> str:
    if column.metric not in own.index or pd.isna(own.loc[column.metric, column.value]):
        return "-"
    change = column.value == "difference"
    bounds = ("difference_low", "difference_high") if change else ("low", "high")
    value, low, high = (float(own.loc[column.metric, name]) * column.factor for name in (column.value, *bounds))
    text = f"{value:+.1f}" if change else f"{value:.1f}"
    if column.interval_from is not None and detail >= column.interval_from:
        text += f" [{low:+.1f}, {high:+.1f}]" if change else f" [{low:.1f}, {high:.1f}]"
    return f"{text}{'*' * (change and star)}"


def _of_set(figures: Figures, known: tuple[Any, ...], dataset: Any, column: Column) -> str:
    """A figure of the OOD set, or of the ID images that go with it: its own where both share batch or statistics."""
    run, statistics, shifted = known
    for key, value in figures.items():
        key_run, key_statistics, role, name, companion, detector, metric = key
        if (key_run, key_statistics, role, detector, metric) != (
            run, statistics, column.side, column.detector, column.metric,
        ):  # fmt: skip
            continue
        fits = name == dataset if role == "ood" else companion in ("", dataset) and (not shifted or name == shifted)
        if fits:
            return f"{value * column.factor:.{1 if column.factor == 100 else 2}f}"
    return "-"


def _natural_width(table: Table) -> int:
    """Columns that the table takes when nothing is folded."""
    console = Console(width=10_000, file=io.StringIO())
    return console.measure(table).maximum


def _caption(detail: int, marked: bool) -> Text:
    parts = ["AUROC, FPR95 (share of OOD accepted at 95 % of ID) and accuracy in %, changes in points"]
    if detail > 0:
        parts.append("FPR95, OOD positive: share of ID rejected at 95 % of OOD")
        parts.append("brackets: 95 % bootstrap interval over images")
    if detail > 1:
        parts.append("unit max: largest mean of a penultimate unit, ID under running statistics = 1")
    if marked:
        parts.append("*: the change is not beyond the placebo's")
    if detail < DETAILS[0]:
        parts.append("a wider terminal shows more, table.csv everything")
    return Text("; ".join(parts))
