"""The normalisation lab as one self-contained HTML page: the notes' statements, what was measured, and the pictures.

As the report of an evaluation (report.py) the page needs no network and no other file: images are embedded and its own
security policy forbids loading anything. `report.html.j2` holds its layout.
"""

from __future__ import annotations

import base64
import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import jinja2

from bnood.errors import UserError
from bnood.lab.figures import lab_figure_names
from bnood.lab.results import ACTIVATIONS, ARCHITECTURES, LabTables, architectures, checked, in_order
from bnood.lab.sentences import STATEMENTS, caption, listed
from bnood.training.run_folder import write_beside

CHECK = ("check", "statement", "verdict", "sentence", "estimates")
VERDICTS = ("supported", "refuted", "inconclusive")
# Kind of picture -> (title, what it looks like for who cannot see it; the numbers are in the files named).
PICTURES = {
    "gradient_norm": (
        "Gradient norm by layer",
        "Heat maps, one per activation and norm: layers from the input upwards over epochs, coloured by the logarithm "
        "of the gradient norm. The file lab.parquet holds the numbers.",
    ),
    "preactivations": (
        "The last layer's pre-activations",
        "Ridge plots, without norm on the left, then with BatchNorm in training and in evaluation mode: one density "
        "per epoch, the first at the top. The file histograms.parquet holds the numbers.",
    ),
    "accuracy": (
        "Accuracy",
        "Curves of validation and training accuracy over epochs, one panel per activation, one line per norm. The file "
        "accuracy.csv holds the numbers.",
    ),
    "units": (
        "Dead, always-on and saturated units",
        "Share of such units by layer at the end of training, one line per norm. The file lab.parquet holds the "
        "numbers.",
    ),
}


class Line(NamedTuple):
    """One estimate of a check, as a row of the page's table."""

    letter: str
    network: str
    quantity: str
    effect: str
    interval: str
    threshold: str
    seeds: str
    verdict: str


class Check(NamedTuple):
    """A check as printed."""

    letter: str
    statement: str
    reading: str
    verdict: str
    sentence: str
    lines: list[Line]

    @property
    def parts(self) -> str:
        """ "3 of its 8 parts supported, 1 refuted, 4 open"; "" where all of them say the same."""
        verdicts = [line.verdict for line in self.lines if line.verdict in VERDICTS]
        if len(set(verdicts)) < 2:
            return ""
        words = {"supported": "supported", "refuted": "refuted", "inconclusive": "open"}
        counts = [f"{verdicts.count(name)} {word}" for name, word in words.items() if name in verdicts]
        return f"of {len(verdicts)} parts, {listed(counts)}"


class Paragraph(NamedTuple):
    """One statement of the notes on the page."""

    anchor: str
    title: str
    claimed: str
    measured: list[str]
    checks: list[Check]


class Picture(NamedTuple):
    """A figure of the page; `source` is a data URI."""

    title: str
    caption: str
    alt: str
    source: str


def write_lab_report(folder: Path, lab: LabTables) -> Path:
    """Write ``lab_report.html`` into the lab's `folder`, where its ``figures/`` lie, and give its path.

    Raises:
        UserError: a table is empty or lacks columns, a check lacks its verdict, or a figure is missing.
    """
    checked(lab)
    checks = read_checks(lab)
    page = _template().render(
        name=lab.name,
        about=_about(lab),
        paragraphs=_paragraphs(lab, checks),
        checks=checks,
        pictures=[_picture(Path(folder) / "figures" / f"{name}.png", lab) for name in lab_figure_names(lab)],
        commands=lab.commands,
        record=json.dumps(lab.record, indent=2, ensure_ascii=False, default=str),
    )
    path = Path(folder) / "lab_report.html"
    write_beside(path, lambda beside: beside.write_text(page, encoding="utf-8"))
    return path


def read_checks(lab: LabTables) -> list[Check]:
    """The checks of a lab, in order of their letters; each estimate that decides, then those that are only reported.

    Raises:
        UserError: there is no list of checks, or one lacks a part, or its verdict is unknown.
    """
    rows, where = lab.checks.get("checks"), f"checks.json of lab '{lab.name}'"
    if not isinstance(rows, list):
        raise UserError(f"{where} has no list 'checks'; run scripts/lab.py")
    for row in rows:
        missing = [name for name in CHECK if name not in row]
        if missing:
            raise UserError(f"a check in {where} lacks {', '.join(missing)}; run scripts/lab.py")
        if row["verdict"] not in VERDICTS:
            known = ", ".join(VERDICTS)
            raise UserError(f"check '{row['check']}' in {where} is '{row['verdict']}'; expected one of {known}")
    return sorted(
        Check(
            row["check"],
            row["statement"],
            str(row.get("reading", "")),
            row["verdict"],
            row["sentence"],
            [_line(row["check"], each) for each in [*row["estimates"], *row.get("controls", [])]],
        )
        for row in rows
    )


def _line(letter: str, estimate: Mapping[str, Any]) -> Line:
    low, high = estimate.get("low"), estimate.get("high")
    network = str(estimate.get("dataset", ""))
    return Line(
        letter,
        ARCHITECTURES.get(network, network),
        f"{estimate.get('quantity', '')} ({estimate.get('unit', '')})",
        _figure(estimate.get("effect")) or "not estimated",
        f"[{_figure(low)}, {_figure(high)}]" if low is not None and high is not None else "",
        _figure(estimate.get("threshold")),
        str(estimate.get("n_seeds", "")),
        str(estimate.get("verdict") or "only reported"),
    )


def _figure(value: float | None) -> str:
    """A number with three decimals, "" for a missing one."""
    return "" if value is None or math.isnan(value) else f"{round(value, 3) + 0.0:.3f}"


def _paragraphs(lab: LabTables, checks: list[Check]) -> list[Paragraph]:
    return [
        Paragraph(
            f"statement-{number}",
            statement.title,
            statement.claimed,
            statement.measured(lab),
            [check for check in checks if check.letter == statement.check],
        )
        for number, statement in enumerate(STATEMENTS, start=1)
    ]


def _about(lab: LabTables) -> list[tuple[str, str]]:
    """The lab in a few words: networks, seeds, time."""
    frame, record = lab.measurements, lab.record
    found = [
        ("Networks", ", ".join(ARCHITECTURES.get(name, name) for name in architectures(lab))),
        ("Activations", ", ".join(in_order(frame["activation"], ACTIVATIONS))),
        ("Seeds", ", ".join(str(seed) for seed in sorted(frame["seed"].unique()))),
        ("Hidden layers", listed([str(layers) for layers in sorted(frame["layers"].unique())])),
        ("Learning rates", ", ".join(f"{rate:g}" for rate in sorted(frame["learning_rate"].unique()))),
    ]
    for key, title, text in (
        ("machine", "Machine", "{}"),
        ("seconds", "Time", "{:,.0f} s"),
        ("recording_share", "Time spent on recording", "{:.1%} of the training time"),
        ("commit", "Commit", "{}"),
    ):
        value = record.get(key)
        if isinstance(value, (int, float) if text != "{}" else str):
            found.append((title, text.format(value)))
    return found


def _picture(path: Path, lab: LabTables) -> Picture:
    if not path.is_file():
        raise UserError(f"{path}: no such figure; draw the lab's figures before its report")
    kind = next(kind for kind in PICTURES if path.stem.startswith(f"{kind}_"))
    architecture = path.stem.removeprefix(f"{kind}_")
    title, alt = PICTURES[kind]
    source = "data:image/png;base64," + base64.b64encode(path.read_bytes()).decode()
    name = ARCHITECTURES.get(architecture, architecture)
    return Picture(f"{title}: {name}", caption(lab, kind, architecture), f"{name}. {alt}", source)


def _template() -> jinja2.Template:
    # Escaping has to be asked for: jinja2's own rule goes by the suffix and does not know ".j2".
    loader = jinja2.PackageLoader("bnood.lab", ".")
    environment = jinja2.Environment(
        loader=loader, autoescape=True, undefined=jinja2.StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    return environment.get_template("report.html.j2")
