"""What the pictures of an evaluation draw, read back from their axes."""

import numpy as np
import pandas as pd
import pytest
import report_pages as made
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from bnood.report.charts import COLOURS, ID_COLOUR, Panel
from bnood.report.figures import DETECTION, detector_picture, dots_picture, main_statistics, rows, units_picture


@pytest.fixture
def table() -> pd.DataFrame:
    return made.evaluated().table


def drawn(panel: Panel) -> Axes:
    axes = Figure().subplots()
    panel.draw(axes)
    return axes


def test_rows_leave_out_placebo_and_shifted_sets_and_take_one_companion(table: pd.DataFrame) -> None:
    assert "placebo" in set(table["comparison"]) and "noise-3" in set(table["companion"])
    found = rows(table, "auroc", "energy")
    assert not found.duplicated(["statistics", "dataset"]).any()
    assert set(found["comparison"]) == {"ood"} and set(found["companion"]) == {""}
    accuracy = table[table["metric"].eq("accuracy") & table["dataset"].eq("known")].drop_duplicates("statistics")
    both = pd.concat([accuracy.assign(companion=name) for name in made.SETS])
    found = rows(pd.concat([table[table["role"] == "ood"], both]), "accuracy", "", "id")
    assert set(found["dataset"]) == {"known"} and len(found) == len(accuracy)


def test_units_are_sorted_by_their_id_mean_under_running_statistics() -> None:
    units = made.evaluated().units
    picture = units_picture(units)
    assert picture is not None and len(picture.panels) == 4 and picture.columns == 2
    ood, known = drawn(picture.panels[0]).lines
    running = units[units["statistics"] == "running"]
    own = running[running["dataset"] == "known"].groupby("unit")["mean"].mean().sort_values()
    np.testing.assert_allclose(known.get_ydata(), own)
    other = running[running["dataset"] == "far"].set_index("unit")["mean"]
    np.testing.assert_allclose(ood.get_ydata(), other[own.index])


def test_detector_cells_hold_auroc_difference_and_placebo_mark(table: pd.DataFrame) -> None:
    assert main_statistics(table) == ["running", "batch:16", "recalibrated:id", "recalibrated:target"]  # no layer forms
    auroc, placebo = table["metric"].eq("auroc"), table["comparison"].eq("placebo")
    gone = auroc & table["detector"].eq("react") & table["statistics"].eq("running")
    table = table.assign(value=table["value"].mask(gone), low=table["low"].mask(placebo, 0.4))
    cue = placebo & table["detector"].eq("energy") & table["dataset"].eq("far")
    picture = detector_picture(table.assign(low=table["low"].mask(cue, 0.55), high=table["high"].mask(placebo, 0.6)))
    assert picture is not None and picture.panels[0].title == "Mean of the OOD sets"
    texts = np.array([text.get_text() for text in drawn(picture.panels[1]).texts]).reshape(len(made.DETECTORS), -1)
    values = rows(table, "auroc", "energy").set_index(["statistics", "dataset"])["value"]
    before, after = (values[kind, "far"] for kind in ("running", "recalibrated:target"))
    assert texts[1, 0] == f"{100 * before:.1f}" and texts[2, 0] == "n/a"
    cell = texts[1, main_statistics(table).index("recalibrated:target")]
    assert cell == f"{100 * after:.1f}*\n({100 * (after - before):+.1f})".replace("-", "\u2212")
    assert not any("*" in text for text in texts[[0, 2]].flat)
    assert not any("*" in text.get_text() for text in drawn(picture.panels[2]).texts)  # only on the first set


def test_detection_dots_are_in_per_cent_with_their_intervals(table: pd.DataFrame) -> None:
    picture = dots_picture(table, "detection", DETECTION)
    assert picture is not None and len(picture.panels) == 5
    axes, row = drawn(picture.panels[1]), rows(table, "auroc", "energy").iloc[0]
    assert axes.lines[0].get_color() == COLOURS[0] and axes.lines[0].get_xdata()[0] == pytest.approx(100 * row["value"])
    np.testing.assert_allclose(axes.collections[0].get_segments()[0][:, 0], [100 * row["low"], 100 * row["high"]])
    assert drawn(picture.panels[4]).lines[0].get_color() == ID_COLOUR
