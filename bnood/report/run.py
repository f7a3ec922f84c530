"""The page of one evaluation: what target statistics change, ReAct's picture, detectors by statistics."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Protocol

import pandas as pd

from bnood.report.changes import COLUMNS, as_text, differences
from bnood.report.figures import run_pictures
from bnood.report.page import write_page


class Evaluated(Protocol):
    """What the page needs of an evaluation (:func:`bnood.evaluate`)."""

    table: pd.DataFrame
    units: pd.DataFrame
    layers: pd.DataFrame
    replicates: pd.DataFrame
    record: dict[str, Any]

    @property
    def notes(self) -> list[str]:
        """What was left out."""


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
    return write_page(
        folder, "run", title=title, commands=commands, config=config, record=evaluation.record, notes=evaluation.notes,
        pictures=run_pictures(evaluation.table, evaluation.units, evaluation.layers),
        changes=as_text(differences(evaluation.replicates)), change_columns=COLUMNS,
    )  # fmt: skip
