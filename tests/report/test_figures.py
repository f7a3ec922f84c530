"""What the pictures of an evaluation draw, read back from their axes."""

import numpy as np
import pandas as pd
import pytest
import report_pages as made
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from bnood.report.charts import COLOURS, ID_COLOUR, Panel
from bnood.report.figures import (
    DETECTION,
    batch_picture,
    detector_picture,
    dots_picture,
    layer_distances_picture,
    layer_forms_picture,
    main_statistics,
    over_networks,
    rows,
    run_pictures,
    tradeoff_picture,
    units_picture,
)


@pytest.fixture(scope="module")
def table() -> pd.DataFrame:
    return made.table_of(made.replicates_of())


def drawn(panel: Panel) -> Axes:
    axes = Figure().subplots()
    panel.draw(axes)
    return axes


def value(table: pd.DataFrame, statistics: str, dataset: str, detector: str, metric: str) -> float:
    found = rows(table, metric, detector).set_index(["statistics", "dataset"])
    return float(found.loc[(statistics, dataset), "value"])


def test_rows_leave_out_placebo_and_shifted_sets(table: pd.DataFrame) -> None:
    found = rows(table, "auroc", "energy")
    assert not found.duplicated(["statistics", "dataset"]).any()
    assert set(found["comparison"]) == {"ood"} and set(found["companion"]) == {""}
    assert set(rows(table, "accuracy", "", "id")["dataset"]) == {"cifar10"}


def test_id_rows_take_one_companion() -> None:
    draws = made.replicates_of()
    accuracy = draws[draws["metric"].eq("accuracy") & draws["dataset"].eq("cifar10")]
    both = pd.concat([accuracy.assign(companion=name) for name in made.SETS])
    assert len(rows(pd.concat([draws[draws["role"] == "ood"], both]), "accuracy", "", "id")) == len(accuracy)


def test_main_statistics_leave_out_sweeps_and_other_batch_sizes() -> None:
    main = ["running", "batch:128", "batch:128@0.5", "recalibrated:target"]
    names = [*main, "batch:8", "recalibrated:target/first:1", "path:0.5"]
    assert main_statistics(pd.DataFrame({"statistics": names})) == main


def test_over_networks_is_the_mean_without_intervals() -> None:
    tables = [made.table_of(made.replicates_of("bn", seed)) for seed in (0, 1)]
    mean = over_networks(pd.concat(tables))
    wanted = np.mean([value(one, "running", "svhn", "msp", "auroc") for one in tables])
    assert value(mean, "running", "svhn", "msp", "auroc") == pytest.approx(wanted)
    assert mean["low"].isna().all()
    assert over_networks(tables[0]) is tables[0]


def test_units_are_sorted_by_their_id_mean_under_running_statistics() -> None:
    units = made.units_of()
    picture = units_picture(units)
    assert picture is not None and len(picture.panels) == 4 and picture.columns == 2
    ood, known = drawn(picture.panels[0]).lines
    own = units[(units["statistics"] == "running") & (units["role"] == "id")].sort_values("mean")
    np.testing.assert_allclose(known.get_ydata(), own["mean"])
    other = units[(units["statistics"] == "running") & (units["dataset"] == "svhn")].set_index("unit")["mean"]
    np.testing.assert_allclose(ood.get_ydata(), other[own["unit"]])


def test_detector_cells_hold_auroc_difference_and_placebo_mark(table: pd.DataFrame) -> None:
    picture = detector_picture(table)
    assert picture is not None and picture.panels[0].title == "Mean of the OOD sets"
    axes = drawn(picture.panels[1])  # SVHN
    texts = np.array([text.get_text() for text in axes.texts]).reshape(len(made.DETECTORS), -1)
    kinds = main_statistics(table)
    assert texts[1, 0] == f"{100 * value(table, 'running', 'svhn', 'energy', 'auroc'):.1f}"
    place = kinds.index("recalibrated:target")
    after = value(table, "recalibrated:target", "svhn", "knn", "auroc")
    change = after - value(table, "running", "svhn", "knn", "auroc")
    assert texts[3, place] == f"{100 * after:.1f}*\n({100 * change:+.1f})".replace("-", "\u2212")
    assert not any("*" in text for text in texts[:3].flat)  # only KNN's placebo differs from 50
    assert not any("*" in text.get_text() for text in drawn(picture.panels[2]).texts)  # and only on SVHN


def test_detectors_that_do_not_apply_are_named_so(table: pd.DataFrame) -> None:
    gone = table["detector"].eq("knn") & table["statistics"].eq("running") & table["metric"].eq("auroc")
    picture = detector_picture(table.assign(value=table["value"].mask(gone)))
    assert picture is not None and "n/a" in [text.get_text() for text in drawn(picture.panels[1]).texts]


def test_detection_dots_are_in_per_cent_with_their_intervals(table: pd.DataFrame) -> None:
    picture = dots_picture(table, "detection", DETECTION)
    assert picture is not None and len(picture.panels) == 5
    axes = drawn(picture.panels[1])
    first = axes.lines[0]
    assert first.get_color() == COLOURS[0]
    assert first.get_xdata()[0] == pytest.approx(100 * value(table, "running", "svhn", "energy", "auroc"))
    ends = axes.collections[0].get_segments()[0][:, 0]
    row = rows(table, "auroc", "energy").iloc[0]
    np.testing.assert_allclose(ends, [100 * row["low"], 100 * row["high"]])
    assert drawn(picture.panels[4]).lines[0].get_color() == ID_COLOUR


def test_layer_forms_run_over_the_layers_between_running_and_target(table: pd.DataFrame) -> None:
    picture = layer_forms_picture(table)
    assert picture is not None
    axes = drawn(picture.panels[0])
    mean = np.mean([value(table, "recalibrated:target/last:2", name, "energy", "auroc") for name in made.SETS])
    assert axes.lines[1].get_ydata()[1] == pytest.approx(100 * mean)
    assert [text.get_text() for text in axes.texts] == ["running", "target"]
    assert layer_forms_picture(table[~table["statistics"].str.contains("/")]) is None


def test_batches_run_over_ood_fractions(table: pd.DataFrame) -> None:
    picture = batch_picture(table)
    assert picture is not None
    axes = drawn(picture.panels[0])
    assert [tick.get_text() for tick in axes.get_xticklabels()] == ["pure", "10\u00a0% OOD", "50\u00a0% OOD"]
    mean = np.mean([value(table, "batch:128@0.5", name, "energy", "auroc") for name in made.SETS])
    assert axes.lines[0].get_ydata()[2] == pytest.approx(100 * mean)
    assert batch_picture(table[table["statistics"].isin(["running", "batch:128"])]) is None


def test_layer_distances_keep_the_order_of_the_layers() -> None:
    picture = layer_distances_picture(made.layers_of())
    assert picture is not None
    np.testing.assert_allclose(drawn(picture.panels[0]).lines[1].get_ydata(), [0.4, 0.8, 1.2])


def test_tradeoff_goes_from_running_to_target(table: pd.DataFrame) -> None:
    picture = tradeoff_picture(table)
    assert picture is not None and [panel.title for panel in picture.panels] == ["noise-3"]
    line = drawn(picture.panels[0]).lines[0]
    np.testing.assert_allclose(line.get_xdata(), [60, 70])
    np.testing.assert_allclose(line.get_ydata(), [70, 75])


def test_a_network_without_batchnorm_has_no_sweeps() -> None:
    found = made.evaluated(has_batchnorm=False)
    pictures = run_pictures(found.table, found.units, found.layers)
    assert [picture.name for picture in pictures] == ["units", "detectors", "detection", "confidence"]
    assert len(pictures[0].panels) == len(made.SETS) and pictures[0].columns == 1


def test_tables_without_rows_have_no_pictures() -> None:
    found = made.evaluated()
    assert run_pictures(found.table.iloc[:0], found.units.iloc[:0], found.layers.iloc[:0]) == []
