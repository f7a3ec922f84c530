"""The page of one evaluation: what target statistics change, ReAct's picture, detectors by statistics."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from bnood.report.changes import COLUMNS, as_text, differences
from bnood.report.figures import run_pictures
from bnood.report.page import write_page

if TYPE_CHECKING:
    from bnood.evaluation.evaluate import Evaluation


def write_run_report(
    folder: Path, evaluation: Evaluation, *, title: str, commands: list[str], config: dict[str, Any] | None = None
) -> list[Path]:
    """Write `report.html` and `figures/*.png` of one evaluation into `folder`; returns these files, the page first.

    `commands` get the page again; `config` is the run's, if it was trained here.
    """
    return write_page(
        folder, "run", title=title, commands=commands, config=config, record=evaluation.record, notes=evaluation.notes,
        pictures=run_pictures(evaluation.table, evaluation.units, evaluation.layers),
        changes=as_text(differences(evaluation.replicates)), change_columns=COLUMNS,
    )  # fmt: skip
