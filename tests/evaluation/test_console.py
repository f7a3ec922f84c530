"""The printed table: its figures against the table of metrics, and its lines in terminals of several widths."""

import io

import pandas as pd
import pytest
from rich.console import Console
from synthetic_evaluation import make_scores, make_table

from bnood.evaluation.printing import condition_label, print_results, results_table


@pytest.fixture(scope="module")
def table() -> pd.DataFrame:
    found = make_table(make_scores(n=100))
    activations = found[found["role"].eq("ood") & found["metric"].eq("mean") & found["score"].eq("msp")]
    return pd.concat([found, activations.assign(score="penultimate", metric="unit_mean_max_ratio", value=1.234)])


def printed(table: pd.DataFrame, width: int, title: str = "a title", notes: tuple[str, ...] = ()) -> list[str]:
    console = Console(width=width, file=io.StringIO())
    print_results(console, table, title, list(notes))
    assert isinstance(console.file, io.StringIO)
    return console.file.getvalue().splitlines()


def cells(table: pd.DataFrame, width: int | None) -> list[list[str]]:
    shown = results_table(table, "a title", width)
    return [list(row) for row in zip(*([cell.plain for cell in column.cells] for column in shown.columns), strict=True)]


def value(table: pd.DataFrame, dataset: str, score: str, metric: str, digits: int, interval: bool = False) -> str:
    """A figure of recalibrated:mixture, looked up on its own: shares in per cent where they have one digit."""
    companion = "svhn" if dataset == "cifar10" else ""  # noqa: F841 (the query reads it)
    row = table.query(
        "statistics == 'recalibrated:mixture' and dataset == @dataset and score == @score and metric == @metric"
        " and companion == @companion"
    ).iloc[0]
    numbers = [row[name] * (100 if digits == 1 else 1) for name in ("value", "low", "high")]
    first, low, high = (f"{number:.{digits}f}" for number in numbers)
    return f"{first} [{low}, {high}]" if interval else first


@pytest.mark.parametrize(("width", "intervals"), [(None, 3), (200, 3), (150, 3), (120, 1)])
def test_rows_hold_the_figures_of_the_metric_table(table: pd.DataFrame, width: int | None, intervals: int) -> None:
    rows = cells(table, width)
    # Six kinds of recalibrated, batch and running conditions, and one more mixed share, on four sets
    assert len(rows) == 7 * 4
    assert [row[0] for row in rows] == [name for name in ("svhn", "dtd", "cifar100", "noise") for _ in range(7)]
    assert rows[6] == [
        "svhn",
        "recalibrated:mixture 0.5",
        value(table, "svhn", "energy", "auroc", 1, interval=True),
        value(table, "svhn", "msp", "auroc", 1, interval=intervals == 3),
        value(table, "svhn", "energy", "fpr95", 1, interval=intervals == 3),
        value(table, "svhn", "msp", "mean", 2),
        value(table, "svhn", "energy", "mean", 2),
        "1.23",
        value(table, "cifar10", "", "accuracy", 1),
        "130/100",
    ]


def test_the_narrow_table_keeps_the_main_columns(table: pd.DataFrame) -> None:
    full, narrow = cells(table, None), cells(table, 80)
    assert [row[:2] for row in narrow] == [row[:2] for row in full]
    assert [row[2:] for row in narrow] == [[*(cell.split()[0] for cell in row[2:6]), row[8]] for row in full]


@pytest.mark.parametrize(("runs", "width"), [(1, 80), (1, 120), (1, 150), (1, 200), (2, 120), (2, 150)])
def test_no_row_is_wrapped_or_cut(table: pd.DataFrame, runs: int, width: int) -> None:
    table = pd.concat([table.assign(run=f"run-{number}") for number in range(runs)])
    lines = printed(table, width)
    assert max(len(line) for line in lines) <= width
    assert not any("…" in line for line in lines)
    expected = cells(table, width)
    body = [line for line in lines if any(name in line for name in ("running ", "batch ", "recalibrated:"))]
    rows = [line for line in body if line.split()[runs - 1] in ("svhn", "dtd", "cifar100", "noise")]
    assert [" ".join(line.split()) for line in rows] == [" ".join(row) for row in expected]
    assert len(rows) == 28 * runs


def test_where_nothing_fits_names_are_folded_and_figures_stay_whole(table: pd.DataFrame) -> None:
    lines = printed(pd.concat([table, table.assign(run="another-run-with-a-long-name")]), 80)
    assert max(len(line) for line in lines) <= 80
    assert not any("…" in line for line in lines)
    figures = cells(table, 80)[0][2:]
    assert any(" ".join(line.split()).endswith(" ".join(figures)) for line in lines)


def test_the_table_that_was_read_from_a_csv_file_prints_the_same(table: pd.DataFrame) -> None:
    again = pd.read_csv(io.StringIO(table.to_csv(index=False)))
    assert again["companion"].isna().any()
    assert cells(again, 120) == cells(table, 120)


def test_what_was_left_out_is_a_dash(table: pd.DataFrame) -> None:
    partial = table[(table["role"] == "ood") & ~table["metric"].isin(["auroc", "fpr95"])]
    for row in cells(partial, None):
        assert row[2:5] == ["-", "-", "-"] and row[-2:] == ["-", "-"]
        assert row[5] != "-"


def test_names_with_brackets_are_printed_as_they_are(table: pd.DataFrame) -> None:
    renamed = table.replace({"dataset": {"svhn": "[bold]x"}, "companion": {"svhn": "[bold]x"}})
    lines = printed(renamed, 120, "run [red]", ("set [/x]: left out",))
    assert "run [red]" in lines[0]
    assert any("[bold]x" in line for line in lines)
    assert lines[-1] == "note: set [/x]: left out"


@pytest.mark.parametrize(
    ("condition", "label"),
    [
        (("running", "", 0), "running"),
        (("batch", "pure", 128), "batch pure (128)"),
        (("batch", "mixed 0.5", 8), "batch mixed 0.5 (8)"),
        (("recalibrated:target", "", 0), "recalibrated:target"),
        (("recalibrated:mixture", "mixed 0.5", 0), "recalibrated:mixture 0.5"),
    ],
)
def test_conditions_are_named(condition: tuple[str, str, int], label: str) -> None:
    assert condition_label(*condition) == label
