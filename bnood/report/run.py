"""The page of one evaluation: what target statistics change, ReAct's picture, detectors × statistics."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Protocol

import pandas as pd

from bnood.report.figures import TARGET, ood_sets, rows, run_pictures
from bnood.report.names import change, display, number
from bnood.report.page import write_page

QUESTIONS = (  # title, metric, detector, role, how the value is printed
    ("Largest unit mean, relative to ID", "unit_mean_max_ratio", "units", "ood", "unit_mean_max_ratio"),
    ("Mean MSP", "mean", "msp", "ood", "msp"),
    ("Mean energy", "mean", "energy", "ood", "energy"),
    ("AUROC of MSP", "auroc", "msp", "ood", "auroc"),
    ("AUROC of energy", "auroc", "energy", "ood", "auroc"),
    ("ID accuracy", "accuracy", "", "id", "accuracy"),
)
CHANGE_COLUMNS = ["Quantity", "Images", "Running", "Target", "Difference"]


class Evaluated(Protocol):
    """What the page needs of an evaluation (:func:`bnood.evaluate`)."""

    table: pd.DataFrame
    units: pd.DataFrame
    layers: pd.DataFrame
    record: dict[str, Any]
    notes: list[str]


def write_run_report(
    folder: Path, evaluation: Evaluated, *, title: str, commands: list[str], config: dict[str, Any] | None = None
) -> list[Path]:
    """Write `report.html` and `figures/*.png` of one evaluation into `folder`.

    Args:
        folder: is made if it does not exist.
        evaluation: its tables.
        title: the page's heading.
        commands: what to type to get the page again.
        config: the run's configuration, if it was trained here.

    Returns:
        The files that were written, the page first.
    """
    import yaml

    return write_page(
        folder, "run", title=title, commands=commands,
        pictures=run_pictures(evaluation.table, evaluation.units, evaluation.layers),
        changes=changes(evaluation.table), change_columns=CHANGE_COLUMNS, notes=evaluation.notes,
        config=yaml.safe_dump(config, sort_keys=False) if config else "", record=evaluation.record,
    )  # fmt: skip


def changes(table: pd.DataFrame) -> list[list[str]]:
    """Rows of :data:`CHANGE_COLUMNS`: every question and image set under running and under target statistics."""
    found = []
    for title, metric, detector, role, printed in QUESTIONS:
        values = rows(table, metric, detector, role)
        for dataset in ood_sets(table) if role == "ood" else values["dataset"].unique():
            own = values[values["dataset"] == dataset].set_index("statistics")
            if "running" in own.index and TARGET in own.index:
                before, after = own.loc["running"], own.loc[TARGET]
                ends = (after["difference"], after["difference_low"], after["difference_high"])
                values_ = (number(before["value"], printed), number(after["value"], printed))
                found.append([title, display(dataset), *values_, change(*ends, printed)])
    return found
