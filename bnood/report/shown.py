"""Pictures as a page shows them: charts with their data, what they say to who does not see them, and their numbers.

`picture.html.j2` holds their layout, `page.js.j2` what draws them; the page of a study and that of a run share both.
"""

from __future__ import annotations

from typing import NamedTuple

import jinja2
import numpy as np
import pandas as pd

from bnood.report.charts import chart_json, height
from bnood.report.panels import Panel, Picture, Series
from bnood.report.study_tables import plain

GLYPHS = {
    "circle": "●", "square": "■", "square-open": "□", "diamond": "◆", "triangle": "▲", "cross": "✖", "wedge": "▼",
    "pentagon": "⬟", "": "━",
}  # fmt: skip
SETTINGS = ("position", "share", "strength", "threshold", "level", "n")  # columns of figures as they were given


class Grid(NamedTuple):
    """A sortable table: names of the columns, which of them are numbers, and the cells as text."""

    identifier: str
    caption: str
    columns: list[str]
    numeric: list[bool]
    rows: list[list[str]]


class Drawn(NamedTuple):
    """A panel on the page; `data` is the chart as JSON."""

    identifier: str
    title: str
    colour: str
    alt: str
    choice: str
    height: int
    data: str


class Shown(NamedTuple):
    """A picture on the page."""

    picture: Picture
    panels: list[Drawn]
    legend: list[tuple[str, str, str]]
    grid: Grid


def template(name: str) -> jinja2.Template:
    """A page's template. Escaping has to be asked for: jinja2's own rule goes by the suffix and does not know ".j2"."""
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("bnood.report", "."), autoescape=True, undefined=jinja2.StrictUndefined,
        trim_blocks=True, lstrip_blocks=True,
    )  # fmt: skip
    return environment.get_template(name)


def show(picture: Picture) -> Shown:
    """The picture with its charts, legend and numbers, ready for the page."""
    panels = [
        Drawn(
            f"{picture.name}-{number}", panel.title, panel.colour, _alt(panel), panel.choice, height(panel),
            chart_json(panel),
        )
        for number, panel in enumerate(picture.panels)
    ]  # fmt: skip
    legend = [(*_mark(series, picture), series.name) for series in picture.legend]
    numbers = as_grid(f"numbers-{picture.name}", f"The numbers behind “{picture.title}”", picture.numbers)
    return Shown(picture, panels, legend, numbers)


def _mark(series: Series, picture: Picture) -> tuple[str, str]:
    """(colour, glyph) of a legend's entry: dark grey where a name has several colours, as scores have one per set."""
    hues = {other.colour for panel in picture.panels for other in panel.series if other.name == series.name}
    return (series.colour if len(hues) == 1 else "#333333"), GLYPHS[series.marker]


def _alt(panel: Panel) -> str:
    """What a chart says to who does not see it: its axes, and where each series begins, ends or lies."""
    head = f"{panel.title}: {panel.y_label or 'rows'} by {panel.x_label}."
    if panel.heat is not None:
        values = np.array(panel.heat.values, dtype=float)
        return f"Heat map of {head} Changes from {plain(np.nanmin(values))} to {plain(np.nanmax(values))}."
    parts = []
    for series in panel.series:
        values = np.array(series.x if series.interval == "x" else series.y, dtype=float)
        if np.isfinite(values).any():
            parts.append(f"{series.name} from {plain(np.nanmin(values))} to {plain(np.nanmax(values))}")
    return f"Chart of {head} {'; '.join(parts)}. The table below the figure holds the numbers."


def as_grid(identifier: str, caption: str, frame: pd.DataFrame) -> Grid:
    """A table of data as a table of the page."""
    numeric = [bool(pd.api.types.is_numeric_dtype(frame[name])) for name in frame.columns]
    columns = [[_cell(str(name), value) for value in frame[name].tolist()] for name in frame.columns]
    rows = [list(row) for row in zip(*columns, strict=True)]
    return Grid(identifier, caption, [str(name).replace("_", " ") for name in frame.columns], numeric, rows)


def _cell(column: str, value: object) -> str:
    """Measured figures to four decimals, settings (positions, shares, strengths) as they are, missing ones empty."""
    if value is None or (isinstance(value, float) and np.isnan(value)):
        return ""
    if isinstance(value, float):
        return (
            f"{value:g}" if column in ("position", "share", "strength", "threshold", "level", "n") else f"{value:.4f}"
        )
    return str(value)
