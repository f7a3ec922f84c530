"""Panels as static pictures: matplotlib PNGs for `results/`, the README and the report of a single run.

They show what `charts.py` shows of the same panels, with the same colours and markers.
"""

from __future__ import annotations

import math
import textwrap
from functools import partial
from pathlib import Path

import matplotlib
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.colors import LinearSegmentedColormap, Normalize, to_rgba
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from bnood.errors import UserError
from bnood.report.charts import CHANGE_COLOURS, FACE
from bnood.report.figures import DPI, STYLE
from bnood.report.intervention_panels import lens_pictures
from bnood.report.panels import Heat, Panel, Picture, Series
from bnood.report.price_panels import price_picture
from bnood.report.study_panels import study_pictures
from bnood.report.study_tables import StudyTables, signed
from bnood.training.run_folder import write_beside

SYMBOLS = {
    "circle": "o",
    "square": "s",
    "diamond": "D",
    "triangle": "^",
    "cross": "X",
    "wedge": "v",
    "pentagon": "p",
    "": "",
}
PANEL_WIDTH = 5.2  # inches
ROW_HEIGHT = 0.24
CAPTIONS_FILE = "captions.md"


def write_study_figures(folder: Path, study: StudyTables) -> list[Path]:
    """Draw every picture of a study into `folder` as PNGs, the main result first; give their paths.

    Beside them `captions.md` says what each shows and which command made it.

    Raises:
        UserError: the metric table lacks columns or rows, or a file can't be written.
    """
    pictures = [picture for picture in study_pictures(study) if isinstance(picture, Picture)]
    paths, captions = [], [f"# Figures of {study.name}"]
    command = f" by `{study.commands[0]}`" if study.commands else ""
    for picture in pictures:
        drawn = write_picture(Path(folder), picture)
        paths += drawn
        files = ", ".join(f"[{path.name}]({path.name})" for path in drawn)
        captions.append(f"## {picture.title}\n\n{files}\n\n{picture.says}\n\n{picture.how}")
        captions.append(f"Drawn from `{picture.source}`{command}.")
    text = "\n\n".join(captions) + "\n"
    write_beside(Path(folder) / CAPTIONS_FILE, lambda beside: beside.write_text(text, encoding="utf-8"))
    return paths


def run_pictures(folder: Path) -> list[Picture]:
    """The pictures of one run's activation lens, interventions and shifted sets, as far as their tables are there.

    Args:
        folder: the run's `ood/` folder.

    Raises:
        UserError: a table is there but can't be read.
    """
    tables = {name: _read(Path(folder) / name) for name in _RUN_TABLES}
    layers, distances, interventions, shift = (tables[name] for name in _RUN_TABLES)
    found = [*lens_pictures(layers, distances, interventions), price_picture(shift)]
    return [picture for picture in found if isinstance(picture, Picture)]


_RUN_TABLES = ("layers.parquet", "layer_distances.csv", "interventions.csv", "shift.csv")


def _read(path: Path) -> pd.DataFrame | None:
    if not path.is_file():
        return None
    try:
        return pd.read_parquet(path) if path.suffix == ".parquet" else pd.read_csv(path)
    except (ValueError, OSError) as error:
        reason = " ".join(str(error).split())
        raise UserError(
            f"{path} is not readable as a table ({reason}): remove it, or evaluate the run again"
        ) from error


def write_picture(folder: Path, picture: Picture) -> list[Path]:
    """One PNG of a picture, or one for each of its choices, named after them; give their paths."""
    chosen = list(picture.static) or picture.choices or [""]
    paths = []
    for choice in chosen:
        suffix = f"_{_slug(choice)}" if choice and len(picture.static) != 1 else ""
        path = folder / f"{picture.name}{suffix}.png"
        write_beside(path, partial(draw(picture, choice).savefig, format="png", dpi=DPI))
        paths.append(path)
    return paths


def _slug(text: str) -> str:
    letters = "".join(letter if letter.isalnum() else " " for letter in text.lower().replace("change in", ""))
    return "_".join(letters.split())


@matplotlib.rc_context(STYLE)
def draw(picture: Picture, choice: str = "") -> Figure:
    """A picture as a matplotlib figure, under one choice of its selector."""
    panels = picture.seen(choice)
    across = min(picture.across, len(panels))
    down = math.ceil(len(panels) / across)
    tallest = max(_height(panel) for panel in panels)
    figure = Figure(
        figsize=(PANEL_WIDTH * across * (0.8 if across > 2 else 1), 1.3 + down * tallest), layout="constrained"
    )
    grid = figure.subplots(down, across, squeeze=False)
    for axes, panel in zip(grid.flat, panels, strict=False):
        _panel(axes, panel)
    for axes in list(grid.flat)[len(panels) :]:
        axes.remove()
    for row, line in enumerate(grid):  # row labels once, where neighbours share them
        for column, axes in enumerate(line[1:], start=1):
            place = row * across + column
            if place < len(panels) and panels[place].y_ticks and panels[place].y_ticks == panels[place - 1].y_ticks:
                axes.tick_params(labelleft=False)
    title = f"{picture.title}: {choice}" if choice else picture.title
    figure.suptitle(textwrap.fill(title, int(14 * figure.get_figwidth())))
    handles = [_handle(series, picture) for series in picture.legend]
    if handles:
        figure.legend(handles=handles, loc="outside lower center", ncols=min(len(handles), 3 * across))
    return figure


def _height(panel: Panel) -> float:
    if panel.heat is not None:
        return 0.9 + 0.3 * len(panel.heat.rows)
    if panel.y_ticks:
        return 0.9 + max(ROW_HEIGHT, 0.085 * len(panel.series)) * len(panel.y_ticks)
    return 2.5


def _panel(axes: Axes, panel: Panel) -> None:
    axes.set_title(panel.title, loc="left", fontweight="bold", color=panel.colour)
    axes.set_xlabel(panel.x_label)
    axes.set_ylabel(panel.y_label)
    axes.grid(color="#E3E3E3", linewidth=0.7)
    for series in panel.drawn:
        _series(axes, series)
    if panel.heat is not None:
        _heat(axes, panel.heat)
    if panel.x_line is not None:
        axes.axvline(panel.x_line, color="#777777", linewidth=1, linestyle=":", zorder=0)
    if panel.y_line is not None:
        axes.axhline(panel.y_line, color="#777777", linewidth=1, linestyle=":", zorder=0)
    if panel.x_ticks:
        axes.set_xticks([place for place, _ in panel.x_ticks], [name for _, name in panel.x_ticks])
    if panel.y_ticks:
        axes.set_yticks([place for place, _ in panel.y_ticks], [name for _, name in panel.y_ticks])
    for axis, limit in (("x", axes.set_xlim), ("y", axes.set_ylim)):
        if span := panel.span(axis):
            limit(*span)


def _series(axes: Axes, series: Series) -> None:
    x, y = list(series.x), list(series.y)
    symbol, _, hollow = series.marker.partition("-")
    line = {"solid": "-", "dash": "--", "": ""}[series.line]
    face = "white" if hollow else to_rgba(series.colour, FACE if series.faint else 1.0)
    if series.low and series.interval == "band":
        axes.fill_between(x, series.low, series.high, color=series.colour, alpha=0.18, linewidth=0)
    elif series.low and series.interval == "x":
        axes.hlines(y, series.low, series.high, color=series.colour, linewidth=1.6)
    elif series.low:
        axes.vlines(x, series.low, series.high, color=series.colour, linewidth=1.6)
    marker = {"marker": SYMBOLS[symbol], "markerfacecolor": face, "markersize": 5, "markeredgecolor": series.colour}
    axes.plot(x, y, linestyle=line, color=series.colour, linewidth=1.3, **marker)  # type: ignore[arg-type]
    if series.interval == "band":
        axes.margins(x=0.01)


def _heat(axes: Axes, heat: Heat) -> None:
    colours = LinearSegmentedColormap.from_list("change", CHANGE_COLOURS)
    axes.imshow(heat.values, cmap=colours, norm=Normalize(-heat.limit, heat.limit), aspect="auto")
    axes.set_xticks(range(len(heat.columns)), heat.columns)
    axes.set_yticks(range(len(heat.rows)), heat.rows)
    axes.grid(False)
    for row, line in enumerate(heat.values):
        for column, value in enumerate(line):
            if math.isfinite(value):
                text = signed(value, 3 if heat.limit < 1 else 2)
                axes.text(column, row, text, ha="center", va="center", fontsize=8, color="#111111")


def _handle(series: Series, picture: Picture) -> Line2D:
    hues = {other.colour for panel in picture.panels for other in panel.series if other.name == series.name}
    colour = series.colour if len(hues) == 1 else "#333333"
    symbol, _, hollow = series.marker.partition("-")
    face = "white" if hollow else colour
    width = 1.6 if series.line or not symbol else 0
    return Line2D(
        [], [], color=colour, marker=SYMBOLS[symbol], markerfacecolor=face, linewidth=width, label=series.name
    )
