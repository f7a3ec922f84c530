"""The printed table: its figures against the table of metrics, and its lines in terminals of several widths."""

import io

import pandas as pd
import pytest
from rich.console import Console
from small_evaluation import small_network, small_sets

from bnood.evaluation.evaluate import Evaluation, evaluate
from bnood.evaluation.printing import not_beyond_placebo, print_results, results_table

STATISTICS = ("running", "recalibrated:target", "recalibrated:mixture@0.5")


@pytest.fixture(scope="module")
def found() -> Evaluation:
    return evaluate(
        small_network(plain=True), **small_sets(), statistics=STATISTICS,
        detectors=("msp", "energy"), resamples=30, placebo=True, shifts=("noise-3",),
    )  # fmt: skip


def printed(table: pd.DataFrame, width: int, title: str = "a title", notes: tuple[str, ...] = ()) -> list[str]:
    console = Console(width=width, file=io.StringIO())
    print_results(console, table, title, list(notes))
    assert isinstance(console.file, io.StringIO)
    return console.file.getvalue().splitlines()


def cells(table: pd.DataFrame, width: int | None) -> list[list[str]]:
    shown = results_table(table, "a title", width)
    return [list(row) for row in zip(*([cell.plain for cell in column.cells] for column in shown.columns), strict=True)]


def figure(found: Evaluation, dataset: str, detector: str, metric: str, companion: str = "") -> pd.Series:
    """Under a mixture."""
    asked = {"statistics": STATISTICS[2], "dataset": dataset, "detector": detector, "metric": metric}
    rows = found.table[found.table["comparison"] != "placebo"]
    rows = rows[(rows[list(asked)] == pd.Series(asked)).all(axis=1) & (rows["companion"] == companion)]
    assert len(rows) == 1
    return rows.iloc[0]


def test_rows_hold_the_figures_of_the_metric_table(found: Evaluation) -> None:
    rows = cells(found.table, None)
    # Two detectors under three statistics on two sets, and under two of them against the shifted ID set.
    assert len(rows) == 2 * 2 * 3 + 2 * 2 * 2
    assert [row[2] for row in rows] == ["msp", "energy"] * 10
    sets = ["far"] * 3 + ["near"] * 3 + ["far (noise-3)"] * 2 + ["near (noise-3)"] * 2
    assert [row[0] for row in rows if row[0]] == sets
    auroc = 100 * figure(found, "far", "msp", "auroc").loc["value":"difference_high"]
    row = next(row for row in rows if row[1] == "recalibrated:mixture@0.5")
    assert row[3] == "{:.1f} [{:.1f}, {:.1f}]".format(*auroc[:3])
    assert row[4].rstrip("*") == "{:+.1f} [{:+.1f}, {:+.1f}]".format(*auroc[3:])
    assert row[7] == f"{figure(found, 'far', 'msp', 'mean')['value']:.2f}"
    assert row[8] == f"{figure(found, 'far', 'units', 'unit_mean_max_ratio')['value']:.2f}"
    # The ID accuracy is that of the images that were under the same mixture.
    assert row[9] == f"{100 * figure(found, 'known', '', 'accuracy', companion='far')['value']:.1f}"
    assert row[10] == "50/70"


def test_the_table_reads_the_same_from_a_file_and_several_runs_name_themselves(found: Evaluation) -> None:
    rows = cells(found.table, None)
    assert cells(pd.read_csv(io.StringIO(found.table.to_csv(index=False))), None) == rows
    both = cells(pd.concat([found.table, found.table.assign(run="other")], ignore_index=True), None)
    assert {row[0] for row in both if row[0]} == {"small", "other"} and [row[1:] for row in both] == 2 * rows


@pytest.mark.parametrize("width", [80, 120, 200])
def test_lines_fit_the_terminal_and_narrow_ones_keep_the_values(found: Evaluation, width: int) -> None:
    assert max(map(len, printed(found.table, width))) <= width
    full, narrow = cells(found.table, None), cells(found.table, 80)
    assert [row[:3] for row in narrow] == [row[:3] for row in full]
    assert [row[3] for row in narrow] == [row[3].split()[0] for row in full]


def test_notes_and_names_with_brackets_are_printed_as_they_are(found: Evaluation) -> None:
    lines = printed(found.table.replace({"far": "[bold]far[/x]"}), 200, "[red]title", ("runs/[a]: a note",))
    assert any("[bold]far[/x]" in line for line in lines)
    assert any("[red]title" in line for line in lines)
    assert lines[-1] == "note: runs/[a]: a note"


def test_changes_that_are_not_beyond_the_placebos_are_marked(found: Evaluation) -> None:
    table = found.table.copy()
    placebo = (table["comparison"] == "placebo") & (table["metric"] == "auroc") & (table["dataset"] == "far")
    changed = table["statistics"].eq("recalibrated:target") & table["comparison"].eq("ood") & table["companion"].eq("")
    row = changed & table["metric"].eq("auroc") & table["dataset"].eq("far") & table["detector"].eq("energy")
    for low, high, change, expected in (
        (0.55, 0.65, (0.2, 0.3), False),  # wholly beyond + 0.1
        (0.55, 0.65, (0.05, 0.3), True),
        (0.55, 0.65, (-0.3, -0.2), False),  # wholly beyond - 0.1
        (0.45, 0.65, (0.05, 0.3), False),  # the placebo does not differ from one half
    ):
        table.loc[placebo, ["value", "low", "high"]] = 0.6, low, high
        table.loc[row, ["difference_low", "difference_high"]] = change
        assert not_beyond_placebo(table)[row].tolist() == [expected]
