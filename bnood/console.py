"""The table that an evaluation prints."""

import pandas as pd
from rich.console import Console
from rich.table import Table

COLUMNS = {
    "energy AUROC %": ("ood", "energy", "auroc", 100),
    "MSP AUROC %": ("ood", "msp", "auroc", 100),
    "energy FPR95 %": ("ood", "energy", "fpr95", 100),
    "MSP on OOD": ("ood", "msp", "mean", 1),
    "energy on OOD": ("ood", "energy", "mean", 1),
    "unit max x ID": ("ood", "penultimate", "unit_mean_max_ratio", 1),
    "ID accuracy %": ("id", "", "accuracy", 100),
}


def results_table(table: pd.DataFrame, title: str) -> Table:
    """One row per OOD set and condition: detection, confidence, activations, and the ID accuracy that goes with them.

    Detection comes with its 95 % interval. ``unit max x ID`` is the largest per-unit mean of the penultimate layer as a
    multiple of the in-distribution one under running statistics.
    """
    shown = Table(title=title, title_justify="left", caption_justify="left", header_style="bold")
    shown.caption = "brackets: 95 % bootstrap interval over images; n: OOD / ID images scored"
    several = table["run"].nunique() > 1
    for name in ["run"] * several + ["OOD set", "statistics"]:
        shown.add_column(name, no_wrap=True)
    for name in (*COLUMNS, "n"):
        shown.add_column(name, justify="right")
    for (_, dataset), group in table[table["role"] == "ood"].groupby(["run", "dataset"], sort=False):
        for condition, rows in group.groupby(["statistics", "composition", "batch_size"], sort=False):
            cells = [_value(table, rows, dataset, *column) for column in COLUMNS.values()]
            detection = rows[rows["metric"] == "auroc"]
            n = f"{detection['n'].iloc[0]} / {detection['n_id'].iloc[0]}" if len(detection) else "-"
            run = [str(rows["run"].iloc[0])] if several else []
            shown.add_row(*run, str(dataset), condition_label(*condition), *cells, n)
        shown.add_section()
    return shown


def condition_label(statistics: str, composition: str, batch_size: int) -> str:
    """``batch mixed 0.5 (128)``: a condition as tables and plots name it."""
    label = f"{statistics} {composition}".rstrip()
    return f"{label} ({batch_size})" if batch_size else label


def _value(
    table: pd.DataFrame, rows: pd.DataFrame, dataset: str, role: str, score: str, metric: str, factor: int
) -> str:
    if role == "id":
        key = rows.iloc[0]
        same = (table["run"] == key["run"]) & (table["role"] == "id") & (table["companion"].isin(["", dataset]))
        for column in ("statistics", "composition", "batch_size"):
            same &= table[column] == key[column]
        rows = table[same]
    found = rows[(rows["score"] == score) & (rows["metric"] == metric)]
    if found.empty:
        return "-"
    value, low, high = (found[column].iloc[0] * factor for column in ("value", "low", "high"))
    digits = 1 if factor == 100 else 2
    text = f"{value:.{digits}f}"
    return f"{text} [{low:.{digits}f}, {high:.{digits}f}]" if metric in ("auroc", "fpr95") else text


def print_results(console: Console, table: pd.DataFrame, title: str, notes: list[str]) -> None:
    """Print the table, then what was left out and why."""
    console.print(results_table(table, title))
    for note in notes:
        console.print(f"note: {note}", highlight=False)
