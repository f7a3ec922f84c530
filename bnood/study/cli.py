"""The command line of ``scripts/study.py``: train, evaluate, pool and judge a grid of norms and seeds."""

import fcntl
import shlex
import sys
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from jsonargparse import ActionConfigFile, ArgumentParser
from rich.console import Console
from rich.text import Text

from bnood.errors import UserError
from bnood.evaluation.run_evaluation import is_evaluated
from bnood.study.board import Board
from bnood.study.cells import evaluate_cell, is_stopped, stop_cell, train_cell
from bnood.study.executors import Job, Outcome, run_jobs
from bnood.study.grid import (
    StudyCell,
    StudyOptions,
    cell_evaluation,
    check_same_study,
    check_same_training,
    expected_config,
    stopped_cells,
    trained_cells,
    training_state,
    write_study_file,
)
from bnood.study.preflight import check_evaluation
from bnood.study.results import conclude
from bnood.training.command_line import one_line_parsing


def build_parser() -> ArgumentParser:
    """Options of ``scripts/study.py``."""
    parser = ArgumentParser(
        prog="scripts/study.py",
        description="Train, evaluate and judge a grid of norms and seeds; see configs/studies/.",
        exit_on_error=False,
        allow_abbrev=False,
    )
    parser.add_argument("--config", action=ActionConfigFile, help="A YAML file of these options.")
    parser.add_class_arguments(StudyOptions)
    parser.add_argument("--partial", type=bool, default=False, help="Judge what is there, also if cells failed.")
    parser.add_argument(
        "--judge_only", type=bool, default=False, help="Train and evaluate nothing; judge what is there."
    )
    parser.add_argument("--no-wandb", action="store_true", help="Turn Weights & Biases off.")
    return parser


def parse(given: list[str]) -> tuple[StudyOptions, bool, bool]:
    """The study that a command line describes; whether an incomplete one is judged; whether that is all.

    Raises:
        UserError: for what is misspelt or makes no sense.
    """
    parser = build_parser()
    try:
        with one_line_parsing(parser, given), warnings.catch_warnings():
            warnings.simplefilter("ignore")  # jsonargparse's, about names of its own functions
            config = parser.parse_args(given)
            made = parser.instantiate_classes(config)
    except UserError as error:
        if "arguments are required" not in str(error):
            raise
        raise UserError(
            f"a study needs a config: give --config, for example --config configs/studies/demo.yaml ({error})"
        ) from error
    options = StudyOptions(**{key: made[key] for key in StudyOptions.__dataclass_fields__})
    options.wandb.enabled = options.wandb.enabled and not config.no_wandb
    return options, config.partial, config.judge_only


def main(arguments: list[str] | None = None) -> Path:
    """Run a study as ``scripts/study.py`` does.

    Args:
        arguments: the command line after the program's name; None for the process's own.

    Returns:
        The study's folder.

    Raises:
        UserError: for bad input, and if a cell failed.
    """
    given = sys.argv[1:] if arguments is None else arguments
    options, partial, judge_only = parse(given)
    command = shlex.join(["python", "scripts/study.py", *_without_judging_only(given)])
    console = Console(file=sys.stdout, width=None if sys.stdout.isatty() else 200)
    run_study(options, partial=partial, judge_only=judge_only, command=command, console=console)
    return options.folder


def _without_judging_only(given: list[str]) -> list[str]:
    """The command line that makes the whole study: what is finished it leaves as it is."""
    kept = [each for each in given if not each.startswith("--judge_only=")]
    if "--judge_only" in kept:
        place = kept.index("--judge_only")
        del kept[place : place + 2]
    return kept


def run_study(
    options: StudyOptions, *, partial: bool, command: str, console: Console, judge_only: bool = False
) -> None:
    """Do what is not yet done, then judge.

    Args:
        options: the study.
        partial: judge what is there, also if cells failed.
        command: what to type to get this study again, for the report.
        console: shows progress and the verdict.
        judge_only: train and evaluate nothing.

    Raises:
        UserError: for bad input, and if a cell failed.
    """
    check_same_study(options)
    expected: dict[str, dict[str, Any]] = {
        norm: expected_config(options, StudyCell(norm, options.seeds[0])) for norm in options.norms
    }
    for cell in trained_cells(options):
        check_same_training(options.folder / cell.name, expected[cell.norm] | {"seed_everything": cell.seed})
    cells = [*trained_cells(options), *stopped_cells(options)]
    epochs = {norm: int(config["trainer"]["max_epochs"]) for norm, config in expected.items()}
    if judge_only:
        if not options.folder.is_dir():
            raise UserError(f"{options.folder}: there is no such study to be judged; run it without --judge_only true")
    elif len(evaluated_cells(options, cells, epochs)) < len(cells):
        check_evaluation(options, expected)
    with sole_user(options.folder):
        board = Board([cell.name for cell in cells], options.folder, console, f"study {options.name}")
        outcomes: dict[str, Outcome] = {}
        if not judge_only:
            write_study_file(options)
            with board:
                jobs = plan(options, cells, epochs, command, board)
                outcomes = run_jobs(jobs, options.executor, board)
        failed = {name: outcome for name, outcome in outcomes.items() if outcome.error}
        evaluated = evaluated_cells(options, cells, epochs)
        if not failed or partial:
            missing = list(missing_lines(options, cells, evaluated, epochs))
            for line in missing:
                console.print(Text(f"note: {line}"))
            conclude(options, evaluated, command, console, missing)
    if failed:
        raise UserError(_failure(failed, partial))


def plan(
    options: StudyOptions, cells: Sequence[StudyCell], epochs: dict[str, int], command: str, board: Board
) -> list[Job]:
    """What is still to be done, trainings first; what is done is marked on the board."""
    training, evaluation = [], []
    wanted: set[str] = set()
    for cell in cells:
        folder = options.folder / cell.name
        name = f"{cell.name} training"
        sources = () if cell.partner is None else (f"bn-s{cell.seed} training", f"{cell.partner}-s{cell.seed} training")
        after = tuple(source for source in sources if source in wanted)
        done = not after and (
            is_stopped(options, cell) if cell.partner else training_state(folder, epochs[cell.norm]) == "done"
        )
        if done:
            board.was_done(cell.name, "training")
        else:
            call: Any = stop_cell if cell.partner else train_cell
            training.append(_job(options, name, call, (options, cell), after))
            wanted.add(name)
        if done and is_evaluated(folder, cell_evaluation(options, cell)):
            board.was_done(cell.name, "evaluation")
        else:
            after = (name,) if name in wanted else ()
            evaluation.append(_job(options, f"{cell.name} evaluation", evaluate_cell, (options, cell, command), after))
    return training + evaluation


def _job(options: StudyOptions, name: str, call: Any, arguments: tuple[Any, ...], after: tuple[str, ...]) -> Job:
    return Job(name, call, arguments, options.folder / "logs" / f"{name.replace(' ', '-')}.log", after)


def evaluated_cells(options: StudyOptions, cells: Sequence[StudyCell], epochs: dict[str, int]) -> list[StudyCell]:
    """Those of the cells that are trained to their end and evaluated as the study wants it.

    Args:
        options: the study.
        cells: of it.
        epochs: that a network of each norm has when it is trained.
    """
    return [
        cell
        for cell in cells
        if is_evaluated(options.folder / cell.name, cell_evaluation(options, cell))
        and not _is_half_trained(options, cell, epochs)
    ]


def _is_half_trained(options: StudyOptions, cell: StudyCell, epochs: dict[str, int]) -> bool:
    return cell.partner is None and training_state(options.folder / cell.name, epochs[cell.norm]) == "half"


def missing_lines(
    options: StudyOptions, cells: Sequence[StudyCell], evaluated: Sequence[StudyCell], epochs: dict[str, int]
) -> Iterator[str]:
    """A line for each seed that a network lacks."""
    for cell in cells:
        if cell not in evaluated:
            half = _is_half_trained(options, cell, epochs)
            why = "is not trained to its end (without --judge_only it goes on)" if half else "is not evaluated"
            yield f"{cell.name} {why}: seed {cell.seed} is missing for {cell.network}"


def _failure(failed: dict[str, Outcome], partial: bool) -> str:
    """One line about what failed, without what was left out for it."""
    own = [f"{name}: {outcome.error}" for name, outcome in failed.items() if not outcome.left_out]
    left_out = len(failed) - len(own)
    more = f"; {left_out} that need them were left out" if left_out else ""
    judged = "" if partial else "; no verdict is written (--partial true judges what is there)"
    return f"{len(own)} failed: {'; '.join(own)}{more}{judged}"


@contextmanager
def sole_user(folder: Path) -> Iterator[None]:
    """Keep other processes from working on a study at the same time; a process that is killed leaves no lock.

    Raises:
        UserError: if another process does, or the folder cannot be written.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        file = (folder / ".lock").open("w")
    except OSError as error:
        raise UserError(f"{folder} can't be written: {error.strerror or error}") from error
    with file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            raise UserError(f"another process is working on {folder}: wait for it, or end it") from error
        yield
