"""What the figures draw is what the tables say: the artists are read back and compared with the input."""

import io
import itertools
import time
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
import pandas as pd
import pytest
from matplotlib.collections import FillBetweenPolyCollection, LineCollection
from matplotlib.colors import to_hex
from matplotlib.figure import Figure
from matplotlib.image import imread
from matplotlib.patches import StepPatch
from scipy.stats import binomtest
from synthetic_evaluation import make_scores, make_table, make_units

from bnood.errors import UserError
from bnood.report.figures import (
    ID_COLOUR,
    OOD_COLOURS,
    detection_by_condition,
    reliability_diagram,
    score_histograms,
    unit_profiles,
    write_figures,
)
from bnood.report.headline_conditions import Condition, at_one_batch_size, conditions, headline_conditions

Tables = tuple[pd.DataFrame, pd.DataFrame, pd.DataFrame]
SETS = ["svhn", "dtd", "cifar100", "noise"]
HEADLINE_LABELS = [
    "running",
    "batch of 128, pure",
    "batch of 128, half OOD",
    "recalibrated on ID",
    "matched",
    "recalibrated on a mixture, half OOD",
]


@pytest.fixture(scope="module")
def scores() -> pd.DataFrame:
    return make_scores()


@pytest.fixture(scope="module")
def table(scores: pd.DataFrame) -> pd.DataFrame:
    return make_table(scores)


@pytest.fixture(scope="module")
def few() -> Tables:
    """Table, scores and units of one condition and one OOD set, which are drawn quickly."""
    scores = make_scores(n=50).query("statistics == 'running' and dataset in ('cifar10', 'dtd')")
    return make_table(scores), scores, make_units(scores)


@pytest.fixture(scope="module")
def units(scores: pd.DataFrame) -> pd.DataFrame:
    return make_units(scores)


def is_cut_off(figure: Figure) -> bool:
    """Whether any text or line reaches beyond the edges of the figure, as it is written to a file."""
    figure.draw_without_rendering()  # lays the panels out
    box, (width, height) = figure.get_tightbbox(), figure.get_size_inches()
    titles = [axes.title.get_window_extent() for axes in figure.axes if axes.get_title()]
    collide = any(a.overlaps(b) for i, a in enumerate(titles) for b in titles[:i])
    return collide or box.x0 < -0.01 or box.y0 < -0.01 or box.x1 > width + 0.01 or box.y1 > height + 0.01


def panels_of(figure: Figure, rows: int, columns: int) -> Any:
    """The panels of a figure as an array; fails if there are not as many."""
    return np.array(figure.axes, dtype=object).reshape(rows, columns)


def histograms(axes: Any) -> dict[str, Any]:
    """The histograms of a panel by their colour: ID is a filled area, OOD an outline."""
    patches = [patch for patch in axes.patches if isinstance(patch, StepPatch)]
    return {to_hex(patch.get_facecolor() if patch.get_fill() else patch.get_edgecolor()): patch for patch in patches}


def test_conditions_stand_in_the_order_of_the_science_whatever_the_order_of_the_rows() -> None:
    scores = make_scores(n=20, batch_sizes=(256, 32)).sample(frac=1, random_state=0)
    assert [condition.label for condition in conditions(scores)] == [
        "running",
        "batch of 32, pure",
        "batch of 256, pure",
        "batch of 32, 10 % OOD",
        "batch of 256, 10 % OOD",
        "batch of 32, half OOD",
        "batch of 256, half OOD",
        "recalibrated on ID",
        "matched",
        "recalibrated on a mixture, half OOD",
    ]


def test_headline_has_one_batch_size_and_one_share() -> None:
    scores = make_scores(n=20, batch_sizes=(8, 64, 128, 512))
    assert [condition.label for condition in headline_conditions(scores)] == HEADLINE_LABELS
    assert {condition.batch_size for condition in at_one_batch_size(conditions(scores))} == {0, 128}
    without_half = scores[scores["composition"] != "mixed 0.5"]
    assert Condition("batch", "mixed 0.1", 128) in headline_conditions(without_half)


@pytest.mark.parametrize("score", ["energy", "msp", "max_logit"])
def test_histograms_are_the_densities_of_the_scores(scores: pd.DataFrame, score: str) -> None:
    figure = score_histograms(scores, score)
    panels = panels_of(figure, 6, 4)
    assert [axes.get_ylabel().replace("\n", " ") for axes in panels[:, 0]] == HEADLINE_LABELS
    for row, condition in zip(panels, headline_conditions(scores), strict=True):
        part = condition.rows(scores).query("shuffle == 0")
        for axes, name, colour in zip(row, SETS, OOD_COLOURS, strict=False):
            companion = name if condition.composition.startswith("mixed") else ""
            own = part.query(f"role == 'id' and companion == '{companion}'")[score].to_numpy()
            other = part.query("dataset == @name")[score].to_numpy()
            drawn = histograms(axes)
            assert set(drawn) == {ID_COLOUR, colour.lower()}
            for values, hue in ((own, ID_COLOUR), (other, colour.lower())):
                density, edges, _ = drawn[hue].get_data()
                widths = np.diff(edges)
                assert (density * widths).sum() == pytest.approx(1)
                inside = [((values >= a) & (values < b)).sum() for a, b in itertools.pairwise(edges)]
                inside[-1] += (values == edges[-1]).sum()
                np.testing.assert_allclose(density * widths * len(values), inside)
            means = sorted(line.get_xdata()[0] for line in axes.lines)
            np.testing.assert_allclose(means, sorted([own.mean(), other.mean()]))
    bins = {tuple(patch.get_data().edges) for axes in figure.axes for patch in histograms(axes).values()}
    assert len(bins) == 1, "all panels share their bins"
    assert len({axes.get_xlim() for axes in figure.axes}) == len({axes.get_ylim() for axes in figure.axes}) == 1
    assert "n = 520" in panels[0, 0].get_title()
    assert not is_cut_off(figure)


def test_a_condition_that_a_set_lacks_is_said_to_be_missing(scores: pd.DataFrame) -> None:
    gone = (scores["dataset"] == "dtd") & (scores["statistics"] == "recalibrated:target")
    panels = panels_of(score_histograms(scores[~gone], "energy"), 6, 4)
    assert [text.get_text() for text in panels[4, 1].texts] == ["not evaluated"]
    assert not panels[4, 0].texts


def test_unit_profiles_draw_mean_and_std_in_the_order_of_the_id_mean(units: pd.DataFrame) -> None:
    figure = unit_profiles(units, images={"cifar10": 400, "svhn": 520})
    panels = panels_of(figure, 4, 2)
    running = units.query("statistics == 'running' and role == 'id'")
    order = running["unit"].to_numpy()[np.argsort(running["mean"].to_numpy())]
    for row, name, colour in zip(panels, SETS, OOD_COLOURS, strict=False):
        for axes, statistics in zip(row, ["running", "recalibrated:target"], strict=True):
            assert axes.get_title(loc="left").startswith(f"{name} under {statistics}")
            lines = {to_hex(line.get_color()): line for line in axes.lines}
            bands: list[Any] = [band for band in axes.collections if isinstance(band, FillBetweenPolyCollection)]
            heights = {to_hex(band.get_facecolor()[0]): band.get_datalim(axes.transData).y1 for band in bands}
            for dataset, hue in (("cifar10", ID_COLOUR), (name, colour.lower())):
                rows = units[(units["dataset"] == dataset) & (units["statistics"] == statistics)].set_index("unit")
                np.testing.assert_allclose(lines[hue].get_ydata(), rows["mean"].loc[order])
                assert heights[hue] == pytest.approx((rows["mean"] + rows["std"]).max())
    assert len({axes.get_ylim() for axes in figure.axes}) == 1
    assert "n = 520 images" in panels[0, 0].get_title(loc="left")
    assert not is_cut_off(figure)


def test_a_net_without_batchnorm_has_one_column_of_units_and_one_row_of_scores() -> None:
    scores = make_scores(norm="ln")
    figures = {
        4: [unit_profiles(make_units(scores)), score_histograms(scores, "energy")],
        2: [detection_by_condition(make_table(scores, norm="ln")), reliability_diagram(scores, make_table(scores))],
    }
    for panels, drawn in figures.items():
        for figure in drawn:
            assert len(figure.axes) == panels
            assert not is_cut_off(figure)


def read_dots(axes: Any) -> list[tuple[str, float, float, float, float]]:
    """(colour, y, value, low, high) of every dot with its interval."""
    found = []
    intervals = [lines for lines in axes.collections if isinstance(lines, LineCollection)]
    dots = [line for line in axes.lines if line.get_marker() not in ("None", "", None)]
    for lines, points in zip(intervals, dots, strict=True):
        for segment, x, y in zip(lines.get_segments(), points.get_xdata(), points.get_ydata(), strict=True):
            assert segment[0, 1] == segment[1, 1] == y
            found.append((to_hex(points.get_color()).upper(), y, x, segment[0, 0], segment[1, 0]))
    return found


@pytest.mark.parametrize("score", ["energy", "msp"])
def test_dots_and_intervals_are_the_table_s(table: pd.DataFrame, score: str) -> None:
    figure = detection_by_condition(table, score)
    labels = [label.get_text() for label in figure.axes[0].get_yticklabels()]
    assert labels == [condition.label for condition in conditions(table)]
    for axes, metric in zip(figure.axes, ["auroc", "fpr95"], strict=True):
        wanted = table[(table["score"] == score) & (table["metric"] == metric)]
        drawn = read_dots(axes)
        assert len(drawn) == len(wanted) == 7 * 4
        for colour, y, value, low, high in drawn:
            condition = conditions(table)[round(y)]
            row = condition.rows(wanted[wanted["dataset"] == SETS[OOD_COLOURS.index(colour)]]).iloc[0]
            assert (value, low, high) == (row["value"], row["low"], row["high"])
    assert not is_cut_off(figure)


def test_several_runs_are_grouped_by_norm_with_a_dot_per_run() -> None:
    parts = []
    for norm in ("bn", "ln", "gn"):
        for seed in range(2):
            scores = make_scores(seed=seed, n=100, norm=norm)
            parts.append(make_table(scores, run=f"{norm}-{seed}", norm=norm, seed=seed))
    joined = pd.concat(parts, ignore_index=True)
    figure = detection_by_condition(joined)
    labels = [label.get_text() for label in figure.axes[0].get_yticklabels()]
    assert labels == [f"bn · {condition.label}" for condition in conditions(parts[0])] + [
        "ln",
        "gn",
    ]
    drawn = read_dots(figure.axes[0])
    wanted = joined.query("score == 'energy' and metric == 'auroc'")
    assert sorted(dot[2:] for dot in drawn) == sorted(
        wanted[["value", "low", "high"]].itertuples(index=False, name=None)
    )
    heights = [dot[1] for dot in drawn]
    assert len(set(heights)) == len(heights), "no dot hides another"
    for colour, y, value, _, _ in drawn:
        found = wanted[(wanted["value"] == value) & (wanted["dataset"] == SETS[OOD_COLOURS.index(colour)])]
        assert labels[round(y)].split(" · ")[0] in set(found["norm"])
    markers = {line.get_marker() for line in figure.axes[0].lines} - {"None"}
    assert markers == {"o", "s", "D"}
    assert not is_cut_off(figure)


def test_a_table_read_back_from_csv_draws_the_same(table: pd.DataFrame) -> None:
    again = pd.read_csv(io.StringIO(table.to_csv(index=False)))  # empty names come back as NaN
    before, after = detection_by_condition(table), detection_by_condition(again)
    assert read_dots(before.axes[0]) == read_dots(after.axes[0])


def test_scores_read_back_with_categories_draw_the_same(few: Tables, tmp_path: Path) -> None:
    _, scores, _ = few
    names = ["statistics", "composition", "companion", "dataset", "role"]
    scores.astype(dict.fromkeys(names, "category")).to_parquet(tmp_path / "scores.parquet")
    before, after = (
        histograms(score_histograms(frame, "energy").axes[0])
        for frame in (scores, pd.read_parquet(tmp_path / "scores.parquet"))
    )
    assert before.keys() == after.keys()
    for colour in before:
        np.testing.assert_array_equal(before[colour].get_data().values, after[colour].get_data().values)


def test_reliability_bins_are_counted_by_hand() -> None:
    confidence = [0.15, 0.19, 0.55, 0.55, 0.55, 0.95, 0.99, 1.0]
    right = [0, 1, 1, 1, 0, 1, 1, 0]
    rows = pd.DataFrame({"msp": confidence, "label": right}).assign(
        statistics="running", composition="", batch_size=0, shuffle=0, companion="", dataset="mine", role="id",
        prediction=1,
    )  # fmt: skip
    row = {"statistics": "running", "composition": "", "batch_size": 0, "companion": "", "role": "id", "metric": "ece"}
    table = pd.DataFrame([row | {"value": 0.123, "low": 0.111, "high": 0.144}])
    figure = reliability_diagram(rows, table, bins=10)
    upper, lower = panels_of(figure, 1, 2)[0]
    dots = next(line for line in upper.lines if line.get_marker() == "o")
    np.testing.assert_allclose(dots.get_xdata(), [0.17, 0.55, 0.98])
    np.testing.assert_allclose(dots.get_ydata(), [1 / 2, 2 / 3, 2 / 3])
    (bars,) = (patch.get_data()[0] for patch in lower.patches if isinstance(patch, StepPatch))
    np.testing.assert_allclose(bars, [0, 0.25, 0, 0, 0, 0.375, 0, 0, 0, 0.375])
    assert "ECE 0.123 [0.111, 0.144]\nn = 8" in upper.get_title()
    middle = next(lines for lines in upper.collections if isinstance(lines, LineCollection)).get_segments()[1]
    oracle = binomtest(2, 3).proportion_ci(0.95, method="wilson")
    np.testing.assert_allclose(middle[:, 1], [oracle.low, oracle.high], rtol=1e-5)


def test_reliability_names_the_companion_and_takes_its_ece(scores: pd.DataFrame, table: pd.DataFrame) -> None:
    figure = reliability_diagram(scores, table)
    assert len(figure.axes) == 12
    mixed = next(axes for axes in figure.axes if axes.get_title().startswith("batch of 128, half OOD"))
    row = table.query(
        "composition == 'mixed 0.5' and statistics == 'batch' and metric == 'ece' and companion == 'svhn'"
    )
    assert "shared with svhn" in mixed.get_title()
    assert f"ECE {row['value'].item():.3f}" in mixed.get_title()
    assert not is_cut_off(figure)


def test_names_with_dollar_signs_are_drawn_as_they_are(scores: pd.DataFrame) -> None:
    odd = scores.replace({"dataset": {"svhn": "my$\\frac$set"}})
    figure = score_histograms(odd, "energy")
    assert not is_cut_off(figure)
    assert figure.axes[0].get_title().startswith("my$\\frac$set")


def test_drawing_leaves_matplotlib_as_it_was(table: pd.DataFrame) -> None:
    before = dict(matplotlib.rcParams)
    detection_by_condition(table)
    assert dict(matplotlib.rcParams) == before


def test_all_figures_are_written_in_time_and_nothing_else(scores, table, units, tmp_path) -> None:
    start = time.process_time()  # processor time: a busy machine shall not fail the test
    paths = write_figures(table, scores, units, tmp_path / "figures")
    assert time.process_time() - start < 8
    names = ["detection_energy", "scores_energy", "unit_profiles", "detection_msp", "scores_msp", "reliability"]
    assert [path.stem for path in paths] == names
    assert sorted((tmp_path / "figures").iterdir()) == sorted(paths)
    for path in paths:
        image = imread(path)
        assert image.shape[1] >= 700
        assert image[..., :3].std() > 0.05, "not a blank page"


def test_unlabelled_id_images_have_no_reliability_diagram(few: Tables, tmp_path: Path) -> None:
    table, scores, units = few
    paths = write_figures(table, scores.assign(label=-1), units, tmp_path)
    assert "reliability" not in {path.stem for path in paths}
    with pytest.raises(UserError, match="label"):
        reliability_diagram(scores.assign(label=-1), table)


def test_a_failed_write_leaves_the_old_figure_and_nothing_beside_it(
    few: Tables, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    old = tmp_path / "detection_energy.png"
    old.write_bytes(b"the figure of before")

    def half_written(self, path, **kwargs):
        with open(path, "wb") as file:
            file.write(b"half")
        raise OSError(28, "No space left on device", str(path))

    monkeypatch.setattr(Figure, "savefig", half_written)
    with pytest.raises(UserError, match="No space"):
        write_figures(*few, tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["detection_energy.png"]
    assert old.read_bytes() == b"the figure of before"


@pytest.mark.parametrize(
    ("draw", "says"),
    [
        (lambda scores, table: score_histograms(scores.drop(columns="energy"), "energy"), "energy"),
        (lambda scores, table: score_histograms(scores.iloc[:0], "energy"), "no rows"),
        (lambda scores, table: score_histograms(scores[scores["role"] == "ood"], "energy"), "role 'id'"),
        (lambda scores, table: detection_by_condition(table, "react"), "react"),
        (lambda scores, table: unit_profiles(make_units(scores[scores["statistics"] != "running"])), "running"),
    ],
)
def test_wrong_tables_are_one_clear_line(scores, table, draw, says) -> None:
    with pytest.raises(UserError, match=says) as caught:
        draw(scores, table)
    assert "\n" not in str(caught.value)
