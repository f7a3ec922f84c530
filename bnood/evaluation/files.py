"""The files of an evaluation, written as a whole or not at all.

``table.csv`` (metrics), ``scores.parquet`` (per image), ``units.parquet`` (per penultimate unit), ``draws.parquet``
(the rows of the table with their bootstrap replicates), ``layers.csv`` (distance of target from running statistics,
layer by layer), ``evaluation.json`` (how the tables came about), ``report.html`` and ``figures/*.png``.
"""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bnood.errors import UserError
from bnood.training.atomic import staged_folder

if TYPE_CHECKING:
    from bnood.evaluation.evaluate import Evaluation

RECORD = "evaluation.json"


def check_replaceable(folder: Path) -> None:
    """Raise :class:`UserError` for a folder that holds other files than an evaluation: it would be replaced whole."""
    folder = folder.resolve()
    if (
        folder.is_dir()
        and any(folder.iterdir())
        and not any((folder / name).exists() for name in (RECORD, "table.csv"))
    ):
        raise UserError(f"{folder} holds other files, and would be replaced: give a new folder for the evaluation")


def write_evaluation(
    evaluation: "Evaluation",
    folder: Path,
    *,
    title: str | None = None,
    commands: Sequence[str] = (),
    config: dict[str, Any] | None = None,
) -> Path:
    """Write all files and the report into ``folder``, which is replaced.

    Args:
        evaluation: what was found.
        folder: takes the place of one that exists.
        title: of the report; default: the network's name.
        commands: what to type to get this evaluation again.
        config: of the training run, for the report.

    Raises:
        UserError: if the folder cannot be written; what was there before is still there then.
    """
    from bnood.report.run import write_run_report  # brings matplotlib

    check_replaceable(folder)
    scores = evaluation.scores.copy()
    for column in scores.select_dtypes(["object", "string"]):
        scores[column] = scores[column].astype("category")
    with staged_folder(folder) as beside:
        scores.to_parquet(beside / "scores.parquet", index=False)
        evaluation.units.to_parquet(beside / "units.parquet", index=False)
        evaluation.replicates.to_parquet(beside / "draws.parquet", index=False)
        evaluation.table.to_csv(beside / "table.csv", index=False, float_format="%.6g")
        if len(evaluation.layers):
            evaluation.layers.to_csv(beside / "layers.csv", index=False, float_format="%.6g")
        (beside / RECORD).write_text(json.dumps(evaluation.record, indent=2, default=str) + "\n")
        title = title or str(evaluation.record["run"])
        write_run_report(beside, evaluation, title=title, commands=list(commands), config=config)
    return folder
