"""Panels as interactive charts: figures of plotly.js that need no network and fit a phone.

They are written as plotly.js reads them, plain mappings: a page has some hundred panels, and plotly's Python classes
would take longer to build than everything else in a report. The tests hold every one of them against those classes.
"""

from __future__ import annotations

import json
import math
import textwrap
from collections.abc import Sequence
from typing import Any

from plotly.offline import get_plotlyjs

from bnood.report.panels import Heat, Panel, Series
from bnood.report.study_tables import signed

SYMBOLS = {
    "circle": "circle",
    "square": "square",
    "diamond": "diamond",
    "triangle": "triangle-up",
    "cross": "x",
    "wedge": "triangle-down",
    "pentagon": "pentagon",
}
# Okabe and Ito's vermilion and blue, lightened so that dark figures can be read on them.
CHANGE_COLOURS = [(0.0, "#EE9B66"), (0.5, "#FFFFFF"), (1.0, "#74B5DF")]
GRID = "#E3E3E3"
ROW_HEIGHT = 27  # pixels for a row of a dot plot
LINE_HEIGHT = 16  # and for a further line of a label
LINE = 24  # letters in a line of a dot plot's labels: on a phone they must leave room for the marks
FACE = 0.3  # opacity of a faint mark's face; its edge stays as it is, for the contrast


def plotly_script() -> str:
    """The library itself, as one script of about 5 MB to be embedded once in a page."""
    script: str = get_plotlyjs()
    return script


def chart(panel: Panel) -> dict[str, Any]:
    """A panel as `data` and `layout`, without a legend, which the page shows once for all panels of a picture."""
    pairs = zip(panel.drawn, panel.series, strict=True)
    data = [trace for drawn, series in pairs for trace in _traces(drawn, _hover(series), bool(panel.step))]
    if panel.heat is not None:
        data.append(_heat(panel.heat, panel.x_label, panel.y_label))
    return {"data": data, "layout": _layout(panel)}


def chart_json(panel: Panel) -> str:
    """The figure as JSON that may stand inside a `<script>`: no name in it can end that element."""
    text = json.dumps(chart(panel), separators=(",", ":"), allow_nan=False, ensure_ascii=False)
    return text.replace("<", "\\u003c").replace(">", "\\u003e")


def height(panel: Panel) -> int:
    """In pixels: a dot plot grows with its rows, a heat map with its cells, everything else is of one height."""
    if panel.heat is not None:
        return 110 + 26 * len(panel.heat.rows)
    if panel.y_ticks:
        further = max(len(_lines(name)) for _, name in panel.y_ticks) - 1
        row = max(ROW_HEIGHT + 8 * further, 10 * len(panel.series))
        return 75 + row * len(panel.y_ticks) + LINE_HEIGHT * (len(_lines(panel.x_label)) - 1)
    return 260


def _lines(text: str) -> list[str]:
    return textwrap.wrap(text, LINE, break_long_words=False, break_on_hyphens=False) or [""]


def _layout(panel: Panel) -> dict[str, Any]:
    def axis(title: str, ticks: Sequence[tuple[float, str]], ends: tuple[float, float] | None) -> dict[str, object]:
        found: dict[str, object] = {
            "title": {"text": folded(title), "standoff": 6},
            "automargin": True,
            "gridcolor": GRID,
            "linecolor": "#999999",
            "showline": True,
            "zeroline": False,
            "ticks": "outside",
            "tickcolor": "#999999",
            "ticklen": 3,
        }
        if ticks:
            found |= {"tickvals": [place for place, _ in ticks], "ticktext": [folded(name) for _, name in ticks]}
        if ends is not None:
            found["range"] = list(ends)
        return found

    def folded(text: str) -> str:
        return "<br>".join(map(_escaped, _lines(text))) if panel.y_ticks else _escaped(text)

    heat = panel.heat
    x_ticks = [(float(i), name) for i, name in enumerate(heat.columns)] if heat else panel.x_ticks
    y_ticks = [(float(i), name) for i, name in enumerate(heat.rows)] if heat else panel.y_ticks
    y_range = (len(heat.rows) - 0.5, -0.5) if heat else panel.span("y")
    return {
        "font": {"family": "system-ui, sans-serif", "size": 12, "color": "#222222"},
        "paper_bgcolor": "white",
        "plot_bgcolor": "white",
        "margin": {"l": 8, "r": 10, "t": 6, "b": 8},
        "height": height(panel),
        "showlegend": False,
        "hovermode": "closest",
        "xaxis": axis(panel.x_label, x_ticks, panel.span("x")),
        "yaxis": axis(panel.y_label, y_ticks, y_range),
        "shapes": [
            *([_reference("x", panel.x_line)] if panel.x_line is not None else []),
            *([_reference("y", panel.y_line)] if panel.y_line is not None else []),
        ],
    }


def _reference(along: str, place: float) -> dict[str, Any]:
    """A dotted line across the panel at a place of one axis."""
    other = "y" if along == "x" else "x"
    ends = {f"{along}0": place, f"{along}1": place, f"{other}0": 0, f"{other}1": 1, f"{other}ref": f"{other} domain"}
    return {"type": "line", "layer": "below", "line": {"color": "#777777", "width": 1, "dash": "dot"}, **ends}


def _escaped(text: str) -> str:
    """Plotly reads a few HTML tags in its texts; names of sets and runs are to stand as they are."""
    return text.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")


def _rounded(values: Sequence[float]) -> list[float | None]:
    """Five significant digits, which no eye tells from sixteen; JSON knows no NaN."""
    return [float(f"{value:.5g}") if math.isfinite(value) else None for value in values]


def _traces(series: Series, said: Sequence[str], small: bool) -> list[dict[str, Any]]:
    """A series as it is drawn; `said` is what its marks say when they are pointed at, `small` for crowds of marks."""
    x, y = _rounded(series.x), _rounded(series.y)
    name = _escaped(series.name)
    trace: dict[str, Any] = {"type": "scatter", "y": y, "name": name}
    trace["mode"] = "+".join(part for part, on in (("lines", series.line), ("markers", series.marker)) if on)
    if series.line:
        trace["line"] = {"color": series.colour, "width": 1.8, "dash": series.line}
    if series.interval == "band":
        called = {"text": [_escaped(label) for label in series.labels]} if series.labels else {}
        place = "%{text}" if series.labels else "place %{x}"
        return [*_band(series), trace | called | {"hovertemplate": f"{name}<br>{place}: %{{y:.3g}}<extra></extra>"}]
    trace |= {"x": x, "hovertext": said, "hoverinfo": "text"}
    if series.marker:
        symbol, _, hollow = series.marker.partition("-")
        symbol = SYMBOLS[symbol] + (f"-{hollow}" if hollow else "")
        face = _see_through(series.colour, FACE) if series.faint else series.colour
        trace["marker"] = {"color": face, "size": 6 if small else 8, "symbol": symbol}
        trace["marker"]["line"] = {"width": 2 if hollow else 1.2 if series.faint else 0, "color": series.colour}
    if not series.low:
        return [trace]
    middle = series.x if series.interval == "x" else series.y
    bars = {
        "type": "data", "symmetric": False, "color": series.colour, "thickness": 1.2 if small else 1.6, "width": 3,
        "array": _rounded([end - value for end, value in zip(series.high, middle, strict=True)]),
        "arrayminus": _rounded([value - end for end, value in zip(series.low, middle, strict=True)]),
    }  # fmt: skip
    return [trace | {f"error_{series.interval}": bars}]


def _band(series: Series) -> list[dict[str, Any]]:
    """Two lines without width, the space between them filled; x is left out, as a band's marks are 0, 1, 2 ..."""
    fixed = {"type": "scatter", "mode": "lines", "line": {"width": 0}, "hoverinfo": "skip"}
    upper = {"y": _rounded(series.high), "fill": "tonexty", "fillcolor": _see_through(series.colour, 0.18)}
    return [fixed | {"y": _rounded(series.low)}, fixed | upper]


def _see_through(colour: str, opacity: float) -> str:
    red, green, blue = (int(colour[i : i + 2], 16) for i in (1, 3, 5))
    return f"rgba({red},{green},{blue},{opacity})"


def _hover(series: Series) -> list[str]:
    """What a mark says when it is pointed at: its name, its value and its whole interval."""
    if series.interval == "band":
        return []
    values = series.x if series.interval == "x" else series.y
    found = []
    for i, value in enumerate(values):
        label = f"{_escaped(series.labels[i])}<br>" if series.labels else ""
        ends = ""
        if series.low and math.isfinite(series.low[i]):
            ends = f" [{series.low[i]:.4g}, {series.high[i]:.4g}]"
        found.append(f"{_escaped(series.name)}<br>{label}{value:.4g}{ends}")
    return found


def _heat(heat: Heat, x_label: str, y_label: str) -> dict[str, Any]:
    digits = 3 if heat.limit < 1 else 2
    cells = [[signed(value, digits) if math.isfinite(value) else "" for value in row] for row in heat.values]
    said = [
        [
            _escaped(f"{y_label} {row}, {x_label} {column}: {cell}")
            for column, cell in zip(heat.columns, line, strict=True)
        ]
        for row, line in zip(heat.rows, cells, strict=True)
    ]
    return {
        "type": "heatmap", "x": list(range(len(heat.columns))), "y": list(range(len(heat.rows))),
        "z": [_rounded(row) for row in heat.values], "zmin": -heat.limit, "zmax": heat.limit,
        "colorscale": CHANGE_COLOURS, "showscale": False, "xgap": 1, "ygap": 1, "text": cells,
        "texttemplate": "%{text}", "textfont": {"size": 11, "color": "#111111"}, "hovertext": said, "hoverinfo": "text",
    }  # fmt: skip
