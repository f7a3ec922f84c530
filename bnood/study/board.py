"""The progress view of a study: its cells and phases, what each is doing and for how long."""

import csv
import time
from collections.abc import Iterable
from pathlib import Path

from rich.console import Console, Group
from rich.live import Live
from rich.table import Table
from rich.text import Text

from bnood.study.executors import Job, Outcome

PHASES = ("training", "evaluation")
STYLES = {"waiting": "dim", "done": "green", "failed": "bold red", "left out": "red"}


class Board:
    """Shows all cells while they run; without a terminal, one line for each phase that ends.

    Args:
        cells: names of the cells, in the order of the table's rows.
        folder: of the study, where the cells' logs of training are.
        console: where it is shown.
        title: above the table.
    """

    def __init__(self, cells: Iterable[str], folder: Path, console: Console, title: str) -> None:
        self.cells, self.folder, self.console, self.title = list(cells), folder, console, title
        self.states = {(cell, phase): "waiting" for cell in self.cells for phase in PHASES}
        self.running: dict[tuple[str, str], tuple[Job, float]] = {}
        self.began = time.perf_counter()
        self._live = Live(
            get_renderable=self._table, console=console, refresh_per_second=2, redirect_stdout=False,
            redirect_stderr=False,
        )  # fmt: skip

    def __enter__(self) -> "Board":
        if self.console.is_terminal:
            self._live.start()
        return self

    def __exit__(self, *exception: object) -> None:
        if self.console.is_terminal:
            self._live.stop()

    def was_done(self, cell: str, phase: str) -> None:
        """Mark what an earlier call has done."""
        self.states[cell, phase] = "done before"

    def started(self, job: Job) -> None:
        self.running[_place(job)] = (job, time.perf_counter())

    def ended(self, job: Job, outcome: Outcome) -> None:
        self.running.pop(_place(job), None)
        if outcome.left_out:
            state = "left out"
        else:
            state = f"{'failed' if outcome.error else 'done'} ({clock(outcome.seconds)})"
        self.states[_place(job)] = state
        if not self.console.is_terminal:
            self.console.print(Text(f"{job.name}: {state}" + (f": {outcome.error}" if outcome.error else "")))

    def _table(self) -> Group:
        table = Table(title=Text(self.title), title_justify="left", box=None, padding=(0, 2, 0, 0))
        for column in ("cell", *PHASES):
            table.add_column(column, no_wrap=True)
        for cell in self.cells:
            table.add_row(Text(cell), *(self._state(cell, phase) for phase in PHASES))
        done = sum(state.startswith("done") for state in self.states.values())
        elapsed = clock(time.perf_counter() - self.began)
        return Group(table, Text(f"{done} of {len(self.states)} done, {elapsed} so far", style="dim"))

    def _state(self, cell: str, phase: str) -> Text:
        if (cell, phase) not in self.running:
            state = self.states[cell, phase]
            return Text(state, style=next((style for key, style in STYLES.items() if state.startswith(key)), ""))
        job, since = self.running[cell, phase]
        doing = _last_epoch(self.folder / cell) if phase == "training" else _last_line(job.log)
        return Text(f"{doing or 'starting'} ({clock(time.perf_counter() - since)})", style="yellow")


def _place(job: Job) -> tuple[str, str]:
    """Cell and phase of a job, which its name consists of."""
    cell, _, phase = job.name.partition(" ")
    return cell, phase


def clock(seconds: float) -> str:
    """``1:02:03`` or ``2:03``."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{rest:02d}" if hours else f"{minutes}:{rest:02d}"


def _last_epoch(folder: Path) -> str:
    """The epoch that a training is in, from its log, which is written while it goes on."""
    try:
        with (folder / "metrics.csv").open(newline="") as file:
            rows = [row["epoch"] for row in csv.DictReader(file) if row.get("epoch")]
    except OSError:  # not there yet, or just being written anew
        return ""
    return f"epoch {int(float(rows[-1])) + 1}" if rows else ""


def _last_line(file: Path) -> str:
    """The last line of a log, cut to the width of a column."""
    try:
        lines = file.read_text(errors="replace").splitlines()
    except OSError:
        return ""
    return lines[-1][:40] if lines else ""
