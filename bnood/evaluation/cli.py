"""The command line of ``scripts/eval_ood.py``: evaluate runs, write their folders, print one table."""

import shlex
import sys
from pathlib import Path
from typing import Any

import pandas as pd
from jsonargparse import ActionConfigFile, ArgumentParser
from rich.console import Console

from bnood.errors import UserError
from bnood.evaluation.conditions import ConditionOptions, check_statistics
from bnood.evaluation.evaluate import SetOptions
from bnood.evaluation.interventions.sweep import InterventionOptions
from bnood.evaluation.price import PriceOptions
from bnood.evaluation.printing import print_results
from bnood.evaluation.run_evaluation import EvaluationOptions, check_id_split, evaluate_run_folder
from bnood.evaluation.sweeps import SweepOptions
from bnood.tracking import TrackingOptions
from bnood.training.command_line import one_line_parsing
from bnood.training.run_folder import load_run, newest_run

# As it stands on a command line (with commas) or in a YAML file (a list, or a single number).
Listed = str | float | list[str | float]


def build_parser() -> ArgumentParser:
    """Options of ``scripts/eval_ood.py``; lists are written with commas, in a YAML file also as lists."""
    parser = ArgumentParser(
        prog="scripts/eval_ood.py",
        description="Score OOD sets under several BatchNorm statistics.",
        exit_on_error=False,
        allow_abbrev=False,
    )
    parser.add_argument("--config", action=ActionConfigFile, help="A YAML file of these options.")
    parser.add_argument(
        "--run", type=Listed | None, default=None, help="Run folder(s), by comma; default: the newest run."
    )
    parser.add_argument("--runs", type=Path, default=Path("runs"), help="Where the newest run is looked for.")
    add = parser.add_argument
    add("--ood", type=Listed | None, default=None, help="OOD sets, by comma: names, .npz files, folders.")
    add(
        "--statistics",
        type=Listed,
        default="running,batch,recalibrated",
        help="Conditions, by comma; running always is one of them.",
    )
    add("--id_split", "--id-split", default="test", help="In-distribution images: test, or val (held out of training).")
    add("--id_count", "--id-count", type=int | None, default=None, help="Score so many in-distribution images; all.")
    add("--ood_count", "--ood-count", type=int | None, default=None, help="Open so many images of each OOD set; all.")
    add("--batch_sizes", "--batch-sizes", type=Listed, default="128", help="Batch sizes under batch, by comma.")
    add("--shares", type=Listed, default="0.1,0.5", help="OOD shares of mixed batches, by comma.")
    for name, default, text in (
        ("shuffles", 3, "Random orders of the images under batch."),
        ("calibration_images", 5000, "In-distribution training images that statistics are estimated on."),
        ("forward_batch", 128, "Images per forward pass where the batch does not matter."),
        ("estimation_batch", 500, "Images per forward pass where statistics are estimated."),
        ("tuning_images", 1000, "Held-out images that ReAct and the temperature are fitted on; 0: neither."),
        ("resamples", 1000, "Bootstrap resamples behind each interval."),
        ("seed", 0, "Of shuffles, halves of the OOD sets and bootstrap."),
    ):
        flags = [f"--{name}"] + [f"--{name.replace('_', '-')}"] * ("_" in name)
        add(*flags, type=int, default=default, help=text)
    add("--mixture_share", "--mixture-share", type=float, default=0.5, help="OOD share behind recalibrated:mixture.")
    add("--estimator", default="one_pass", choices=["one_pass", "sequential"], help="How statistics are estimated.")
    add("--root", "--data.root", type=Path | None, default=None, help="Folder of the data sets; the run's own.")
    add(
        "--download",
        "--data.download",
        type=bool | None,
        default=None,
        help="Let torchvision download what is missing; the run's own.",
    )
    add("--sweeps", type=bool, default=False, help="Also interventions, layers and the price of matching (minutes).")
    add("--compressed", type=str | None, default=None, help="With sweeps: a set of JPEG-compressed ID test images.")
    parser.add_class_arguments(TrackingOptions, "wandb")
    parser.add_argument("--no-wandb", action="store_true", help="Turn Weights & Biases off.")
    return parser


def main(arguments: list[str] | None = None) -> list[Path]:
    """Evaluate as ``scripts/eval_ood.py`` does.

    Args:
        arguments: the command line after the program's name; None for the process's own.

    Returns:
        The folders ``runs/<name>/ood`` that were written.

    Raises:
        UserError: for bad input.
    """
    given = sys.argv[1:] if arguments is None else arguments
    parser = build_parser()
    with one_line_parsing(parser, given):
        config = parser.parse_args(given)
    asked = evaluation_options(config)
    folders = [Path(run) for run in dict.fromkeys(_listed(config.run))] if config.run else [newest_run(config.runs)]
    # All runs are read before the first is evaluated: a wrong name should not cost the others' minutes.
    runs = [load_run(folder) for folder in folders]
    for run in runs:
        check_id_split(run.config["data"], asked.sets, run.name)
        check_statistics(run.classifier, asked.conditions)
    options = TrackingOptions(**config.wandb.as_dict())
    options.enabled = options.enabled and not config.no_wandb
    console = Console(width=None if sys.stdout.isatty() else 200)
    command = shlex.join(["python", "scripts/eval_ood.py", *given])
    tables, notes, lines = [], [], []
    for run in runs:
        found = evaluate_run_folder(run, asked, track=options, command=command, console=console)
        tables.append(found.table)
        notes += [f"{run.name}: {note}" for note in found.notes]
        lines += [found.sync] if found.sync else []
    id_set = runs[0].config["data"]["in_distribution"]
    title = f"{', '.join(run.name for run in runs)}: {id_set} ({asked.sets.id_split}) against OOD"
    print_results(console, pd.concat(tables), title, notes)
    for line in lines:
        console.print(line, highlight=False, soft_wrap=True)
    for run in runs:
        console.print(f"report: {run.folder / 'ood' / 'report.html'}", highlight=False, soft_wrap=True)
    return [run.folder / "ood" for run in runs]


def evaluation_options(config: Any) -> EvaluationOptions:
    """What a parsed command line asks for. Raises :class:`UserError` for what makes no sense."""
    conditions = ConditionOptions(
        statistics=tuple(_listed(config.statistics)),
        batch_sizes=tuple(_numbers(config.batch_sizes, int, "batch_sizes")),
        shares=tuple(_numbers(config.shares, float, "shares")),
        shuffles=config.shuffles,
        mixture_share=config.mixture_share,
        calibration_images=config.calibration_images,
        estimator=config.estimator,
        forward_batch=config.forward_batch,
        estimation_batch=config.estimation_batch,
        seed=config.seed,
    )
    sets = SetOptions(
        ood=None if config.ood is None else tuple(_listed(config.ood)),
        id_split=config.id_split,
        id_count=config.id_count,
        ood_count=config.ood_count,
        root=config.root,
        download=config.download,
        tuning_images=config.tuning_images,
    )
    asked = EvaluationOptions(sets, conditions, config.resamples, SweepOptions(enabled=False))
    asked.sweeps = _sweeps(config)
    return asked


def _sweeps(config: Any) -> SweepOptions:
    if not config.sweeps:
        if config.compressed is not None:
            raise UserError(f"--compressed {config.compressed} is for the sweeps: add --sweeps true, or leave it out")
        return SweepOptions(enabled=False)
    return SweepOptions(
        interventions=InterventionOptions(seed=config.seed, resamples=config.resamples),
        price=PriceOptions(seed=config.seed, resamples=config.resamples),
        compressed=config.compressed,
    )


def _listed(given: Listed) -> list[str]:
    parts = given if isinstance(given, list) else str(given).split(",")
    names = [str(part).strip() for part in parts if str(part).strip()]
    if not names:
        raise UserError(f"{given!r} names nothing: give one or more names, separated by commas")
    return names


def _numbers(text: Listed, kind: type, option: str) -> list[Any]:
    try:
        numbers = [float(part) for part in _listed(text)]
        if kind is int and any(number % 1 for number in numbers):
            raise ValueError(f"{text} is no whole number")
        return [kind(number) for number in numbers]
    except ValueError as error:
        wanted = "whole numbers" if kind is int else "numbers"
        raise UserError(f"--{option} {text}: give {wanted}, separated by commas") from error
