"""From the evaluated cells of a study to its pooled tables, verdict and report."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pandas as pd
from rich.console import Console
from rich.text import Text

from bnood.errors import UserError
from bnood.evaluation.run_evaluation import FOLDER
from bnood.report.study_figures import write_study_figures
from bnood.report.study_report import write_study_report
from bnood.report.study_tables import StudyTables
from bnood.study.claim import judge, print_verdict
from bnood.study.grid import StudyCell, StudyOptions, read_summary
from bnood.training.provenance import commit, machine, versions
from bnood.training.run_folder import write_beside

# The tables of a run's evaluation that are pooled, by the name that they have from there on.
TABLES = {
    "table": "table.csv",
    "differences": "differences.csv",
    "draws": "draws.parquet",
    "units": "units.parquet",
    "interventions": "interventions.csv",
    "intervention_draws": "intervention_draws.parquet",
    "shift": "shift.csv",
    "layers": "layers.parquet",
    "layer_distances": "layer_distances.csv",
}
# Those of them that the report is drawn from.
REPORTED = ("table", "differences", "units", "interventions", "shift", "layers", "layer_distances")
CLOSE = 0.01  # a stopped network whose accuracy is further from its partner's than this is remarked on
# What a summary says of the training itself.
TRAINED = ("train_accuracy", "epochs", "seconds", "parameters")
# Empty text and numbers that are missing look the same in a CSV file; these columns are text.
TEXT = ("composition", "companion", "score", "place", "corruption", "kind")


def pool(options: StudyOptions, cells: Sequence[StudyCell]) -> dict[str, pd.DataFrame]:
    """The tables of all cells in one, by the names of :data:`TABLES`, with the columns run, network, norm and seed.

    A table that no cell has is left out: stopped networks have no interventions, and LN and GN none either.

    Raises:
        UserError: if there is no cell, or a table is damaged.
    """
    if not cells:
        raise UserError(f"{options.folder}: no cell is evaluated, so that there is nothing to judge")
    pooled = {}
    for name, file in TABLES.items():
        parts = []
        for cell in cells:
            path = options.folder / cell.name / FOLDER / file
            table = read_table(path) if path.exists() else pd.DataFrame()
            # Tables without rows (the differences of a network with one kind of statistics) have no types either.
            if len(table):
                own = {"run": cell.name, "network": cell.network, "norm": cell.norm, "seed": cell.seed}
                rest = table.drop(columns=[column for column in own if column in table])
                parts.append(pd.concat([pd.DataFrame(own, index=rest.index), rest], axis=1))
        if parts:
            pooled[name] = pd.concat(parts, ignore_index=True)
    return pooled


def read_table(path: Path) -> pd.DataFrame:
    """A table of an evaluation, with empty text as "".

    Raises:
        UserError: if it is damaged.
    """
    try:
        table = pd.read_csv(path) if path.suffix == ".csv" else pd.read_parquet(path)
    except (ValueError, OSError) as error:
        raise UserError(
            f"{path} is not readable as a table ({' '.join(str(error).split())}): remove the folder "
            f"{path.parent}, and it is evaluated again"
        ) from error
    for column in TEXT:
        if column in table:
            table[column] = table[column].astype("object").fillna("").astype(str)
    return table


def networks(options: StudyOptions, cells: Sequence[StudyCell]) -> pd.DataFrame:
    """One row per network: what its ``summary.json`` says of accuracy and training."""
    rows: list[dict[str, Any]] = []
    for cell in cells:
        summary = read_summary(options.folder / cell.name)
        rows.append(
            {"run": cell.name, "network": cell.network, "norm": cell.norm, "seed": cell.seed}
            | {key: summary.get(key) for key in ("accuracy", "nll", "ece", *TRAINED)}
            | {"stopped_for": summary.get("stopped", {}).get("partner", "")}
            | {"partner_accuracy": summary.get("stopped", {}).get("partner_accuracy")}
        )
    return pd.DataFrame(rows)


def write_table(table: pd.DataFrame, file: Path) -> None:
    """Write a CSV table with as many digits as the runs' own tables have."""
    write_beside(file, lambda path: table.to_csv(path, index=False, float_format="%.6g"))


def conclude(
    options: StudyOptions,
    cells: Sequence[StudyCell],
    command: str,
    console: Console,
    missing: Sequence[str] = (),
) -> None:
    """Pool the tables of the evaluated cells and write what the study found.

    Args:
        options: the study.
        cells: those that are evaluated.
        command: what to type to get this study again, for the report.
        console: where the verdict is printed.
        missing: a line for each cell that the verdict does without; the verdict and the report have them too.
    """
    tables = pool(options, cells)
    made: dict[str, Any] = {"versions": versions(), "commit": commit(), "machine": machine(), "command": command}
    if missing:
        made["missing"] = list(missing)
    rows = networks(options, cells)
    verdict = judge(
        tables["draws"], tables.get("intervention_draws"), rows, options.claim, study=options.name, made=made
    )
    # Only now: where judging fails, no new table stands beside an earlier verdict.
    write_table(tables["table"], options.folder / "table.csv")
    verdict.write_verdict(options.folder)
    print_verdict(console, verdict)
    for note in remarks(rows):
        console.print(Text(f"note: {note}"))
    study = StudyTables(
        name=options.name,
        **{name: tables.get(name) for name in REPORTED},
        verdict=verdict.to_json(),
        networks=rows,
        commands=[command],
        made=made,
        limits=[*limits(options, tables["table"]), *missing],
        notes=notes(options, cells),
    )
    report = write_study_report(options.folder, study)
    write_study_figures(options.folder / "figures", study)
    console.print(f"table: {options.folder / 'table.csv'}", highlight=False, soft_wrap=True)
    console.print(f"report: {report}", highlight=False, soft_wrap=True)


def remarks(rows: pd.DataFrame) -> list[str]:
    """A line for each BN network that was stopped, but not near its partner's accuracy."""
    stopped = rows[rows["stopped_for"] != ""]
    apart = stopped[(stopped["accuracy"] - stopped["partner_accuracy"]).abs() > CLOSE]
    return [
        f"{row.run}: of the epochs that were kept, the nearest to the accuracy of {row.stopped_for} "
        f"({row.partner_accuracy:.4f}) has {row.accuracy:.4f}"
        for row in apart.itertuples()
    ]


def limits(options: StudyOptions, table: pd.DataFrame) -> list[str]:
    """What the study does not show beyond what its tables say of themselves, one sentence each."""
    id_rows = table[(table["role"] == "id") & (table["metric"] == "accuracy")]
    counted = id_rows["n"].max() if len(id_rows) else 0
    found = [
        "One architecture and one training recipe per norm "
        f"({options.training.name if options.training.is_absolute() else options.training}): other networks may "
        "differ.",
        f"Detection is measured against {counted:,} in-distribution images of the split "
        f"{options.evaluation.sets.id_split!r}.",
    ]
    if options.partners:
        found.append("BN networks at equal accuracy were stopped early, which changes more than their accuracy.")
    return found


def notes(options: StudyOptions, cells: Sequence[StudyCell]) -> list[str]:
    """What the evaluations left out: each distinct note once, with the runs that it is about."""
    runs: dict[str, list[str]] = {}
    for cell in cells:
        record = json.loads((options.folder / cell.name / FOLDER / "evaluation.json").read_text())
        for note in dict.fromkeys(record.get("notes", [])):
            runs.setdefault(note, []).append(cell.name)
    return [f"{note} ({', '.join(names)})." for note, names in runs.items()]
