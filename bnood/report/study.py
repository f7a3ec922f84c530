"""The page of a study: the answer to each hypothesis, ReAct's picture, and the other pictures of one network."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pandas as pd

from bnood.report.figures import run_pictures
from bnood.report.names import change, display
from bnood.report.page import write_page

FRACTIONS = ("AUROC", "FPR95", "probability", "share of images", "share of activations", "share of the effect")


def write_study_report(
    folder: Path,
    verdict: Mapping[str, Any],
    table: pd.DataFrame,
    units: pd.DataFrame,
    *,
    title: str,
    command: str,
    changes: Sequence[Sequence[str]] = (),
    sentence: str = "",
    notes: Sequence[str] = (),
) -> list[Path]:
    """Write `report.html` and `figures/*.png` of a study into `folder`; returns these files, the page first.

    Args:
        folder, title, command: of the study.
        verdict: the content of `verdict.json`.
        table, units: of all evaluations, pooled; the first network is shown, others have pages of their own.
        changes: network, question, value under running, under target, and their difference.
        sentence: the answer in one sentence, if there is one.
        notes: what the study left out.
    """
    first = table["network"].iloc[0]
    judged, why = verdict["rows"], verdict["reasons"]
    answer = [
        [f"{row['hypothesis']}: {row['statement']}", _network(row), row["verdict"], _effect(row), _why(row)]
        for row in judged
    ]
    controls = [
        [row["hypothesis"], _network(row), one["quantity"], _effect(one), one["verdict"]]
        for row in judged
        for one in row["estimates"]
        if one["group"] == "control"
    ]
    return write_page(
        folder, "study", title=title, commands=[command], sentence=sentence, notes=notes, record=verdict["made"],
        pictures=run_pictures(*(each[each["network"] == first] for each in (table, units))), shown=display(first),
        answer=filled(["Question", "Network", "Verdict", "Effect", "Why"], answer),
        changes=(["Network", "Quantity", "Running", "Target", "Difference"],
                 [[display(network), *rest] for network, *rest in changes]),
        controls=(["Hypothesis", "Network", "Control", "Change", "Passed"], controls),
        thresholds=(["Threshold", "Value", "Reason"],
                    [[key.replace("_", " "), str(verdict["thresholds"][key]), why[key]] for key in why]),
    )  # fmt: skip


def _network(row: Mapping[str, Any]) -> str:
    return display(row["network"]) + (f", seed {row['seed']}" if row["seed"] is not None else "")


def _effect(row: Mapping[str, Any]) -> str:
    """The effect with its interval and unit; of a hypothesis, the quantity in brackets."""
    effect, low, high = (math.nan if row[key] is None else row[key] for key in ("effect", "low", "high"))
    factor = 100.0 if row["unit"] in FRACTIONS else 1.0
    unit = f" {row['unit']}" if factor == 1 and math.isfinite(effect) else ""
    quantity = f" ({row['quantity']})" if "estimates" in row and row["quantity"] else ""
    return f"{change(effect, low, high, factor)}{unit}{quantity}"


def _why(row: Mapping[str, Any]) -> str:
    return "; ".join(text for text in (row["reason"], row["note"]) if text)


def filled(columns: list[str], rows: list[list[str]]) -> tuple[list[str], list[list[str]]]:
    """Columns and rows without the columns that no row fills: the demo's hint has neither verdict nor reason."""
    kept = [place for place in range(len(columns)) if any(row[place] for row in rows)]
    return [columns[place] for place in kept], [[row[place] for place in kept] for row in rows]
