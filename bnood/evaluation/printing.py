"""The table that an evaluation prints, in as much detail as the terminal's width allows."""

import io
from collections.abc import Sequence
from typing import NamedTuple

import pandas as pd
from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table
from rich.text import Text


class Column(NamedTuple):
    """A column of the printed table: whose figure it is, and from which detail on it and its interval are shown."""

    side: str  # row (the detector's own), or ood or id (of the set, once for each condition)
    detector: str
    metric: str
    shown_from: int
    interval_from: int = 9
    change: bool = False


COLUMNS = {
    "AUROC": Column("row", "", "auroc", 0, 1),
    "change from\nrunning": Column("row", "", "auroc", 0, 2, change=True),
    "FPR95": Column("row", "", "fpr95", 0, 3),
    "FPR95, OOD\npositive": Column("row", "", "fpr95_ood_positive", 1, 3),
    "OOD\nMSP": Column("ood", "msp", "mean", 2),
    "unit\nmax": Column("ood", "units", "unit_mean_max_ratio", 2),
    "ID\nacc.": Column("id", "", "accuracy", 0),
}
CAPTION = (
    "AUROC, FPR95 (share of OOD accepted at 95 % of ID) and accuracy in %, changes in points",
    "FPR95, OOD positive: share of ID rejected at 95 % of OOD; brackets: 95 % bootstrap interval over images",
    "unit max: largest mean of a penultimate unit, ID under running statistics = 1",
)


def results_table(table: pd.DataFrame, title: str, width: int | None = None) -> Table:
    """One row per OOD set, condition and detector of one or several runs; as much detail as fits ``width`` columns."""
    texts = ["companion", "comparison", "detector"]
    table = table.astype(dict.fromkeys(texts, object)).fillna(dict.fromkeys(texts, ""))  # a CSV reader makes them NaN
    for detail in (3, 2, 1, 0):
        shown = _build(table, title, detail)
        if width is None or Console(width=10_000, file=io.StringIO()).measure(shown).maximum <= width:
            break
    return shown


def not_beyond_placebo(table: pd.DataFrame) -> pd.Series:
    """The AUROC rows whose placebo excludes one half, and whose change is not wholly beyond +- |placebo - one half|."""
    keys = ["run", "statistics", "dataset", "detector"]
    auroc = table[table["metric"] == "auroc"]
    placebo = auroc[(auroc["comparison"] == "placebo") & ~((auroc["low"] <= 0.5) & (auroc["high"] >= 0.5))]
    reach = (placebo.set_index(keys)["value"] - 0.5).abs().rename("reach")
    rows = auroc[(auroc["comparison"] == "ood") & auroc["difference"].notna()].join(reach, on=keys)
    within = (rows["difference_low"] <= rows["reach"]) & (rows["difference_high"] >= -rows["reach"])
    return within.reindex(table.index, fill_value=False)


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
    several = ["run"] if table["run"].nunique() > 1 else []
    compared = table["n_id"].gt(0) & table["n_ood"].gt(0)
    paired = bool(compared.any())  # without ID images there is the MSP of the OOD sets
    columns = {k: c for k, c in COLUMNS.items() if c.shown_from <= detail and (c.detector == "msp" or paired)}
    for name in [*several, "OOD set", "statistics", "detector"]:
        shown.add_column(name, no_wrap=detail > 0, overflow="fold")
    for name in [*columns, "n OOD/\nID"]:
        shown.add_column(name, justify="right", no_wrap=True)
    marked = not_beyond_placebo(table)
    ood = table[(table["role"] == "ood") & (table["comparison"] != "placebo")]
    for (run, dataset, companion), group in ood.groupby(["run", "dataset", "companion"], sort=False):
        label = f"{dataset} ({companion})" if companion else str(dataset)
        for statistics, rows in group.groupby("statistics", sort=False):
            alone = table[~compared & (table["run"] == run) & (table["statistics"] == statistics)]
            detection = rows[compared[rows.index]]
            first = [*([str(run)] if several else []), label, str(statistics)]
            for position, detector in enumerate(dict.fromkeys(detection["detector"]) or ["-"]):
                own = detection[detection["detector"] == detector]
                star = "*" * bool(marked[own.index].any())
                cells = [
                    _of_row(own.set_index("metric"), column, detail, star)
                    if column.side == "row"
                    else _of_set(alone, column, str(dataset), str(companion)) * (position == 0)
                    for column in columns.values()
                ]
                n = f"{rows['n_ood'].iloc[0]}/{own['n_id'].iloc[0] if len(own) else 0}"
                # Text, not str: a set's name may hold brackets, which Rich would take for markup.
                shown.add_row(*map(Text, (*(each * (position == 0) for each in first), str(detector), *cells, n)))
        shown.add_section()
    caption = [*CAPTION[: (detail + 1) * paired], *["*: the change is not beyond the placebo's"] * bool(marked.any())]
    shown.caption = Text("; ".join([*caption, *["a wider terminal shows more, table.csv everything"] * (detail < 3)]))
    return shown


def _of_row(own: pd.DataFrame, column: Column, detail: int, star: str) -> str:
    names = ["difference", "difference_low", "difference_high"] if column.change else ["value", "low", "high"]
    if column.metric not in own.index or pd.isna(own.loc[column.metric, names[0]]):
        return "-"
    value, low, high = 100 * own.loc[column.metric, names]
    sign = "+" if column.change else ""
    text = f"{value:{sign}.1f}" + (f" [{low:{sign}.1f}, {high:{sign}.1f}]" if detail >= column.interval_from else "")
    return text + star * column.change


def _of_set(alone: pd.DataFrame, column: Column, dataset: str, shifted: str) -> str:
    """A figure of the OOD set, or of the ID images that go with it: its own where both share batch or statistics."""
    of_side = (alone["role"] == column.side) & (alone["detector"] == column.detector)
    rows = alone[of_side & (alone["metric"] == column.metric)]
    if column.side == "ood":
        rows = rows[rows["dataset"] == dataset]
    else:
        rows = rows[rows["companion"].isin(["", dataset]) & ((rows["dataset"] == shifted) | (shifted == ""))]
    if not len(rows):
        return "-"
    return f"{rows['value'].iloc[0]:.2f}" if column.detector else f"{100 * rows['value'].iloc[0]:.1f}"
