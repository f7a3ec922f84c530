"""A study as one self-contained HTML page: the verdict first, then the figures that carry it, then every number.

The page needs no network and no other file: the charts' library is embedded once, style, script and data are inline,
and its own security policy forbids loading anything. `study_report.html.j2` holds its layout.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import jinja2
import numpy as np
import pandas as pd

from bnood.report.charts import chart_json, height, plotly_script
from bnood.report.panels import Panel, Picture, Series
from bnood.report.study_panels import study_pictures
from bnood.report.study_tables import KEYS, StudyTables, listed, networks_of, over_seeds, plain
from bnood.runs import write_beside

__all__ = ["StudyTables", "write_study_report"]

SIGNS = {"supported": "\N{CHECK MARK}", "refuted": "\N{MULTIPLICATION X}", "inconclusive": "?"}
GLYPHS = {"circle": "●", "square": "■", "square-open": "□", "diamond": "◆", "triangle": "▲", "cross": "✕", "": "━"}
QUESTION = (
    "Generalized Out-of-Distribution Detection: A Survey (Yang et al., 2024), summing up ReAct (Sun, Guo and Li, "
    "2021), says that “using mismatched BatchNorm statistics — that are estimated on ID data yet blindly applied to "
    "the OOD data in testing — can trigger abnormally high unit activations and model output accordingly”. This page "
    "says which parts of that sentence hold for the networks of this study, by how much, and where they fail."
)


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


def write_study_report(folder: Path, study: StudyTables) -> Path:
    """Write `report.html` into `folder` and give its path.

    Raises:
        UserError: the metric table lacks columns or rows, or the file can't be written.
    """
    pictures = [picture if isinstance(picture, str) else _shown(picture) for picture in study_pictures(study)]
    verdict = dict(study.verdict or {})
    page = _template().render(
        name=study.name,
        question=QUESTION,
        about=_about(study),
        answer=_answer(verdict),
        hypotheses=verdict.get("hypotheses", []),
        signs=SIGNS,
        estimates=_estimates(verdict),
        shown=[picture for picture in pictures if isinstance(picture, Shown)],
        missing=[picture for picture in pictures if isinstance(picture, str)],
        command=study.commands[0] if study.commands else "",
        commands=study.commands,
        metrics=_metric_grid(study),
        thresholds=_thresholds(verdict.get("thresholds", {})),
        networks=None if study.networks is None else _grid("networks", "The networks", study.networks),
        counts=_counts(study),
        made=_flat(dict(study.made) or verdict.get("made", {})),
        limits=[*_limits(study), *study.limits],
        plotly=plotly_script(),
    )
    path = Path(folder) / "report.html"
    write_beside(path, lambda beside: beside.write_text(page, encoding="utf-8"))
    return path


def _template() -> jinja2.Template:
    # Escaping has to be asked for: jinja2's own rule goes by the suffix and does not know ".j2".
    loader = jinja2.PackageLoader("bnood.report", ".")
    environment = jinja2.Environment(
        loader=loader, autoescape=True, undefined=jinja2.StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    return environment.get_template("study_report.html.j2")


def _about(study: StudyTables) -> list[tuple[str, str]]:
    table = study.metrics
    seeds = table.groupby("network")["seed"].nunique()
    ids = table.loc[table["role"] == "id", "dataset"].unique()
    return [
        ("Networks", listed([f"{name} ({seeds[name]} seeds)" for name in networks_of(table)])),
        ("In-distribution (ID)", ", ".join(map(str, ids)) or "none"),
        ("Out-of-distribution (OOD)", ", ".join(study.sets) or "none"),
    ]


def _answer(verdict: Mapping[str, object]) -> list[str]:
    """The verdicts in plain words, one sentence per kind of verdict."""
    given = verdict.get("answer")
    if isinstance(given, str):
        return [given]
    hypotheses: Sequence[Mapping[str, object]] = verdict.get("hypotheses", [])  # type: ignore[assignment]
    words = {
        "supported": "Supported in this study",
        "refuted": "Refuted in this study",
        "inconclusive": "Left open by this study",
    }
    found = []
    for kind, said in words.items():
        names = [
            f"{entry['hypothesis']} ({str(entry['statement']).rstrip('.')})"
            for entry in hypotheses
            if entry["verdict"] == kind
        ]
        if names:
            found.append(f"{said}: {'; '.join(names)}.")
    return found


def _estimates(verdict: Mapping[str, object]) -> Grid | None:
    """Every estimate behind the verdicts, with the controls."""
    rows = []
    for entry in verdict.get("hypotheses", []):  # type: ignore[attr-defined]
        kinds = {"headline": [entry.get("headline")], "estimate": entry.get("estimates", [])}
        kinds["control"] = entry.get("controls", [])
        for kind, estimates in kinds.items():
            for estimate in estimates:
                if estimate:
                    rows.append({"hypothesis": entry["hypothesis"], "kind": kind, **_estimate(estimate)})
    if not rows:
        return None
    return _grid("estimates", "The estimates behind the verdicts, each with its 95 % interval", pd.DataFrame(rows))


def _estimate(estimate: Mapping[str, object]) -> dict[str, object]:
    plain_keys = ("quantity", "dataset", "unit", "effect", "low", "high", "effect_size", "n_seeds", "threshold")
    found = {key: estimate.get(key) for key in (*plain_keys, "verdict")}
    seeds = estimate.get("per_seed")
    if isinstance(seeds, Mapping):
        found["per seed"] = ", ".join(f"{seed}: {plain(float(value))}" for seed, value in seeds.items())
    return found


def _shown(picture: Picture) -> Shown:
    panels = [
        Drawn(
            f"{picture.name}-{number}", panel.title, panel.colour, _alt(panel), panel.choice, height(panel),
            chart_json(panel),
        )
        for number, panel in enumerate(picture.panels)
    ]  # fmt: skip
    legend = [(*_mark(series, picture), series.name) for series in picture.legend]
    grid = _grid(f"numbers-{picture.name}", f"The numbers behind “{picture.title}”", picture.numbers)
    return Shown(picture, panels, legend, grid)


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


def _grid(identifier: str, caption: str, frame: pd.DataFrame) -> Grid:
    numeric = [bool(pd.api.types.is_numeric_dtype(frame[name])) for name in frame.columns]
    columns = [[_cell(str(name), value) for value in frame[name].tolist()] for name in frame.columns]
    rows = [list(row) for row in zip(*columns, strict=True)]
    return Grid(identifier, caption, [str(name).replace("_", " ") for name in frame.columns], numeric, rows)


def _cell(column: str, value: object) -> str:
    """Measured figures to four decimals, settings (positions, shares, strengths) as they are, missing ones empty."""
    if value is None or (isinstance(value, float) and np.isnan(value)):
        return ""
    if isinstance(value, float):
        return f"{value:g}" if column in ("position", "share", "strength", "threshold", "n") else f"{value:.4f}"
    return str(value)


def _metric_grid(study: StudyTables) -> Grid:
    """The metric table, averaged over seeds: what a reader looks up; the seeds' own rows are in table.csv."""
    pooled = over_seeds(study.metrics, KEYS)
    pooled["batch_size"] = pooled["batch_size"].replace(0, "").astype(str)
    pooled["statistics"] = (pooled["statistics"] + " " + pooled["composition"] + " " + pooled["batch_size"]).str.strip()
    dropped = pooled.drop(columns=["composition", "batch_size", "role"])
    return _grid("all", f"All metrics of {study.name}, mean over seeds with 95 % interval", dropped)


def _thresholds(given: object, prefix: str = "") -> list[tuple[str, str, str]]:
    """(name, value, reason) of each threshold, however deep it lies in the config."""
    if not isinstance(given, Mapping):
        return []
    found = []
    for key, value in given.items():
        name = f"{prefix}{key}"
        if isinstance(value, Mapping) and "value" in value:
            found.append((name, str(value["value"]), str(value.get("reason", ""))))
        elif isinstance(value, Mapping):
            found += _thresholds(value, f"{name}.")
        elif key != "reason":
            found.append((name, str(value), str(given.get("reason", ""))))
    return found


def _counts(study: StudyTables) -> list[tuple[str, str, str]]:
    """(set, role, number of images scored) of every set."""
    grouped = study.metrics.groupby(["dataset", "role"], sort=False)["n"].max()
    return [(str(name), str(role).upper(), f"{int(n):,}") for (name, role), n in grouped.items()]


def _flat(nested: object, prefix: str = "") -> list[tuple[str, str]]:
    if not isinstance(nested, Mapping):
        return []
    found: list[tuple[str, str]] = []
    for key, value in nested.items():
        found += _flat(value, f"{prefix}{key}.") if isinstance(value, Mapping) else [(f"{prefix}{key}", str(value))]
    return found


def _limits(study: StudyTables) -> list[str]:
    table = study.metrics
    seeds = table.groupby("network")["seed"].nunique()
    fewest = int(seeds.min())
    return [
        f"Each network was trained with {fewest} to {int(seeds.max())} seeds. "
        + ("With one seed there is no interval over seeds, so nothing separates a network from its seed."
           if fewest == 1 else "Intervals over so few seeds are wide, and rightly so."),
        f"Only these OOD sets were scored: {', '.join(study.sets)}. Others may answer otherwise.",
        "Intervals on this page combine the spread over seeds with the interval over images; the images' part is taken "
        "as shared by all seeds, which makes an interval rather too wide than too narrow. The verdicts rest on paired "
        "intervals of their own.",
        "Pure OOD batches under batch statistics have zero mean and unit variance in every channel by construction; "
        "mixed batches and held-out target statistics are shown beside them for that reason.",
    ]  # fmt: skip
