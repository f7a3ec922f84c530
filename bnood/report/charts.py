"""A picture is a row of panels as wide as a phone: each an SVG in the page, all together one PNG on disk."""

import io
import math
import re
import textwrap
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.colors import LinearSegmentedColormap
from matplotlib.figure import Figure
from matplotlib.patches import Patch

INK, GRID = "#1b1b1b", "#d9d9d9"  # in the page replaced by the colours of its light or dark mode
ID_COLOUR = "#7f7f7f"
COLOURS = ("#D55E00", "#0072B2", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#8C6D31", "#9467BD")
STYLE: dict[Any, Any] = {
    "font.size": 9, "axes.titlesize": 10, "axes.titleweight": "bold", "axes.titlelocation": "left",
    "axes.spines.top": False, "axes.spines.right": False, "axes.grid": True, "axes.axisbelow": True,
    "axes.edgecolor": INK, "axes.labelcolor": INK, "axes.titlecolor": INK, "text.color": INK, "xtick.color": INK,
    "ytick.color": INK, "grid.color": GRID, "grid.linewidth": 0.7, "figure.facecolor": "none",
    "axes.facecolor": "none", "svg.fonttype": "none", "svg.hashsalt": "bnood",
}  # fmt: skip


@dataclass(frozen=True)
class Panel:
    """One pair of axes, which `draw` gets empty; width and height are in inches."""

    title: str
    draw: Callable[[Axes], None]
    width: float = 3.4
    height: float = 2.5


@dataclass(frozen=True)
class Picture:
    """Panels that belong together."""

    name: str  # of the PNG file, without suffix; the page's template has the caption under this name
    alt: str  # what is seen, for those who cannot see it
    panels: Sequence[Panel]
    columns: int = 2  # panels per row of the PNG
    legend: Sequence[tuple[str, str]] = ()  # label and colour of what the panels share

    def svgs(self) -> list[str]:
        """Each panel as an `<svg>` element that takes its ink from the page."""
        return [_svg(panel, f"{self.name}-{i}-") for i, panel in enumerate(self.panels)]

    def write_png(self, folder: Path) -> Path:
        """Draw all panels into `<folder>/<name>.png`, on white."""
        with matplotlib.rc_context(STYLE | {"figure.facecolor": "white"}):
            columns = min(self.columns, len(self.panels))
            rows = math.ceil(len(self.panels) / columns)
            width, height = max(p.width for p in self.panels), max(p.height for p in self.panels)
            figure = Figure(figsize=(width * columns, height * rows + 0.3), layout="constrained")
            grid = list(figure.subplots(rows, columns, squeeze=False).flat)
            for axes, panel in zip(grid, self.panels, strict=False):
                axes.set_title("\n".join(wrapped([panel.title], 24)))
                panel.draw(axes)
            for axes in grid[len(self.panels) :]:
                axes.set_axis_off()
            if self.legend:
                handles = [Patch(color=colour, label=label) for label, colour in self.legend]
                figure.legend(handles=handles, loc="outside lower center", ncols=4, frameon=False)
            folder.mkdir(parents=True, exist_ok=True)
            figure.savefig(folder / f"{self.name}.png", dpi=150)
        return folder / f"{self.name}.png"


def _svg(panel: Panel, prefix: str) -> str:
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(panel.width, panel.height), layout="constrained")
        panel.draw(figure.subplots())
        buffer = io.StringIO()
        figure.savefig(buffer, format="svg", metadata={"Date": None})
    text = buffer.getvalue()
    text = re.sub(r"<metadata>.*?</metadata>", "", text[text.index("<svg") :], flags=re.DOTALL)
    text = re.sub(r'( id="|href="#|url\(#)', rf"\g<1>{prefix}", text)  # ids are unique in the whole page
    size = f'width="{panel.width * 96:.0f}" aria-hidden="true"'
    text = re.sub(r'width="[\d.]+pt" height="[\d.]+pt"', size, text, count=1)
    return text.replace(INK, "currentColor").replace(GRID, "var(--line)")


def wrapped(labels: Sequence[str], letters: int) -> list[str]:
    """Labels in lines of so many letters."""
    return ["\n".join(textwrap.wrap(label, letters, break_long_words=False)) or label for label in labels]


def dots(axes: Axes, rows: Sequence[str], series: Sequence[tuple[str, pd.DataFrame]]) -> None:
    """One row per name, from the top; of each colour marks with intervals (value, low, high, row by row)."""
    reach = min(0.28, 0.09 * (len(series) - 1))
    for shift, (colour, ends) in zip(np.linspace(-reach, reach, len(series)), series, strict=True):
        places = np.arange(len(rows)) + shift
        axes.hlines(places, ends["low"], ends["high"], color=colour, linewidth=1.5)
        axes.plot(ends["value"], places, "o", color=colour, markersize=4.5, alpha=0.8)
    axes.set_yticks(range(len(rows)), wrapped(rows, 18))
    axes.set_ylim(len(rows) - 0.5, -0.5)
    axes.locator_params(axis="x", nbins=6)
    axes.grid(axis="y", visible=False)


def heat(axes: Axes, rows: Sequence[str], columns: Sequence[str], shades: np.ndarray, texts: np.ndarray) -> None:
    """Cells with text; shades from -15 (vermilion) to 15 (blue), white at zero and grey where there is none."""
    ramp = LinearSegmentedColormap.from_list("change", ["#E9854A", "#F7F7F7", "#6FB3E0"])
    colours, cells = ramp.with_extremes(bad="#E4E4E4"), np.ma.masked_invalid(shades)
    axes.pcolormesh(cells, cmap=colours, vmin=-15, vmax=15, edgecolors="#FFFFFF", linewidth=1.5)
    for (i, j), text in np.ndenumerate(texts):
        axes.text(j + 0.5, i + 0.5, text, ha="center", va="center", color="#111111", fontsize=8.5)
    axes.set_xticks(np.arange(len(columns)) + 0.5, wrapped(columns, 12))
    axes.set_yticks(np.arange(len(rows)) + 0.5, wrapped(rows, 20))
    axes.xaxis.set_ticks_position("top")
    axes.tick_params(length=0)
    axes.set_ylim(len(rows), 0)
    axes.grid(visible=False)
    axes.spines[:].set_visible(False)
