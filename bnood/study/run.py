"""A study from its options to its verdict: check, train and evaluate, pool the tables, judge, report."""

import shutil
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any, NamedTuple

import pandas as pd

from bnood.data.atomic import locked, write_beside
from bnood.errors import UserError
from bnood.evaluation.intervals import Unusable
from bnood.evaluation.run import check_id_split, load_run_images
from bnood.report.names import change, factor_of, number
from bnood.report.page import write_study_report
from bnood.study import hypotheses as h
from bnood.study import networks
from bnood.study.claim import ClaimOptions
from bnood.study.execution import Job, run_jobs
from bnood.study.measurements import TEXT, Measurements
from bnood.study.options import StudyOptions, check_same_study
from bnood.study.verdict import Record, judge, write_verdict
from bnood.training.command_line import read_yaml
from bnood.training.provenance import made_with
from bnood.training.run_folder import read_summary

TRAINED = ("accuracy", "nll", "ece", "train_accuracy", "epochs", "seconds", "parameters")
QUESTIONS = (
    ("H1  Largest unit mean, relative to ID images", h.UNIT_MAXIMUM),
    ("H2  Confidence: mean MSP", h.MSP),
    ("H2  Confidence: mean energy score, nats", h.ENERGY),
    ("H3  Detection: AUROC of MSP", h.AUROCS[1]),
    ("H3  Detection: AUROC of the energy score", h.AUROCS[0]),
)
ANSWERS = {
    "lower": "Target statistics lower confidence on OOD images here: the mismatch had raised it.",
    "higher": "Target statistics raise confidence on OOD images here: the mismatch is not what makes it high.",
    "open": "Target statistics do not clearly change confidence on OOD images here.",
}


class Conclusion(NamedTuple):
    """What a study found: the verdict, all replicates, a row per network, and the page."""

    verdict: Record
    found: Measurements
    networks: pd.DataFrame
    page: Path


def run_study(options: StudyOptions, command: str, judge_only: bool = False) -> Conclusion:
    """Train and evaluate what is not yet done, unless ``judge_only``, then judge; ``command`` is for the report.

    Raises ``UserError`` for bad input, and if a network failed, in which case no verdict is written.
    """
    specs = networks.run_specs(options)
    resolved = check_same_study(options)
    trained = [spec for spec in specs if spec.entry.training is not None and not spec.partner]
    trainings = [networks.check_training(options, spec) for spec in trained]
    if judge_only and not options.folder.is_dir():
        raise UserError(f"{options.folder}: there is no such study to be judged; run it without --judge_only true")
    if not judge_only:
        if not all(networks.is_done(options, spec) for spec in specs):
            check_images(options, specs, trainings)
        write_beside(options.folder / "study.yaml", lambda path: path.write_text(resolved))
    with locked(options.folder, "another process is working on this study"):
        if not judge_only:
            # Stopped networks need two others, everything else can be done side by side.
            for stage in ([spec for spec in specs if not spec.partner], [spec for spec in specs if spec.partner]):
                work(options, [spec for spec in stage if not networks.is_done(options, spec)], command)
        done = [spec for spec in specs if networks.is_done(options, spec)]
        for spec in done:  # one may have been killed when its evaluation was just written
            shutil.rmtree(options.folder / spec.name / networks.PASSES, ignore_errors=True)
        missing = [f"{spec.name} is not evaluated" for spec in specs if spec not in done]
        for line in missing:
            print(f"note: {line}")
        return conclude(options, done, command, missing)


def work(options: StudyOptions, specs: Sequence[networks.RunSpec], command: str) -> None:
    """Train and evaluate networks; UserError if any failed."""
    if not specs:
        return
    logs = options.folder / "logs"
    work_on = networks.make_and_evaluate
    jobs = [Job(spec.name, work_on, (options, spec, command), logs / f"{spec.name}.log") for spec in specs]
    print(f"{options.name}: {', '.join(job.name for job in jobs)} (logs in {logs})", flush=True)
    if failed := run_jobs(jobs, options.executor):
        text = f"{len(failed)} failed: {'; '.join(f'{name}: {error}' for name, error in failed.items())}"
        raise UserError(f"{text}; no verdict is written (--judge_only true judges what is there)")


def check_images(options: StudyOptions, specs: Sequence[networks.RunSpec], trainings: list[dict[str, Any]]) -> None:
    """Open all image sets and given models before anything is trained: hours may pass before they are needed."""
    sets = options.sets
    configs = [*trainings, *(read_yaml(spec.entry.run / "config.yaml") for spec in specs if spec.entry.run)]
    opened: list[list[str]] = []
    for config in {str(config["data"]): config for config in configs}.values():
        check_id_split(config["data"], sets.of_runs(), f"every network of {options.name}")
        run: Any = SimpleNamespace(config=config, name=options.name)
        try:
            opened.append(list(load_run_images(run, sets.of_runs(), options.evaluation)["ood_sets"]))
        except UserError as error:
            raise UserError(str(error).replace("--data.", "--sets.")) from error
    if models := [spec for spec in specs if spec.entry.model is not None]:
        opened.append(list(networks.given_images(options)["ood_sets"]))
    for names in opened:
        if not names:
            raise UserError("sets.ood is empty: a study needs at least one OOD set, for example [svhn, dtd]")
        if missing := [name for name in options.claim.primary_sets if name not in names]:
            raise UserError(f"claim.primary_sets: {', '.join(missing)} is not among the OOD sets ({', '.join(names)})")
    for spec in models:
        networks.load(options, spec)


def pooled(options: StudyOptions, specs: Sequence[networks.RunSpec], file: str) -> pd.DataFrame:
    """One table of all networks' evaluations, with the study's names in run, network, norm and seed."""
    parts, text = [], dict.fromkeys(TEXT, str)
    for spec in specs:
        path = options.folder / spec.name / networks.EVALUATION / file
        try:
            table = pd.read_csv(path, dtype=text) if path.suffix == ".csv" else pd.read_parquet(path)
        except (ValueError, OSError) as error:
            raise UserError(f"{path} is not readable as a table: remove {path.parent}, and it is made again") from error
        # Empty text and missing numbers look the same in a CSV file.
        parts.append(table.fillna(dict.fromkeys(text, "")).assign(**spec.names))
    return pd.concat(parts, ignore_index=True)


def network_table(options: StudyOptions, specs: Sequence[networks.RunSpec]) -> pd.DataFrame:
    """One row per network: what its ``summary.json`` says of accuracy and training; NaN for given models."""
    rows = []
    for spec in specs:
        summary = {} if spec.entry.model is not None else read_summary(networks.run_folder(options, spec))
        stopped = summary.get("stopped", {})
        partner = {"partner": stopped.get("partner", ""), "partner_accuracy": stopped.get("partner_accuracy")}
        rows.append({**spec.names, **{key: summary.get(key) for key in TRAINED}, **partner})
    return pd.DataFrame(rows).astype(dict.fromkeys([*TRAINED, "partner_accuracy"], float))


def changes(found: Measurements, claim: ClaimOptions, family: str = "") -> list[list[str]]:
    """Per question its value under running and under target statistics, and the change: mean of the primary sets."""
    rows = []
    for question, quantity in QUESTIONS:
        try:
            sides = [[h.Term(1, quantity, name)] for name in (h.RUNNING, h.TARGET)]
            running, target = (found.contrast(side, claim.primary_sets, family) for side in sides)
        except Unusable:
            continue
        interval, factor = (target - running).interval(claim.level), factor_of(quantity.unit)
        before, after = (number(float(side.values.mean()), factor) for side in (running, target))
        rows.append([question, before, after, change(*interval[:3], factor)])
    return rows


def answer(found: Measurements, claim: ClaimOptions) -> str:
    """One sentence: what target statistics do to the mean MSP on the primary sets."""
    low, high = found.contrast(h.change(h.MSP, h.TARGET, h.RUNNING), claim.primary_sets).interval(claim.level)[1:3]
    return ANSWERS["lower" if high < 0 else "higher" if low > 0 else "open"]


def conclude(options: StudyOptions, specs: list[networks.RunSpec], command: str, missing: list[str]) -> Conclusion:
    """Pool the tables of the evaluated networks, and write the report and, but for the demo's hint, the verdict."""
    if not specs:
        raise UserError(f"{options.folder}: no network is evaluated, so there is nothing to judge")
    table, draws, units = (pooled(options, specs, name) for name in ("table.csv", "draws.parquet", "units.parquet"))
    rows, claim, folder, found = network_table(options, specs), options.claim, options.folder, Measurements(draws)
    verdict = judge(draws, rows, claim, options.name, {**made_with(), "command": command, "missing": missing})
    # Only now: where judging fails, no new table stands beside an earlier verdict.
    for name, content in (("table.csv", table), ("networks.csv", rows)):
        write_beside(folder / name, partial(content.to_csv, index=False, float_format="%.6g"))
    if not options.demo:
        write_verdict(verdict, folder)
    page = write_study_report(
        folder, verdict | ({"rows": []} if options.demo else {}), table, units,
        changes=[[f"{family}bn", *row] for family in found.families() for row in changes(found, claim, family)],
        title=f"Study {options.name}", sentence=answer(found, claim) if options.demo else "", commands=[command],
        notes=missing,
    )[0]  # fmt: skip
    return Conclusion(verdict, found, rows, page)
