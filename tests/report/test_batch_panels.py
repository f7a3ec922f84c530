"""What is said of the cells of the heat maps: intervals, counts, and why some are empty."""

import pandas as pd
import pytest
from synthetic_study import make_interventions

from bnood.report.batch_panels import batch_picture
from bnood.report.intervention_rows import with_interval

MINUS = "\N{MINUS SIGN}"


@pytest.fixture
def interventions() -> pd.DataFrame:
    """One seed, whose intervals are its own: all changes of AUROC are -0.1 ± 0.05 but for two cells."""
    made = make_interventions((0,), sizes=(8, 128))
    area = made["kind"].eq("batch") & made["metric"].eq("auroc") & made["score"].eq("energy")
    made.loc[area, ["change", "change_low", "change_high"]] = [-0.1, -0.15, -0.05]
    cell = area & made["dataset"].eq("noise") & made["position"].eq(8)
    made.loc[cell & made["share"].eq(0.9), ["change", "change_low", "change_high"]] = [-0.18, -0.62, 0.261]
    made.loc[cell & made["share"].eq(1.0), ["change", "change_low", "change_high"]] = [0.3, 0.2, 0.4]
    return made


def test_the_cells_that_are_named_have_their_intervals(interventions: pd.DataFrame) -> None:
    found = batch_picture(interventions)
    assert found is not None
    low = f"{MINUS}0.180 [{MINUS}0.620, +0.261] (noise, batches of 8, share 0.9)"
    assert f"AUROC of the energy score: {low} to +0.300 [+0.200, +0.400] (noise, batches of 8, pure)" in found.says
    assert "of 32 cells 1 are above zero; the interval lies above zero in 1, below in 30." in found.says


def test_every_outcome_of_the_selector_is_said(interventions: pd.DataFrame) -> None:
    accuracy = interventions["kind"].eq("batch") & interventions["metric"].eq("accuracy")
    at = accuracy & interventions["companion"].eq("noise") & interventions["position"].eq(128)
    interventions.loc[at & interventions["share"].eq(0.9), ["change", "change_low", "change_high"]] = [
        -0.65,
        -0.7,
        -0.6,
    ]
    found = batch_picture(interventions)
    assert found is not None
    said = f"ID accuracy: {MINUS}0.650 [{MINUS}0.700, {MINUS}0.600] (beside noise, batches of 128, share 0.9) to"
    assert said in found.says and "Largest unit mean, relative to ID: " in found.says
    without = batch_picture(interventions[~accuracy])
    assert without is not None and "accuracy" not in without.says


def test_without_intervals_none_are_counted(interventions: pd.DataFrame) -> None:
    found = batch_picture(interventions.drop(columns=["change_low", "change_high"]))
    assert found is not None and "of 32 cells 1 are above zero." in found.says and "the interval lies" not in found.says


def test_empty_cells_are_explained_and_full_maps_are_not(interventions: pd.DataFrame) -> None:
    full = batch_picture(interventions)
    assert full is not None and "Empty cells" not in full.how
    gone = interventions["dataset"].eq("dtd") & interventions["position"].eq(128) & interventions["share"].eq(1)
    found = batch_picture(interventions[~gone])
    assert found is not None
    assert "Empty cells (dtd, batches of 128) were not measured: there were too few images" in found.how


def test_the_table_names_batch_sizes_and_changes(interventions: pd.DataFrame) -> None:
    found = batch_picture(interventions)
    assert found is not None
    assert {"batch_size", "change", "change_low", "change_high"} <= set(found.numbers.columns)
    assert not {"position", "mean"} & set(found.numbers.columns)
    assert set(found.numbers["batch_size"]) == {8, 128}


def test_a_change_without_an_interval_stands_alone() -> None:
    row = pd.Series({"mean": 0.0123, "low": float("nan"), "high": float("nan")})
    assert with_interval(row) == "+0.012"
    assert with_interval(row.fillna(-0.5)) == f"+0.012 [{MINUS}0.500, {MINUS}0.500]"
