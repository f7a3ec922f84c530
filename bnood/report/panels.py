"""What a chart shows, apart from how it is drawn: the same panels become interactive charts and static pictures.

A picture is a few panels with one legend. `charts.py` draws a panel with plotly, for pages that answer to a pointer;
`study_figures.py` draws it with matplotlib, for PNG files. Whatever a reader sees is therefore computed once.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np
import pandas as pd

from bnood.report.figures import ID_COLOUR, OOD_COLOURS

_MARGIN = 0.02  # of a share's axis beyond 0 and 1
_APART = 0.75, 0.08  # of a step and of the axis at most, from the first to the last series that stand beside each other
BESIDE = "Marks at one place stand slightly beside each other, so that none hides another."
ALL = "the numbers"
MARKERS = ("circle", "square", "diamond", "triangle", "cross", "wedge", "pentagon")
_SHAPES = dict(zip((ID_COLOUR, *OOD_COLOURS), MARKERS, strict=True))


def marker_of(colour: str) -> str:
    """The marker that goes with the colour of a set, so that no reader has to tell sets apart by colour alone."""
    return _SHAPES[colour]


class Series(NamedTuple):
    """One line or one cloud of marks.

    Attributes:
        name: as in the legend; series of one name share a colour and a marker in all panels of a picture.
        colour: "#rrggbb".
        x, y: the marks' places.
        low, high: ends of the intervals along `interval`; NaN where there is none.
        interval: "x" or "y" for bars, "band" for a shaded band along y.
        marker: one of `MARKERS`, with "-open" for a hollow one, or "" for none.
        line: "solid", "dash" or "" for no line.
        labels: what each mark is called when it is pointed at.
        faint: the marks' faces let others be seen through them, for clouds in which marks lie on each other.
    """

    name: str
    colour: str
    x: Sequence[float]
    y: Sequence[float]
    low: Sequence[float] = ()
    high: Sequence[float] = ()
    interval: str = "y"
    marker: str = "circle"
    line: str = ""
    labels: Sequence[str] = ()
    faint: bool = False


class Heat(NamedTuple):
    """A heat map of changes: blue above zero, orange below, white at zero."""

    columns: Sequence[str]
    rows: Sequence[str]
    values: Sequence[Sequence[float]]
    limit: float


@dataclass(frozen=True)
class Panel:
    """One pair of axes.

    Attributes:
        title: names what sets this panel apart from its neighbours.
        x_ticks, y_ticks: (place, label) where an axis holds names instead of numbers.
        x_line, y_line: a reference line across the panel at this place of that axis.
        share_axis: the axis ("x" or "y") of a quantity between 0 and 1; intervals that reach beyond are cut there.
        floor: the least possible value along y; intervals that reach below are cut there.
        step: distance of neighbouring places on an x axis of few places; series then stand beside each other.
        choice: the panel is seen when this entry of the picture's selector is chosen; "" means always.
        colour: of the title, where the panel belongs to one set.
    """

    title: str
    x_label: str
    y_label: str
    series: Sequence[Series] = ()
    heat: Heat | None = None
    x_ticks: Sequence[tuple[float, str]] = ()
    y_ticks: Sequence[tuple[float, str]] = ()
    x_range: tuple[float, float] | None = None
    y_range: tuple[float, float] | None = None
    x_line: float | None = None
    y_line: float | None = None
    share_axis: str = ""
    floor: float | None = None
    step: float = 0.0
    choice: str = ""
    colour: str = "#222222"

    @property
    def drawn(self) -> list[Series]:
        """The series as they are drawn: intervals within what is possible, marks at one place beside each other.

        Student's intervals over few seeds and mean - std know no end of a scale, so that bars would reach where no
        value can lie. `series` keeps the whole intervals, which pointing at a mark and the tables tell.
        """
        places = [x for each in self.series for x in each.x] if self.step and len(self.series) > 1 else []
        if not places:
            return [self._cut(each) for each in self.series]
        width = min(_APART[0] * self.step, _APART[1] * (max(places) - min(places) or math.inf))
        moves = np.linspace(-width / 2, width / 2, len(self.series)).tolist()
        pairs = zip(moves, self.series, strict=True)
        return [self._cut(each._replace(x=[x + move for x in each.x])) for move, each in pairs]

    def _cut(self, series: Series) -> Series:
        axis = "x" if series.interval == "x" else "y"
        least, most = (0.0, 1.0) if axis == self.share_axis else (-math.inf, math.inf)
        if axis == "y" and self.floor is not None:
            least = max(least, self.floor)
        low, high = (np.clip(np.asarray(ends, float), least, most).tolist() for ends in (series.low, series.high))
        return series._replace(low=low, high=high)

    def span(self, axis: str) -> tuple[float, float] | None:
        """From where to where an axis ("x" or "y") goes; None where the marks decide.

        A share has no place below 0 or above 1, which Student's intervals over few seeds do not know.
        """
        asked = self.x_range if axis == "x" else self.y_range
        if axis != self.share_axis:
            return asked
        marks = [x for each in self.series for x in (*(each.x if axis == "x" else each.y), *each.low, *each.high)]
        ends = [x for x in marks if math.isfinite(x)]
        low, high = asked or (min(ends, default=0.0) - _MARGIN, max(ends, default=1.0) + _MARGIN)
        return (max(low, -_MARGIN), min(high, 1 + _MARGIN)) if low < -_MARGIN or high > 1 + _MARGIN else asked


@dataclass(frozen=True)
class Picture:
    """A figure: panels under one title, what they show in one sentence, and the numbers behind them.

    Attributes:
        name: file name of the static picture and the element's id on a page.
        says: what is seen, with figures computed from the data.
        how: how to read it (units, what an interval is).
        panels: in reading order.
        numbers: the table of what is drawn, for readers who do not see it.
        source: the tables that it was drawn from.
        held: what `numbers` holds, and which file holds the rest if that is not all that is drawn.
        choice_label: what the selector chooses; "" if every panel is always seen.
        static: the choices that get a static picture; empty: all.
        across: panels beside each other in the static picture.
    """

    name: str
    title: str
    says: str
    how: str
    panels: Sequence[Panel]
    numbers: pd.DataFrame
    source: str
    choice_label: str = ""
    static: Sequence[str] = field(default=())
    across: int = 2
    held: str = ALL

    @property
    def choices(self) -> list[str]:
        """The entries of the selector, in the order of the panels."""
        return list(dict.fromkeys(panel.choice for panel in self.panels if panel.choice))

    def seen(self, choice: str) -> list[Panel]:
        """The panels that are seen under a choice."""
        return [panel for panel in self.panels if panel.choice in ("", choice)]

    @property
    def legend(self) -> list[Series]:
        """One series for each name, in the order of first appearance but ID (grey) first; heat maps have none."""
        found: dict[str, Series] = {}
        for panel in self.panels:
            for series in panel.series:
                found.setdefault(series.name, series)
        return sorted(found.values(), key=lambda series: series.colour != ID_COLOUR)
