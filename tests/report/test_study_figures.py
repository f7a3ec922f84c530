"""Static pictures: what is drawn is what the panels say, and the files are there."""

import dataclasses
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from matplotlib.image import imread
from report_pages import Page
from synthetic_evaluation import make_scores, make_summary, make_table
from synthetic_study import make_distances, make_interventions, make_layers, make_metric_table, make_shift, make_study

from bnood.errors import UserError
from bnood.report import charts, study_figures
from bnood.report.charts import plotly_script
from bnood.report.figures import ID_COLOUR, OOD_COLOURS
from bnood.report.intervention_panels import batch_picture, distance_picture, lens_pictures, path_picture, place_picture
from bnood.report.panels import Heat, Panel, Picture, Series, marker_of
from bnood.report.price_panels import price_picture
from bnood.report.run_report import write_report
from bnood.report.shown import GLYPHS
from bnood.report.study_figures import draw, run_pictures, write_picture, write_study_figures
from bnood.report.study_panels import study_pictures, unit_picture
from bnood.report.study_tables import StudyTables

SEEDS = (0, 1, 2)
DOTS = Series("svhn", "#D55E00", [0.9, 0.8], [0, 1], [0.85, 0.7], [0.97, 0.9], "x", "square-open")
HEAT = Heat(["8", "32"], ["1 (pure)", "0.1"], [[0.1, -0.2], [float("nan"), 0.05]], 0.2)


def picture(*panels: Panel) -> Picture:
    return Picture("name", "title", "says", "how", panels, pd.DataFrame(), "table.csv")


@pytest.fixture(scope="module")
def interventions() -> pd.DataFrame:
    return make_interventions(SEEDS, sizes=(8, 128))


def test_marks_and_bars_lie_where_the_series_says() -> None:
    ticks = [(0.0, "bn"), (1.0, "ln")]
    (axes,) = draw(picture(Panel("dots", "x", "", [DOTS], y_ticks=ticks, y_range=(1.5, -0.5), x_line=0.5))).axes
    line, reference = axes.lines
    assert np.array_equal(line.get_xydata(), [[0.9, 0], [0.8, 1]])
    assert line.get_color() == "#D55E00" and line.get_markerfacecolor() == "white"
    assert [segment.tolist() for segment in axes.collections[0].get_segments()] == [
        [[0.85, 0], [0.97, 0]],
        [[0.7, 1], [0.9, 1]],
    ]
    assert list(reference.get_xdata()) == [0.5, 0.5]
    assert [label.get_text() for label in axes.get_yticklabels()] == ["bn", "ln"]
    assert axes.get_ylim() == (1.5, -0.5)


def test_bars_are_drawn_as_far_as_a_share_can_be() -> None:
    wide = DOTS._replace(low=[-0.3, 0.7], high=[1.4, 0.9])
    (axes,) = draw(picture(Panel("dots", "AUROC (share)", "", [wide], share_axis="x"))).axes
    bars = [segment.tolist() for segment in axes.collections[0].get_segments()]
    assert bars == [[[0.0, 0], [1.0, 0]], [[0.7, 1], [0.9, 1]]]


def test_bands_of_units_end_at_zero_unless_a_mean_lies_below() -> None:
    table = make_study(seeds=(0,), n=20)
    for shift, least in ((0.0, 0.0), (-9.0, -9.0)):
        units = {run: frame.assign(mean=frame["mean"] + shift, std=9.0) for run, frame in table.units.items()}  # type: ignore[union-attr]
        found = unit_picture(dataclasses.replace(table, units=units))
        assert found is not None and "Bands end at 0" in found.how
        ends = [end for panel in found.panels for series in panel.drawn for end in series.low]
        assert (min(ends) == 0) if least == 0 else (min(ends) < least)


def test_no_bar_of_a_study_lies_where_no_value_can(interventions: pd.DataFrame) -> None:
    distances = make_distances(SEEDS)
    spread = {0: 0.1, 1: 1.0, 2: 4.0}
    for name in ("mean_shift", "symmetric_kl"):
        distances[name] *= distances["seed"].map(spread)
    found = distance_picture(distances)
    assert found is not None and "Bars of the mean shift and of the symmetric KL end at 0" in found.how
    panels = {panel.title: panel for panel in found.panels}
    for title in ("mean shift", "symmetric KL of the Gaussians"):
        assert min(end for series in panels[title].series for end in series.low) < 0, "else there is nothing to cut"
        assert min(end for series in panels[title].drawn for end in series.low) == 0
    ratio = panels["log variance ratio, set / running"]
    assert [series.low for series in ratio.drawn] == [list(series.low) for series in ratio.series]
    assert found.numbers["low"].min() < 0, "the table holds the whole interval"
    path = path_picture(interventions)
    assert path is not None and "Bars of shares end at 0 and 1" in path.how


def test_a_heat_map_holds_its_numbers_and_no_others() -> None:
    (axes,) = draw(picture(Panel("heat", "x", "y", heat=HEAT))).axes
    assert [text.get_text() for text in axes.texts] == ["+0.100", "\N{MINUS SIGN}0.200", "+0.050"]
    assert axes.images[0].norm.vmin == -axes.images[0].norm.vmax


def test_each_choice_has_its_file(tmp_path: Path) -> None:
    panels = [Panel("one", "", "", [DOTS], choice=choice) for choice in ("AUROC", "Change in FPR95")]
    paths = write_picture(tmp_path, picture(*panels))
    assert [path.name for path in paths] == ["name_auroc.png", "name_fpr95.png"]
    assert all(imread(path).shape[1] > 500 for path in paths)


def test_colours_are_those_of_the_sets_in_every_picture(interventions: pd.DataFrame) -> None:
    wanted = dict(zip(("svhn", "dtd", "cifar100", "noise"), OOD_COLOURS, strict=False)) | {"cifar10 (ID)": ID_COLOUR}
    pictures = lens_pictures(make_layers(["bn", "ln"], SEEDS), make_distances(SEEDS), interventions)
    assert all(isinstance(found, Picture) for found in pictures)
    for found in pictures:
        for series in found.legend:  # type: ignore[union-attr]
            assert series.colour == wanted[series.name]
            assert series.marker == marker_of(series.colour)
        (drawn, *_) = draw(found, (*found.choices, "")[0]).axes  # type: ignore[arg-type, union-attr]
        shapes = {line.get_color(): line.get_marker() for line in drawn.lines if line.get_color() in wanted.values()}
        assert len(set(shapes.values())) == len(shapes) and (found.name == "batches" or len(shapes) > 3)


def test_no_two_sets_share_a_shape_in_either_kind_of_picture() -> None:
    hues = (ID_COLOUR, *OOD_COLOURS)
    for names in (charts.SYMBOLS, study_figures.SYMBOLS, GLYPHS):
        assert len({names[marker_of(hue)] for hue in hues}) == len(hues)


@pytest.mark.parametrize("colour", [ID_COLOUR, *OOD_COLOURS])
def test_every_colour_is_seen_on_white(colour: str) -> None:
    """WCAG 2.2, 1.4.11: graphics need a contrast of 3:1; the formula is its definition of relative luminance."""
    parts = [int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5)]
    linear = [part / 12.92 if part <= 0.04045 else ((part + 0.055) / 1.055) ** 2.4 for part in parts]
    assert 1.05 / (np.dot(linear, [0.2126, 0.7152, 0.0722]) + 0.05) >= 3


def test_one_layer_alone_is_drawn_at_its_change(interventions: pd.DataFrame) -> None:
    found = place_picture(interventions)
    assert found is not None
    panel = next(panel for panel in found.seen("AUROC of the energy score") if panel.title == "one layer alone")
    series = next(series for series in panel.series if series.name == "dtd")
    own = interventions.query("kind == 'only' and dataset == 'dtd' and score == 'energy' and metric == 'auroc'")
    assert list(series.y) == pytest.approx(own.groupby("position")["change"].mean().tolist())
    assert next(iter(series.labels)) == "layer 0 (stem.norm) alone"


def test_the_path_shows_values_and_the_prior_equal_steps(interventions: pd.DataFrame) -> None:
    found = path_picture(interventions)
    assert found is not None
    steps = {panel.title: panel for panel in found.panels}
    path, prior = steps["largest unit mean: path λ"], steps["largest unit mean: prior N"]
    own = interventions.query("kind == 'path' and dataset == 'noise' and metric == 'unit_mean_max_ratio'")
    series = next(series for series in path.series if series.name == "noise")
    ends = interventions.query("dataset == 'noise' and metric == 'unit_mean_max_ratio'").groupby("kind")["value"].mean()
    assert list(series.x) == [0, 0.25, 0.5, 0.75, 1]
    assert list(series.y) == pytest.approx([ends["none"], *own.groupby("position")["value"].mean(), ends["all"]])
    assert found.says.startswith("At λ = 0, 0.5 and 1 the largest")
    alone = path_picture(interventions[interventions["kind"].isin(["none", "all", "prior"])])
    assert alone is not None and not any("path" in panel.title for panel in alone.panels), "ends make no path"
    assert path_picture(interventions[interventions["kind"].isin(["none", "all"])]) is None
    assert [place for place, _ in prior.x_ticks] == [0, 1, 2, 3, 4]
    assert [name for _, name in prior.x_ticks] == ["0", "16", "64", "256", "1024"]


def test_a_cell_of_the_heat_map_is_its_mean_change(interventions: pd.DataFrame) -> None:
    found = batch_picture(interventions)
    assert found is not None
    accuracy = [panel for panel in found.seen("Change in ID accuracy") if panel.title == "dtd"]
    (heat,) = [panel.heat for panel in accuracy]
    assert heat is not None and heat.rows == ["8", "128"] and heat.columns[-1] == "1 (pure)"
    mixed = interventions.query("kind == 'batch' and metric == 'accuracy' and position == 8")
    half = mixed.query("share == 0.5 and companion == 'dtd'")["change"].mean()
    pure = mixed.query("share == 1 and companion == ''")["change"].mean()
    assert heat.values[0][heat.columns.index("0.5")] == pytest.approx(half)
    assert heat.values[0][-1] == pytest.approx(pure)


def test_the_largest_distance_is_named() -> None:
    distances = make_distances(SEEDS)
    distances.loc[(distances["dataset"] == "dtd") & (distances["position"] == 3), "symmetric_kl"] = 99.0
    found = distance_picture(distances)
    assert found is not None and "layer 3 (layer2.0.norm1) on dtd, 99.00 nats" in found.says


def test_the_price_pairs_accuracy_with_detection() -> None:
    shift = make_shift(SEEDS)
    found = price_picture(shift)
    assert found is not None
    matched = shift[(shift["statistics"] == "recalibrated:target") & (shift["dataset"] == "blur-3")]
    gain = matched.query("metric == 'accuracy'")["change"].mean()
    loss = matched.query("metric == 'auroc' and companion == 'noise'")["change"].mean()
    cloud = next(panel for panel in found.panels if panel.title == "against noise")
    series = next(series for series in cloud.series if series.name == "blur")
    place = list(series.labels).index("blur-3, strength 3")
    assert (series.x[place], series.y[place]) == pytest.approx((gain, loss))


def test_two_clean_sets_have_a_name_and_a_shape_each() -> None:
    shift = make_shift(SEEDS)
    clean = shift[shift["dataset"] == "clean"]
    found = price_picture(pd.concat([shift, clean.assign(dataset="clean-test")]))
    assert found is not None
    shapes = {series.name: series.marker for series in found.legend}
    assert {"clean", "clean-test", "noise", "jpeg"} <= set(shapes)
    assert len(set(shapes.values())) == len(shapes)


def test_nothing_to_draw_is_a_line_and_no_picture() -> None:
    assert all(isinstance(found, str) for found in lens_pictures(None, None, None))
    assert price_picture(None) is None


def test_a_study_has_its_files_with_captions(tmp_path: Path) -> None:
    table = make_metric_table(["ln"], (0, 1), 20)
    small = StudyTables("small", table[table["metric"].isin(["mean", "auroc"])], commands=["python scripts/study.py"])
    paths = write_study_figures(tmp_path, small)
    names = [path.name for path in paths]
    assert names[0] == "detection_auroc.png" and "confidence.png" in names
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted([*names, "captions.md"])
    captions = (tmp_path / "captions.md").read_text(encoding="utf-8")
    for found in study_pictures(small):
        if isinstance(found, Picture):
            assert found.says in captions
    assert "`python scripts/study.py`" in captions


def test_the_report_of_a_run_shows_its_own_tables(tmp_path: Path) -> None:
    table = make_table(make_scores(n=30, shuffles=1))
    given = {"run_name": "bn-s0", "config": {}, "summary": make_summary(), "figures": [], "commands": ["train", "eval"]}
    before = write_report(tmp_path, table=table, **given).read_text(encoding="utf-8")  # type: ignore[arg-type]
    assert "Inside the network" not in before and [file.name for file in tmp_path.iterdir()] == ["report.html"]
    make_distances([0]).drop(columns=["run", "network", "norm", "seed"]).to_csv(tmp_path / "layer_distances.csv")
    make_layers(["bn"], [0]).drop(columns=["run", "network", "norm", "seed"]).to_parquet(tmp_path / "layers.parquet")
    after = write_report(tmp_path, table=table, **given).read_text(encoding="utf-8")  # type: ignore[arg-type]
    page = Page(after)
    for found in run_pictures(tmp_path):
        assert found.title in page.text["h3"] and found.says in page.text["p"]
    data = [a["id"] for a in page.all("script") if a.get("type") == "application/json"]
    assert [a["data-chart"] for a in page.all("div") if a.get("class") == "chart"] == data and len(data) == 5
    assert after.count(plotly_script()) == 1 and plotly_script() not in before
    assert page.all("img") == []
    assert after.count("Drawn from <code>") == after.count("by <code>eval</code>") == 2
    assert {"numbers-layer_distances", "numbers-layer_shares"} <= set(page.tables)
    drawn = sorted(file.name for file in (tmp_path / "figures").iterdir())
    assert drawn == ["layer_distances.png", "layer_shares.png"]


def test_a_broken_table_is_named(tmp_path: Path) -> None:
    (tmp_path / "layers.parquet").write_text("no parquet")
    with pytest.raises(UserError, match=r"layers\.parquet is not readable as a table"):
        run_pictures(tmp_path)
