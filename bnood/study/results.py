"""From the evaluated networks of a study to its pooled tables, verdict and report."""

from collections.abc import Sequence
from functools import partial

import pandas as pd

from bnood.errors import UserError
from bnood.report.page import write_study_report
from bnood.study.measurements import TEXT, Measurements
from bnood.study.networks import EVALUATION, RunSpec, run_folder
from bnood.study.options import StudyOptions
from bnood.study.printing import answer, changes, demo_lines, verdict_lines
from bnood.study.verdict import judge
from bnood.training.atomic import write_beside
from bnood.training.provenance import commit, machine, versions
from bnood.training.run_folder import read_summary

CLOSE = 0.01  # a stopped network whose accuracy is further from its partner's than this is noted
TRAINED = ("accuracy", "nll", "ece", "train_accuracy", "epochs", "seconds", "parameters")


def pooled(options: StudyOptions, specs: Sequence[RunSpec], file: str) -> pd.DataFrame:
    """One table of all networks' evaluations, with the study's names in run, network, norm and seed."""
    parts = []
    for spec in specs:
        path = options.folder / spec.name / EVALUATION / file
        try:
            table = pd.read_csv(path) if path.suffix == ".csv" else pd.read_parquet(path)
        except (ValueError, OSError) as error:
            raise UserError(f"{path} is not readable as a table: remove {path.parent}, and it is made again") from error
        # Empty text and missing numbers look the same in a CSV file.
        for column in set(TEXT) & set(table):
            table[column] = table[column].astype("object").fillna("").astype(str)
        rest = table.drop(columns=[column for column in spec.names if column in table])
        parts.append(pd.concat([pd.DataFrame(spec.names, index=rest.index), rest], axis=1))
    return pd.concat(parts, ignore_index=True)


def networks(options: StudyOptions, specs: Sequence[RunSpec]) -> pd.DataFrame:
    """One row per network: what its ``summary.json`` says of accuracy and training; NaN for given models."""
    rows = []
    for spec in specs:
        summary = {} if spec.entry.model is not None else read_summary(run_folder(options, spec))
        stopped = summary.get("stopped", {})
        partner = {"partner": stopped.get("partner", ""), "partner_accuracy": stopped.get("partner_accuracy")}
        rows.append({**spec.names, **{key: summary.get(key) for key in TRAINED}, **partner})
    return pd.DataFrame(rows).astype(dict.fromkeys([*TRAINED, "partner_accuracy"], float))


def conclude(options: StudyOptions, specs: Sequence[RunSpec], command: str, missing: Sequence[str] = ()) -> None:
    """Pool the tables of the evaluated networks, write the verdict and the report, and print the answer.

    The demo gets no verdict: one small network per norm is a hint, not evidence.

    Args:
        options, specs: the study and those of its networks that are evaluated.
        command: what to type to get this study again, for the report.
        missing: a line for each network that the verdict does without.
    """
    if not specs:
        raise UserError(f"{options.folder}: no network is evaluated, so there is nothing to judge")
    table, draws, units = (pooled(options, specs, name) for name in ("table.csv", "draws.parquet", "units.parquet"))
    rows, claim, folder, found = networks(options, specs), options.claim, options.folder, Measurements(draws)
    made = {"versions": versions(), "commit": commit(), "machine": machine(), "command": command}
    verdict = judge(draws, rows, claim, options.name, {**made, "missing": list(missing)})
    # Only now: where judging fails, no new table stands beside an earlier verdict.
    for name, content in (("table.csv", table), ("networks.csv", rows)):
        write_beside(folder / name, partial(content.to_csv, index=False, float_format="%.6g"))
    if not options.demo:
        verdict.write(folder)
    far = rows[(rows["partner"] != "") & ((rows["accuracy"] - rows["partner_accuracy"]).abs() > CLOSE)]
    notes = [
        f"{row.run}: accuracy {row.accuracy:.3f}, the nearest to {row.partner} ({row.partner_accuracy:.3f})"
        for row in far.itertuples()
    ]
    page = write_study_report(
        folder, {} if options.demo else verdict.to_json(), table, units, title=f"Study {options.name}",
        changes=[[f"{family}bn", *row] for family in found.families() for row in changes(found, claim, family)],
        sentence=answer(found, claim) if options.demo else "", commands=[command], notes=[*missing, *notes], record=made,
    )[0]  # fmt: skip
    lines = demo_lines(found, rows, claim) if options.demo else verdict_lines(verdict)
    files = [f"page:    {page}", *([] if options.demo else [f"tables:  {folder}/verdict.csv, {folder}/table.csv"])]
    print("\n".join([*lines, *(f"note: {note}" for note in notes), *files]))
