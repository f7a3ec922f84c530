"""The command line of ``scripts/lab.py``: train and record a grid of small networks, check the statements."""

import json
import shlex
import sys
import warnings
from dataclasses import asdict
from pathlib import Path

from jsonargparse import ActionConfigFile, ArgumentParser
from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table
from rich.text import Text

from bnood.errors import UserError
from bnood.lab.checks import Check, check_lab, checks_table
from bnood.lab.figures import write_lab_figures
from bnood.lab.grid import LabCell, LabOptions, cells, collect, draw_images, is_done, train_cell
from bnood.lab.preflight import check_images, check_trainings, check_written_grids
from bnood.lab.report import write_lab_report
from bnood.lab.results import ARCHITECTURES, read_lab
from bnood.lab.seed_figures import LabFigures
from bnood.study.board import clock
from bnood.study.claim.estimates import figure
from bnood.study.cli import sole_user
from bnood.study.executors import Job, Outcome, run_jobs
from bnood.training.command_line import one_line_parsing, read_configs
from bnood.training.provenance import commit, machine, versions
from bnood.training.run_folder import write_beside

MOST_RECORDING = 0.1  # of the training time


def build_parser() -> ArgumentParser:
    """Options of ``scripts/lab.py``."""
    parser = ArgumentParser(
        prog="scripts/lab.py",
        description="Train and record a grid of small networks, check the statements; see configs/lab/.",
        exit_on_error=False,
    )
    parser.add_argument("--config", action=ActionConfigFile, help="A YAML file of these options.")
    parser.add_class_arguments(LabOptions)
    parser.add_argument("--no-wandb", action="store_true", help="Turn Weights & Biases off.")
    return parser


def main(arguments: list[str] | None = None) -> Path:
    """Run a lab as ``scripts/lab.py`` does.

    Args:
        arguments: the command line after the program's name; None for the process's own.

    Returns:
        The lab's folder.

    Raises:
        UserError: for bad input, and if a cell failed.
    """
    given = sys.argv[1:] if arguments is None else arguments
    parser = build_parser()
    check_written_grids(read_configs(given))
    with one_line_parsing(parser, given), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # jsonargparse's, about names of its own functions
        config = parser.parse_args(given)
        if config.get("name") is None or config.get("grids") is None:
            raise UserError("a lab needs a config: give --config, for example --config configs/lab/demo.yaml")
        made = parser.instantiate_classes(config)
    options = LabOptions(**{key: made[key] for key in LabOptions.__dataclass_fields__})
    options.wandb.enabled = options.wandb.enabled and not config.no_wandb
    console = Console(width=None if sys.stdout.isatty() else 160)
    run_lab(options, shlex.join(["python", "scripts/lab.py", *given]), console)
    return options.folder


class Progress:
    """One line for each cell that ends."""

    def __init__(self, console: Console, total: int, done: int) -> None:
        self.console, self.total, self.done = console, total, done

    def started(self, job: Job) -> None:
        """Nothing to say yet."""

    def ended(self, job: Job, outcome: Outcome) -> None:
        self.done += 1
        how = f"failed: {outcome.error}" if outcome.error else clock(outcome.seconds)
        self.console.print(Text(f"{self.done}/{self.total} {job.name}: {how}"))


def run_lab(options: LabOptions, command: str, console: Console) -> list[Check]:
    """Train what is not yet done, collect the tables, check the statements and print what became of them.

    Args:
        options: the lab.
        command: what to type to get this lab again.
        console: shows progress and the checks.

    Raises:
        UserError: for bad input, and if a cell failed (what is done is kept).
    """
    todo = [cell for cell in cells(options) if not is_done(options, cell)]
    if todo:
        check_trainings(options)
        check_images(options, drawn=False)
    with sole_user(options.folder):
        draw_images(options)
        if todo:
            check_images(options, drawn=True)
        jobs = [
            Job(cell.name, train_cell, (options, cell), options.folder / "logs" / f"{cell.name}.log") for cell in todo
        ]
        total = len(cells(options))
        outcomes = run_jobs(jobs, options.executor, Progress(console, total, total - len(todo)))
        failed = [f"{name}: {outcome.error}" for name, outcome in outcomes.items() if outcome.error]
        if failed:
            raise UserError(f"{len(failed)} of {total} cells failed; the first is {failed[0]}")
        return conclude(options, cells(options), command, console)


def conclude(options: LabOptions, done: list[LabCell], command: str, console: Console) -> list[Check]:
    """Write the tables, checks, pictures and page of the cells that are done, and print the checks."""
    quantities, _, accuracy = collect(options, done)
    if accuracy.empty:
        raise UserError(
            f"{options.name}: every network diverged in its first epoch, so there is nothing to compare; "
            "expected grids with a lower learning_rate"
        )
    record = json.loads((options.folder / "lab.json").read_text())
    diverged = frozenset((cell["network"], cell["seed"]) for cell in record["cells"] if cell["ended"] != "trained")
    checks = check_lab(LabFigures(quantities, accuracy, diverged), options.checks)
    content = {
        "lab": options.name,
        "made": {"versions": versions(), "commit": commit(), "machine": machine(), "command": command},
        "thresholds": asdict(options.checks),
        "seeds": options.seeds,
        "checks": [check.to_json() for check in checks],
    }
    text = json.dumps(content, indent=2, allow_nan=False) + "\n"
    write_beside(options.folder / "checks.json", lambda path: path.write_text(text))
    write_beside(options.folder / "checks.csv", lambda path: checks_table(checks).to_csv(path, index=False))
    tables = read_lab(options.folder, [command])
    write_lab_figures(options.folder, tables)
    report = write_lab_report(options.folder, tables)
    console.print(printed(checks, f"{options.name}: {len(options.seeds)} seeds"))
    for cell in record["cells"]:
        if cell["ended"] != "trained":
            console.print(Text(f"note: {cell['network']}, seed {cell['seed']}: {cell['ended']}"))
    share = f"recording took {record['recording_share']:.1%} of the training time"
    if record["recording_share"] > MOST_RECORDING:
        share += f", more than {MOST_RECORDING:.0%}: raise record_every, or lower probe_images"
    console.print(Text(share))
    console.print(f"report: {report}", highlight=False, soft_wrap=True)
    return checks


def printed(checks: list[Check], title: str) -> Table:
    """The checks as they are printed: one row for each estimate that decides."""
    table = Table(title=Text(title), title_justify="left", box=SIMPLE_HEAD, pad_edge=False)
    for column in ("", "check", "network", "estimate, 95 % interval over seeds", "threshold", ""):
        table.add_column(column)
    for check in checks:
        first = True
        for architecture, found in check.estimates.items():
            for each in found:
                head = (check.check, check.verdict) if first else ("", "")
                size = "" if each.threshold is None else f"{each.threshold:g}"
                cells_ = (*head, ARCHITECTURES[architecture], f"{each.quantity} {figure(each)} {each.unit}", size)
                table.add_row(*(Text(text) for text in (*cells_, each.verdict)))
                first = False
        table.add_section()
    return table
