"""The page of one evaluation: what target statistics change, ReAct's picture, detectors by statistics."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import pandas as pd

from bnood.report.figures import TARGET, rows, run_pictures
from bnood.report.names import change, display, number, scale
from bnood.report.page import write_page

if TYPE_CHECKING:
    from bnood.evaluation.evaluate import Evaluation

QUESTIONS = (  # title, metric, detector, role
    ("Largest unit mean, relative to ID", "unit_mean_max_ratio", "units", "ood"),
    ("Mean MSP", "mean", "msp", "ood"),
    ("Mean energy", "mean", "energy", "ood"),
    ("AUROC of MSP", "auroc", "msp", "ood"),
    ("AUROC of energy", "auroc", "energy", "ood"),
    ("ID accuracy", "accuracy", "", "id"),
)
COLUMNS = ["Quantity", "Images", "Running", "Target", "Difference"]


def write_run_report(
    folder: Path, evaluation: Evaluation, *, title: str, commands: list[str], config: dict[str, Any] | None = None
) -> list[Path]:
    """Write `report.html` and `figures/*.png` of one evaluation into `folder`; returns these files, the page first.

    `commands` get the page again; `config` is the run's, if it was trained here.
    """
    return write_page(
        folder, "run", title=title, commands=commands, config=config, record=evaluation.record, notes=evaluation.notes,
        pictures=run_pictures(evaluation.table, evaluation.units), changes=(COLUMNS, changes(evaluation.table)),
    )  # fmt: skip


def changes(table: pd.DataFrame) -> list[list[str]]:
    """What target statistics change against running ones, as rows of :data:`COLUMNS`."""
    found = []
    for title, metric, detector, role in QUESTIONS:
        factor, own = scale(metric, detector), rows(table, metric, detector, role)
        for one in own[(own["statistics"] == TARGET) & own["difference"].notna()].itertuples():
            difference = change(one.difference, one.difference_low, one.difference_high, factor)
            before, after = number(one.value - one.difference, factor), number(one.value, factor)
            found.append([title, display(one.dataset), before, after, difference])
    return found
