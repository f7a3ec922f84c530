"""What charts say to who does not see them."""

import re

import pandas as pd
import pytest
from synthetic_study import make_study

from bnood.report.panels import Heat, Panel, Picture, Series
from bnood.report.shown import show
from bnood.report.study_panels import study_pictures

NAN = float("nan")
MINUS = "\N{MINUS SIGN}"
HOLDS = "The table below the figure holds the numbers."
DOTS = Series("mean", "#D55E00", [0.9, NAN, 0.5, 0.7], [0, 1, 2, 3], interval="x", labels=["bn", "off", "ln", "gn"])


def alts(*panels: Panel, **more: str) -> list[str]:
    picture = Picture("name", "title", "says", "how", panels, pd.DataFrame({"a": [1]}), "table.csv", **more)  # type: ignore[arg-type]
    return [panel.alt for panel in show(picture).panels]


@pytest.fixture(scope="module")
def pictures() -> list[Picture]:
    return [found for found in study_pictures(make_study(n=40)) if isinstance(found, Picture)]


def test_a_dot_plot_names_its_quantity_and_the_rows_at_its_ends() -> None:
    ticks = [(float(i), name) for i, name in enumerate(DOTS.labels)]
    panel = Panel("svhn", "AUROC (share)", "", [DOTS], y_ticks=ticks, choice="AUROC")
    assert alts(panel) == [f"Chart: svhn: AUROC (share) in 4 rows. mean from 0.500 (ln) to 0.900 (bn). {HOLDS}"]


def test_columns_stand_in_for_a_missing_axis_label() -> None:
    series = [Series("dtd", "#0072B2", [0, 1], [NAN, -0.25], labels=["means only", "both"])]
    series.append(Series("none", "#0072B2", [0], [NAN]))
    ticks = [(0.0, "means only"), (1.0, "both")]
    panel = Panel("all layers", "", "change (share)", series, x_ticks=ticks, choice="Mean MSP")
    head = "Chart: Mean MSP, all layers: change (share) by means only and both"
    assert alts(panel) == [f"{head}. dtd {MINUS}0.250 (both). {HOLDS}"]


def test_a_heat_map_names_its_outcome_its_extreme_cells_and_its_table() -> None:
    heat = Heat(["0.1", "0.5"], ["8", "32"], [[-0.2, NAN], [0.0, 0.1]], 0.2)
    panel = Panel("svhn", "share of OOD", "batch size", heat=heat, choice="Change in AUROC")
    head = "Heat map: Change in AUROC, svhn, by share of OOD and batch size"
    least, most = f"{MINUS}0.200 (batch size 8, share of OOD 0.1)", "0.100 (batch size 32, share of OOD 0.5)"
    assert alts(panel) == [f"{head}. Changes from {least} to {most}. {HOLDS}"]


def test_no_two_charts_of_a_picture_share_a_head(pictures: list[Picture]) -> None:
    for picture in pictures:
        heads = [panel.alt.split(". ")[0] for panel in show(picture).panels]
        assert len(set(heads)) == len(heads)
        assert not any(re.search(r"\bby *(\.|$)", head) for head in heads)


def test_a_table_is_said_to_hold_what_it_holds(pictures: list[Picture]) -> None:
    for picture in pictures:
        held = "two ratios per panel; each unit's mean" if picture.name == "unit_profiles" else "the numbers."
        assert all(f"The table below the figure holds {held}" in panel.alt for panel in show(picture).panels)
    (detection,) = [picture for picture in pictures if picture.name == "detection"]
    shown = {value for panel in detection.panels for series in panel.series for value in series.x}
    assert {"auroc", "fpr95", "fpr95_ood_positive"} == set(detection.numbers["metric"])
    assert shown <= set(detection.numbers["mean"])
