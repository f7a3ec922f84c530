"""The table that an evaluation prints, in as much detail as the terminal's width allows."""

from typing import Any, NamedTuple

import pandas as pd
from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table
from rich.text import Text


class Column(NamedTuple):
    """A column of the printed table: where its figure stands in the table of metrics, and how it is shown."""

    role: str
    score: str
    metric: str
    factor: int
    # The least detail at which the figure is shown, and at which its interval is; None: never.
    shown_from: int
    interval_from: int | None = None


COLUMNS = {
    "energy\nAUROC": Column("ood", "energy", "auroc", 100, 0, 2),
    "MSP\nAUROC": Column("ood", "msp", "auroc", 100, 0, 3),
    "energy\nFPR95": Column("ood", "energy", "fpr95", 100, 0, 3),
    "OOD\nMSP": Column("ood", "msp", "mean", 1, 0),
    "OOD\nenergy": Column("ood", "energy", "mean", 1, 1),
    "unit\nmax": Column("ood", "penultimate", "unit_mean_max_ratio", 1, 1),
    "ID\nacc.": Column("id", "", "accuracy", 100, 0),
}
DETAILS = (3, 2, 1, 0)
KEYS = ("run", "statistics", "composition", "batch_size", "companion", "dataset", "role", "score", "metric")
Figures = dict[tuple[Any, ...], tuple[float, float, float]]


def results_table(table: pd.DataFrame, title: str, width: int | None = None) -> Table:
    """One row per OOD set and condition: detection, confidence, activations, and the ID accuracy that goes with them.

    AUROC, FPR95 and accuracy are in per cent; ``unit max`` is the largest per-unit mean of the penultimate layer as a
    multiple of the in-distribution one under running statistics.

    Args:
        table: the tidy metrics of one or several runs (:mod:`bnood.evaluation.tables`), also as read back from ``table.csv``.
        title: printed above.
        width: columns of the terminal. The most detailed table that fits is returned: with 95 % intervals of all
            three detection figures, of energy's AUROC alone, or of none, and at last with the main columns only.
            None: full detail.
    """
    table = table.fillna({"composition": "", "companion": "", "score": ""})  # a CSV reader makes them NaN
    # A run has one in-distribution set: its name is left out of the key, so that it need not be known.
    keyed = table.assign(dataset=table["dataset"].where(table["role"] == "ood", ""))
    figures = {tuple(row[:-3]): row[-3:] for row in keyed[[*KEYS, "value", "low", "high"]].itertuples(index=False)}
    shown = _build(table, figures, title, DETAILS[0])
    for detail in DETAILS[1:]:
        if width is None or _natural_width(shown) <= width:
            break
        shown = _build(table, figures, title, detail)
    return shown


def _natural_width(shown: Table) -> int:
    """Columns that the rows take where nothing is wrapped or cut."""
    return Console(width=10_000).measure(shown).maximum


def _build(table: pd.DataFrame, figures: Figures, title: str, detail: int) -> Table:
    shown = Table(
        title=Text(title),
        title_justify="left",
        caption_justify="left",
        header_style="bold",
        box=SIMPLE_HEAD,
        padding=(0, 1, 0, 0),
        pad_edge=False,
    )
    several = table["run"].nunique() > 1
    columns = {name: column for name, column in COLUMNS.items() if column.shown_from <= detail}
    for name in ["run"] * several + ["OOD set", "statistics"]:
        shown.add_column(name, no_wrap=detail > 0, overflow="fold")
    for name in columns:
        shown.add_column(name, justify="right", no_wrap=True)
    if detail > 0:
        shown.add_column("n OOD/\nID", justify="right", no_wrap=True)
    for (run, dataset), group in table[table["role"] == "ood"].groupby(["run", "dataset"], sort=False):
        for condition, rows in group.groupby(["statistics", "composition", "batch_size"], sort=False):
            names = [str(run)] * several + [str(dataset), condition_label(*condition)]
            cells = [_value(figures, (run, *condition), dataset, column, detail) for column in columns.values()]
            detection = rows[rows["metric"] == "auroc"]
            n = f"{detection['n'].iloc[0]}/{detection['n_id'].iloc[0]}" if len(detection) else "-"
            # Text, not str: a set's name may hold brackets, which Rich would take for markup.
            shown.add_row(*(Text(text) for text in (*names, *cells, *[n] * (detail > 0))))
        shown.add_section()
    shown.caption = _caption(detail)
    return shown


def _caption(detail: int) -> Text:
    parts = ["AUROC, FPR95 and accuracy in %"]
    if detail > 1:
        parts.append("brackets: 95 % bootstrap interval over images")
    if detail > 0:
        parts += ["unit max: largest mean of a penultimate unit, ID under running statistics = 1", "n: images scored"]
    if detail < DETAILS[0]:
        parts.append("a wider terminal shows more, table.csv everything")
    return Text("; ".join(parts))


def condition_label(statistics: str, composition: str, batch_size: int) -> str:
    """``batch mixed 0.5 (128)``, ``recalibrated:mixture 0.5``: a condition as the table names it."""
    if statistics == "recalibrated:mixture":
        composition = composition.removeprefix("mixed ")
    label = f"{statistics} {composition}".rstrip()
    return f"{label} ({batch_size})" if batch_size else label


def _value(figures: Figures, condition: tuple[Any, ...], dataset: str, column: Column, detail: int) -> str:
    """A figure of an OOD set, or of the in-distribution images that go with it: its own where batches are mixed."""
    wanted = (column.role, column.score, column.metric)
    for companion, name in (("", dataset),) if column.role == "ood" else ((dataset, ""), ("", "")):
        found = figures.get((*condition, companion, name, *wanted))
        if found is not None:
            break
    else:
        return "-"
    value, low, high = (number * column.factor for number in found)
    digits = 1 if column.factor == 100 else 2
    text = f"{value:.{digits}f}"
    if column.interval_from is None or detail < column.interval_from:
        return text
    return f"{text} [{low:.{digits}f}, {high:.{digits}f}]"


def print_results(console: Console, table: pd.DataFrame, title: str, notes: list[str]) -> None:
    """Print the table in the console's width, then what was left out and why."""
    console.print(results_table(table, title, console.width))
    for note in notes:
        console.print(Text(f"note: {note}"))
