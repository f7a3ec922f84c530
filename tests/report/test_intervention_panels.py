"""What the sentences say of interventions and of the path between running and matched statistics."""

import pandas as pd
import pytest
from synthetic_study import make_interventions

from bnood.report.intervention_panels import path_picture, place_picture
from bnood.report.study_tables import signed

SEEDS = (0, 1)
RATIO = "metric == 'unit_mean_max_ratio' and role == 'ood'"


@pytest.fixture
def interventions() -> pd.DataFrame:
    return make_interventions(SEEDS, sizes=(8,))


def test_detection_and_id_accuracy_are_said_beside_the_largest_unit_mean(interventions: pd.DataFrame) -> None:
    interventions.loc[(interventions["kind"] == "only") & (interventions["position"] == 2), "change"] *= 5
    found = place_picture(interventions)
    assert found is not None
    own = interventions.query(
        "kind in ('all', 'only') and dataset == 'dtd' and metric == 'auroc' and score == 'energy'"
    )
    change = own.groupby(["kind", "position"])["change"].mean()
    area = rf"{signed(change['all', 0.0])} [", f"on dtd, layer 2 (layer1.0.norm2) alone {signed(change['only', 2.0])}"
    assert all(part in found.says.split("the AUROC of the energy score by")[1] for part in area)
    accuracy = interventions.query("kind == 'all' and metric == 'accuracy'")["change"].mean()
    assert f"(ID), matched to its own images, changes by {signed(accuracy)} [" in found.says
    assert found.says.count("(ID), matched to its own images") == 1, "all layers, not the first k"
    without = place_picture(interventions[interventions["metric"] != "accuracy"])
    assert without is not None and "accuracy" not in without.says


def test_the_table_says_that_its_figures_are_changes_and_where(interventions: pd.DataFrame) -> None:
    found = place_picture(interventions)
    assert found is not None
    assert "mean" not in found.numbers.columns and {"change", "change_low", "change_high"} <= set(found.numbers.columns)
    named = set(found.numbers["matched"])
    assert {"layer 0 (stem.norm) alone", "the first layer", "the last 3 layers", "all layers, means only"} <= named
    assert "up to 300 images" in found.how and "counted from 0" in found.how


@pytest.mark.parametrize(("factor", "says"), [(1.0, ""), (3.0, "up to"), (-1.0, "down to")])
def test_a_curve_that_leaves_the_range_of_its_ends_is_named(
    interventions: pd.DataFrame, factor: float, says: str
) -> None:
    kinds = interventions["kind"].isin(["none", "all", "path"])
    interventions = interventions[kinds & interventions["metric"].eq("unit_mean_max_ratio")].copy()
    interventions["value"] = interventions["kind"].map({"none": 2.0, "path": 1.5, "all": 1.0})
    at = interventions["kind"].eq("path") & interventions["position"].eq(0.25) & interventions["dataset"].eq("noise")
    interventions.loc[at, "value"] = 1.5 * factor
    found = path_picture(interventions)
    assert found is not None
    if says:
        wanted = f"Largest unit mean: {says} {signed(1.5 * factor, 2).lstrip('+')} at λ = 0.25 on noise (beyond by 0.1"
        assert wanted in found.says
        assert found.says.count(says) == 1
    else:
        assert found.says.endswith("No curve's mean leaves the range between its ends by what counts as an effect.")


def test_the_names_of_the_path_s_rows(interventions: pd.DataFrame) -> None:
    found = path_picture(interventions)
    assert found is not None and set(found.numbers["kind"]) == {"path, by λ", "prior, by N"}
