"""Pictures as a page shows them: charts with their data, what they say to who does not see them, and their numbers.

`picture.html.j2` holds their layout, `page.js.j2` what draws them; the page of a study and that of a run share both.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import jinja2
import numpy as np
import pandas as pd

from bnood.report.charts import chart_json, height
from bnood.report.panels import Panel, Picture, Series
from bnood.report.study_tables import listed, plain

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
            f"{picture.name}-{number}", panel.title, panel.colour, _alt(panel, picture.held), panel.choice,
            height(panel), chart_json(panel),
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


def _alt(panel: Panel, held: str) -> str:
    """What a chart says to who does not see it: its quantity and axes, and where each series is least and largest.

    Args:
        panel: what is seen.
        held: what the table below the picture holds.
    """
    kind = "Chart" if panel.heat is None else "Heat map"
    return f"{kind}: {_head(panel)}. {_extremes(panel)}. The table below the figure holds {held}."


def _head(panel: Panel) -> str:
    """Sets the panel apart from all others of its picture: its choice, its title, its quantity and its axes."""
    names = [name for name in (panel.choice, panel.title) if name]
    if panel.heat is not None:
        return f"{', '.join(names)}, by {panel.x_label} and {panel.y_label}"
    quantity, places = panel.y_label, f"by {panel.x_label or listed([name for _, name in panel.x_ticks])}"
    if panel.y_ticks:
        quantity, places = panel.x_label, f"in {len(panel.y_ticks)} rows"
    named = ", ".join(name for name in names if not quantity.startswith(name))
    return f"{named}{': ' if named else ''}{quantity} {places}"


def _extremes(panel: Panel) -> str:
    """The least and the largest value of each series, each with the mark's own name."""
    parts = []
    if panel.heat is not None:
        cells = [
            (value, f"{panel.y_label} {row}, {panel.x_label} {column}")
            for row, line in zip(panel.heat.rows, panel.heat.values, strict=True)
            for column, value in zip(panel.heat.columns, line, strict=True)
        ]
        parts.append(_range("Changes", [value for value, _ in cells], [label for _, label in cells]))
    for series in panel.series:
        parts.append(_range(series.name, series.x if series.interval == "x" else series.y, series.labels))
    return "; ".join(part for part in parts if part) or "No values"


def _range(name: str, values: Sequence[float], labels: Sequence[str]) -> str:
    """ "svhn from 0.1 (stem) to 0.4 (fc)"; one value alone where there is one, nothing where there is none."""
    given = np.array(values, dtype=float)
    if not np.isfinite(given).any():
        return ""

    def said(place: int) -> str:
        label = f" ({labels[place]})" if len(labels) and labels[place] != name else ""
        return f"{plain(float(given[place]))}{label}"

    least, most = int(np.nanargmin(given)), int(np.nanargmax(given))
    return f"{name} {said(least)}" if least == most else f"{name} from {said(least)} to {said(most)}"


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
