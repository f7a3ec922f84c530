"""Charts, held against plotly's own classes and against the panels that they were made from."""

import json
import re
from typing import Any

import numpy as np
import plotly.graph_objects as go
import pytest

from bnood.report.charts import chart, chart_json, height, plotly_script
from bnood.report.panels import Heat, Panel, Picture, Series

HOSTILE = "</script><script>alert(1)</script> & <b>"
NAN = float("nan")
DOTS = Series("svhn", "#D55E00", [0.9, 0.8], [0, 1], [0.85, NAN], [0.97, NAN], "x", "square-open", labels=["a", "b"])
LINE = Series("dtd", "#0072B2", [1, 2, 4], [0.1, 0.2, 0.4], [0.0, 0.1, 0.3], [0.4, 0.5, 0.7], "y", "circle", "dash")
BAND = Series("ID", "#333333", [0, 1, 2], [1, 2, 3], [0.5, 1.5, 2.5], [1.25, 2.25, 3.25], "band", "", "solid")


def test_plotly_accepts_every_kind_of_panel() -> None:
    heat = Heat(["8", "32"], ["1 (pure)", "0.1"], [[0.1, -0.2], [NAN, 0.05]], 0.2)
    for panel in (
        Panel("dots", "x", "", [DOTS], y_ticks=[(0.0, "bn"), (1.0, "ln")], y_range=(1.5, -0.5), x_line=0.5),
        Panel("line", "x", "y", [LINE], x_ticks=[(1.0, "one")], x_range=(0, 5), y_line=0.0),
        Panel("band", "x", "y", [BAND]),
        Panel("heat", "x", "y", heat=heat),
    ):
        figure = go.Figure(json.loads(chart_json(panel)))  # raises on any name or value that plotly does not know
        assert len(figure.data) >= 1
        assert figure.layout.height == height(panel)
        assert len(figure.layout.shapes) == (panel.x_line is not None) + (panel.y_line is not None)


@pytest.mark.parametrize(("series", "along"), [(DOTS, "x"), (LINE, "y")])
def test_error_bars_end_where_the_intervals_end(series: Series, along: str) -> None:
    (trace,) = chart(Panel("", "", "", [series]))["data"]
    bars, other = trace[f"error_{along}"], "y" if along == "x" else "x"
    assert f"error_{other}" not in trace
    middle = np.array(trace[along], float)
    assert np.allclose(middle + np.array(bars["array"], float), series.high, atol=1e-4, equal_nan=True)
    assert np.allclose(middle - np.array(bars["arrayminus"], float), series.low, atol=1e-4, equal_nan=True)


def test_intervals_are_cut_at_what_is_possible_and_said_whole() -> None:
    share = Panel("", "", "", [LINE._replace(low=[-0.5, 0.1, 0.3], high=[0.4, 0.5, 1.5])], share_axis="y")
    (trace,) = chart(share)["data"]
    ends = np.add(trace["y"], trace["error_y"]["array"]), np.subtract(trace["y"], trace["error_y"]["arrayminus"])
    assert np.allclose(ends, [[0.4, 0.5, 1.0], [0.0, 0.1, 0.3]])
    assert trace["hovertext"][2] == "dtd<br>0.4 [0.3, 1.5]"
    assert min(chart(Panel("", "", "", [BAND._replace(low=[-1, 0, 1])], floor=0.0))["data"][0]["y"]) == 0
    assert Panel("", "", "", [DOTS], share_axis="y").drawn[0].low == [0.85, pytest.approx(NAN, nan_ok=True)]


def test_series_stand_beside_each_other_within_a_step() -> None:
    given = [LINE._replace(name=name, x=[0, 1, 2, 3]) for name in "abc"]
    assert [series.x for series in Panel("", "", "", given).drawn] == [[0, 1, 2, 3]] * 3
    moved = np.array([series.x for series in Panel("", "", "", given, step=1.0).drawn])
    assert np.allclose(moved[1], [0, 1, 2, 3]), "the middle one stays"
    assert (np.diff(moved, axis=0) > 0.05).all() and moved.max() < 3.5
    alone = Panel("", "", "", [series._replace(x=[4.0]) for series in given], step=1.0).drawn
    assert [series.x[0] for series in alone] == pytest.approx([4 - 0.375, 4, 4 + 0.375])


def test_faint_marks_keep_a_full_edge() -> None:
    (trace,) = chart(Panel("", "", "", [LINE._replace(faint=True)]))["data"]
    assert trace["marker"]["color"] == "rgba(0,114,178,0.3)"
    assert trace["marker"]["line"]["color"] == "#0072B2" and trace["marker"]["line"]["width"] > 1


def test_pointing_at_a_band_names_the_unit() -> None:
    *_, line = chart(Panel("", "", "", [BAND._replace(labels=["unit 7", "unit 2", "<b>"])]))["data"]
    assert line["text"] == ["unit 7", "unit 2", "&lt;b&gt;"]
    assert line["hovertemplate"] == "ID<br>%{text}: %{y:.3g}<extra></extra>"


def test_pointing_at_a_cell_names_its_row_and_column() -> None:
    (trace,) = chart(Panel("", "share of OOD", "batch size", heat=Heat(["0.5"], ["8"], [[-0.2]], 0.2)))["data"]
    assert trace["hovertext"] == [["batch size 8, share of OOD 0.5: \N{MINUS SIGN}0.200"]]


def test_a_band_lies_between_its_ends_and_the_line_within() -> None:
    low, high, line = chart(Panel("", "", "", [BAND]))["data"]
    assert (low["y"], high["y"], line["y"]) == ([0.5, 1.5, 2.5], [1.25, 2.25, 3.25], [1.0, 2.0, 3.0])
    assert high["fill"] == "tonexty" and "fill" not in low


def test_names_stay_text() -> None:
    series = DOTS._replace(name=HOSTILE, labels=[HOSTILE, HOSTILE])
    panel = Panel(HOSTILE, HOSTILE, HOSTILE, [series], y_ticks=[(0.0, HOSTILE)])
    text = chart_json(panel)
    assert "<" not in text and ">" not in text
    figure = json.loads(text)
    shown = [figure["layout"]["xaxis"]["title"]["text"], figure["layout"]["yaxis"]["ticktext"][0]]
    assert all("&lt;b&gt;" in part and "<" not in part.replace("<br>", " ") for part in shown)
    assert not re.search(r"<(?!br>)", figure["data"][0]["hovertext"][0])


def test_what_a_mark_says_is_its_value_and_its_interval() -> None:
    said = chart(Panel("", "", "", [DOTS]))["data"][0]["hovertext"]
    assert said == ["svhn<br>a<br>0.9 [0.85, 0.97]", "svhn<br>b<br>0.8"]


def test_a_heat_map_is_white_at_zero_and_leaves_holes_blank() -> None:
    (trace,) = chart(Panel("", "", "", heat=Heat(["8", "32"], ["1"], [[-0.2, NAN]], 0.2)))["data"]
    assert trace["zmin"] == -trace["zmax"]
    assert dict(trace["colorscale"])[0.5] == "#FFFFFF"
    assert trace["z"] == [[-0.2, None]]
    assert trace["text"] == [["\N{MINUS SIGN}0.200", ""]]


def test_more_rows_and_more_marks_make_a_dot_plot_taller() -> None:
    def panel(rows: int, marks: int) -> Panel:
        return Panel("", "", "", [DOTS] * marks, y_ticks=[(float(i), "") for i in range(rows)])

    assert height(panel(12, 1)) > height(panel(4, 1))
    assert height(panel(12, 6)) > height(panel(12, 1))


def test_long_labels_of_a_dot_plot_are_folded_to_leave_room_on_a_phone() -> None:
    long = "bn · recalibrated:mixture · mixed 0.5"
    panel = Panel("", "AUROC (share; higher is better)", "", [DOTS], y_ticks=[(0.0, long), (1.0, "ln")])
    layout = chart(panel)["layout"]
    shown = [layout["xaxis"]["title"]["text"], *layout["yaxis"]["ticktext"]]
    assert [text.replace("<br>", " ") for text in shown] == [panel.x_label, long, "ln"]
    assert max(len(line) for text in shown for line in text.split("<br>")) <= 30
    plain = Panel("", "AUROC", "", [DOTS], y_ticks=[(0.0, "bn"), (1.0, "ln")])
    assert height(panel) >= height(plain) + 2 * 8 + 16


def test_a_picture_shows_the_panels_of_one_choice_and_names_a_series_once() -> None:
    panels = [Panel(f"{choice}", "", "", [DOTS, BAND], choice=choice) for choice in ("b", "a", "b", "")]
    picture = Picture("name", "title", "says", "how", panels, None, "table.csv")  # type: ignore[arg-type]
    assert picture.choices == ["b", "a"]
    assert picture.seen("a") == [panels[1], panels[3]]
    assert [series.name for series in picture.legend] == ["ID", "svhn"]


def test_the_library_is_a_script_that_can_be_embedded() -> None:
    script = plotly_script()
    assert "newPlot" in script
    assert "</script" not in script.lower()


def test_the_axis_of_a_share_ends_where_shares_do() -> None:
    def panel(low: float, high: float, **more: Any) -> Panel:
        dots = Series("dots", "#000000", [0.4, 0.6], [0.0, 1.0], [low, 0.5], [0.5, high], interval="x")
        return Panel("", "AUROC (share)", "", [dots], **{"share_axis": "x", **more})

    assert panel(0.1, 0.9).span("x") is None
    assert panel(-1.0, 2.0).span("x") == (-0.02, 1.02)
    assert panel(-1.0, 0.9).span("x") == pytest.approx((-0.02, 0.92))
    assert panel(0.1, 2.0).span("x") == pytest.approx((0.08, 1.02))
    assert panel(-1.0, 2.0, share_axis="").span("x") is None
    assert panel(-1.0, 2.0, y_range=(2.0, -0.5)).span("y") == (2.0, -0.5)
    assert panel(float("nan"), 2.0, x_range=(0.0, 3.0)).span("x") == (0.0, 1.02)
    assert chart(panel(-1.0, 2.0))["layout"]["xaxis"]["range"] == [-0.02, 1.02]
