"""The evaluation of one run's folder: conditions, then the sweeps, then figures and the run's report.

All files of an evaluation are written into a folder beside ``ood/``, which takes its place at the end: whatever happens
in between, ``ood/`` is one whole evaluation, and ``evaluation.json`` says with which options it was made.
"""

import hashlib
import json
import os
import shutil
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import pandas as pd
from rich.console import Console

from bnood import tracking
from bnood.data.datamodule import has_test_images
from bnood.errors import UserError
from bnood.evaluation.conditions import ConditionOptions
from bnood.evaluation.evaluate import Evaluation, SetOptions, evaluate, load_evaluation_images, write_evaluation
from bnood.evaluation.sweeps import SweepOptions, Sweeps, load_compressed, run_sweeps
from bnood.report.figures import write_figures
from bnood.report.run_report import write_report
from bnood.tracking import TrackingOptions
from bnood.training.atomic import staged_folder
from bnood.training.run_folder import CHECKPOINT, Run, load_run

FOLDER = "ood"
ASKED = "asked"  # the key of evaluation.json that holds the options


@dataclass
class EvaluationOptions:
    """Everything that decides what an evaluation finds.

    Attributes:
        sets: which images are scored.
        conditions: under which statistics.
        resamples: bootstrap resamples behind each interval.
        sweeps: what is measured beside the conditions.
    """

    sets: SetOptions = field(default_factory=SetOptions)
    conditions: ConditionOptions = field(default_factory=ConditionOptions)
    resamples: int = 1000
    sweeps: SweepOptions = field(default_factory=SweepOptions)

    def __post_init__(self) -> None:
        if self.resamples < 2:
            raise UserError(f"resamples is {self.resamples}: an interval needs at least 2 (1,000 to be of use)")
        if not 0 <= self.conditions.seed < 2**32:
            raise UserError(f"seed is {self.conditions.seed}; expected a whole number from 0 to 4294967295")


@dataclass
class RunEvaluation:
    """What :func:`evaluate_run_folder` found and where it lies.

    Attributes:
        folder: ``runs/<name>/ood``.
        table: tidy metrics.
        notes: one line for everything that was left out or should be known.
        sync: the line that says how to upload an offline W&B run; none if there is nothing to upload.
    """

    folder: Path
    table: pd.DataFrame
    notes: list[str]
    sync: str | None = None


def asked(folder: Path, options: EvaluationOptions) -> dict[str, Any]:
    """What an evaluation of this folder would be asked now, as ``evaluation.json`` keeps it.

    Where the data lie is left out; the checkpoint is named by its content.
    """
    plain = asdict(options)
    for place in ("root", "download"):
        plain["sets"].pop(place)
    if not options.sweeps.enabled:
        plain["sweeps"] = {"enabled": False}  # what they would be is of no importance then
    plain["checkpoint"] = hashlib.sha256((folder / CHECKPOINT).read_bytes()).hexdigest()
    return json.loads(json.dumps(plain, default=str))


def is_evaluated(folder: Path, options: EvaluationOptions) -> bool:
    """Whether ``ood/`` holds the evaluation of the present checkpoint with these options."""
    record = folder / FOLDER / "evaluation.json"
    if not record.is_file() or not (folder / CHECKPOINT).is_file():
        return False
    try:
        found = json.loads(record.read_text())
    except ValueError:
        return False  # damaged: it is made again
    return isinstance(found, dict) and found.get(ASKED) == asked(folder, options)


def check_id_split(data: Mapping[str, Any], sets: SetOptions, trained: str) -> None:
    """Refuse to score images as test images that a network was trained on.

    Args:
        data: the section data of its training config.
        sets: what is scored.
        trained: its name, for the message.
    """
    if sets.id_split == "test" and not has_test_images(data["in_distribution"], sets.placed(data)["root"]):
        raise UserError(
            f"{data['in_distribution']} has no test images of its own, {trained} was trained on them: "
            "score its held-out images, with id_split val"
        )


def evaluate_run_folder(
    run: Run | Path,
    options: EvaluationOptions,
    *,
    track: TrackingOptions,
    command: str,
    console: Console | None = None,
    tell: Callable[[str], object] = lambda step: None,
) -> RunEvaluation:
    """Evaluate a run and write ``runs/<name>/ood/``.

    Args:
        run: the run, or its folder.
        options: what is evaluated.
        track: what is logged to Weights & Biases.
        command: what to type to get this evaluation again, for the report.
        console: shows progress bars; none: silent.
        tell: is called with the name of each step that begins.

    Raises:
        UserError: for bad input; what lay in ``ood/`` before is still there then.
    """
    run = load_run(run) if isinstance(run, Path) else run
    question = asked(run.folder, options)
    check_id_split(run.config["data"], options.sets, run.name)
    images = load_evaluation_images(run, options.sets, options.conditions.seed)
    more = load_compressed(run.config["data"], options.sets, options.sweeps)
    tracked = tracking.start_run(
        track,
        name=f"{run.name}-ood",
        job_type="evaluation",
        tags=[f"norm:{run.classifier.norm}", f"seed:{run.seed}", f"set:{images.id_set.name}"],
        config={"run": run.name, **question, "training": run.config},
        folder=run.folder,
    )
    sync = None
    try:
        tracking.use_checkpoint(tracked, run.checkpoint, run.name)
        remove_remains(run.folder / FOLDER)
        with staged_folder(run.folder / FOLDER) as beside:
            tell("conditions")
            evaluation = evaluate(run, images, options.conditions, resamples=options.resamples, console=console)
            evaluation.record[ASKED] = question
            sweeps = Sweeps()
            if options.sweeps.enabled:
                sweeps = run_sweeps(run, images, more, options.sweeps, tell)
                evaluation.record["sweeps"] = sweeps.record
            evaluation.notes.extend(sweeps.notes)
            write_evaluation(evaluation, beside)
            sweeps.write(beside)
            tell("figures and report")
            figures = write_figures(evaluation.table, evaluation.scores, evaluation.units, beside / "figures")
            write_report(
                beside,
                run_name=run.name,
                config=run.config,
                summary=run.summary | {"evaluation": evaluation.record},
                table=evaluation.table,
                figures=figures,
                commands=[training_command(run), command],
            )
        figures = [run.folder / FOLDER / path.relative_to(beside) for path in figures]
        tracking.log_evaluation(tracked, evaluation.table, evaluation.scores, figures)
    finally:
        sync = tracking.finish(tracked)
    return RunEvaluation(run.folder / FOLDER, evaluation.table, evaluation.notes + _distances(evaluation), sync)


def training_command(run: Run) -> str:
    """What to type to train a run again; of a network that a study stopped early, a comment that says so."""
    if stopped := run.summary.get("stopped"):
        return f"# {run.name}: stopped after epoch {stopped['epoch'] + 1} of {stopped['run']} by scripts/study.py"
    return f"python scripts/train.py --config {run.folder / 'config.yaml'} --name {run.name}-again"


def remove_remains(folder: Path) -> None:
    """Remove what killed processes left beside a folder that they were writing (:func:`bnood.training.atomic.staged_folder`).

    If one was killed between its two renames, the earlier folder is put back.
    """
    for kind in ("old", "partial"):
        for left in folder.parent.glob(f".{folder.name}.*.{kind}"):
            number = left.name.split(".")[-2]
            if not number.isdigit() or (int(number) != os.getpid() and _runs(int(number))):
                continue
            if kind == "old" and not folder.exists():
                left.rename(folder)
            else:
                shutil.rmtree(left, ignore_errors=True)


def _runs(process: int) -> bool:
    """Whether a process of this number runs on this machine."""
    with suppress(PermissionError):
        try:
            os.kill(process, 0)
        except ProcessLookupError:
            return False
    return True


def _distances(evaluation: Evaluation) -> list[str]:
    """How far the one-pass estimate of the statistics was from the sequential one, a line for each estimate."""
    found = evaluation.record["estimator_distance"]
    assert isinstance(found, dict)
    return [
        f"statistics {name}: in the layer that differs most, one pass lies {apart['mean_shift']:.3f} standard "
        f"deviations (means) and {apart['log_std_ratio']:.3f} (log standard deviation) from the sequential estimate"
        for name, apart in found.items()
    ]
