"""Jobs in this process, in processes and on a local Ray cluster: order, failures, deaths, threads."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path

import lightning as L
import pytest
import torch
from tiny_runs import training_arguments

from bnood.errors import UserError
from bnood.study.executors import ExecutorOptions, Job, Outcome, run_jobs
from bnood.training.train import train

without_ray = pytest.mark.skipif(find_spec("ray") is None, reason="ray is not installed: pip install 'bnood[ray]'")
KINDS = ["serial", "processes", pytest.param("ray", marks=without_ray)]


class Events:
    """Keeps what it is told."""

    def __init__(self) -> None:
        self.told: list[str] = []

    def started(self, job: Job) -> None:
        self.told.append(f"{job.name} started")

    def ended(self, job: Job, outcome: Outcome) -> None:
        self.told.append(f"{job.name} ended")


def note(file: Path, text: str) -> None:
    print(f"noting {text}")
    with file.open("a") as opened:
        opened.write(f"{text}\n")


def describe(file: Path) -> None:
    note(file, f"{os.getcwd()} {torch.get_num_threads()} {torch.get_float32_matmul_precision()}")


def refuse(text: str) -> None:
    raise UserError(text)


def break_down() -> None:
    raise ZeroDivisionError("of all things")


def die() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def meet(own: Path, other: Path) -> None:
    """Ends only if both jobs run at the same time."""
    own.touch()
    until = time.monotonic() + 20
    while not other.exists():
        if time.monotonic() > until:
            raise UserError("nobody came")
        time.sleep(0.02)


def sleep_long(own: Path) -> None:
    own.write_text(str(os.getpid()))
    time.sleep(60)


class CtrlC(L.Callback):
    """Interrupts the process in the middle of a training."""

    def on_train_batch_end(self, *args: object) -> None:
        os.kill(os.getpid(), signal.SIGINT)


def train_until_interrupted(folder: Path) -> None:
    train(training_arguments(folder, "interrupted"), [CtrlC()])


def jobs_of(folder: Path, *parts: tuple) -> list[Job]:
    return [Job(name, call, args, folder / f"{name}.log", after) for name, call, args, after in parts]


def options(kind: str, workers: int = 1, threads: int = 1) -> ExecutorOptions:
    return ExecutorOptions(kind, workers, threads)  # type: ignore[arg-type]


@pytest.mark.parametrize("kind", KINDS)
def test_all_ways_run_jobs_in_the_same_surroundings(kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """One call for all that can be asked of it: starting Ray takes seconds."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PYTHONPATH", str(Path(__file__).parent))  # where Ray's workers find this file's functions
    out, one, two, events = tmp_path / "out", tmp_path / "one", tmp_path / "two", Events()
    parts = [
        ("second", note, (out, "second"), ("first",)),
        ("first", describe, (out,), ()),
        ("refused", refuse, ("svhn: no\nsuch set",), ()),
        ("broken", break_down, (), ()),
        ("needs refused", note, (out, "never"), ("refused",)),
        ("needs that", note, (out, "never"), ("needs refused",)),
        ("last", note, (out, "last"), ("first", "second")),
    ]
    if kind != "serial":
        parts += [("killed", die, (), ()), ("one", meet, (one, two), ()), ("two", meet, (two, one), ())]
    torch.set_float32_matmul_precision("medium")  # as a training in this process might have left it
    threads = torch.get_num_threads()
    try:
        outcomes = run_jobs(jobs_of(tmp_path, *parts), options(kind, 1 if kind == "serial" else 2, threads=2), events)
        assert torch.get_float32_matmul_precision() == "medium" and torch.get_num_threads() == threads
    finally:
        torch.set_float32_matmul_precision("highest")
    assert out.read_text().splitlines() == [f"{tmp_path} 2 highest", "second", "last"]
    if kind != "serial":
        died = outcomes.pop("killed").error
        assert died is not None and "\n" not in died and "killed.log" in died
        assert kind == "ray" or "signal 9 (SIGKILL); is there enough memory?" in died
        assert outcomes.pop("one").error is None and outcomes.pop("two").error is None  # they ran at the same time
    errors = {name: outcome.error for name, outcome in outcomes.items()}
    assert errors == {
        "first": None,
        "second": None,
        "last": None,
        "refused": "svhn: no such set",
        "broken": f"ZeroDivisionError: of all things (traceback in {tmp_path / 'broken.log'})",
        "needs refused": "left out, because it needs refused",
        "needs that": "left out, because it needs needs refused",
    }
    assert {name for name, outcome in outcomes.items() if outcome.left_out} == {"needs refused", "needs that"}
    assert "in break_down" in (tmp_path / "broken.log").read_text()
    assert "noting second" in (tmp_path / "second.log").read_text()
    assert (tmp_path / "refused.log").read_text() == "error: svhn: no such set\n"
    assert events.told.index("first ended") < events.told.index("second started")
    assert "needs refused started" not in events.told and "needs refused ended" in events.told


def test_serial_runs_one_at_a_time_whatever_the_number_of_workers(tmp_path: Path) -> None:
    events = Events()
    jobs = jobs_of(tmp_path, *((name, note, (tmp_path / "out", name), ()) for name in ("a", "b", "c")))
    run_jobs(jobs, options("serial", workers=2), events)
    assert events.told == [f"{name} {what}" for name in ("a", "b", "c") for what in ("started", "ended")]


def test_ctrl_c_in_a_training_stops_all_jobs(tmp_path: Path) -> None:
    """Lightning makes an exit of it, which is no failure of that job alone."""
    parts = [("a", train_until_interrupted, (tmp_path,), ()), ("b", note, (tmp_path / "out", "b"), ())]
    with pytest.raises(KeyboardInterrupt):
        run_jobs(jobs_of(tmp_path, *parts), options("serial"), Events())
    assert not (tmp_path / "out").exists() and (tmp_path / "interrupted" / "config.yaml").exists()


def note_process(file: Path) -> None:
    file.write_text(str(os.getpid()))


class Killer(Events):
    """Kills the process in which a job ran, when it has ended."""

    def __init__(self, file: Path) -> None:
        super().__init__()
        self.file = file

    def ended(self, job: Job, outcome: Outcome) -> None:
        super().ended(job, outcome)
        if job.name == "first":
            process = int(self.file.read_text())
            os.kill(process, signal.SIGKILL)
            wait_until(lambda: not runs(process))


def test_a_worker_that_is_killed_between_two_jobs_costs_none(tmp_path: Path) -> None:
    out, process = tmp_path / "out", tmp_path / "process"
    parts = [("first", note_process, (process,), ()), ("second", note, (out, "second"), ("first",))]
    outcomes = run_jobs(jobs_of(tmp_path, *parts), options("processes"), Killer(process))
    assert [outcome.error for outcome in outcomes.values()] == [None, None] and out.read_text() == "second\n"


@pytest.fixture
def script(tmp_path: Path) -> Iterator[subprocess.Popen]:
    """A process whose worker sleeps."""
    code = (
        "import sys; sys.path.insert(0, sys.argv[1])\n"
        "from pathlib import Path\n"
        "from test_executors import Events, jobs_of, options, run_jobs, sleep_long\n"
        "folder = Path(sys.argv[2])\n"
        "if __name__ == '__main__':\n"
        "    job = ('a', sleep_long, (folder / 'process',), ())\n"
        "    run_jobs(jobs_of(folder, job), options('processes'), Events())\n"
    )
    (tmp_path / "main.py").write_text(code)
    process = subprocess.Popen([sys.executable, str(tmp_path / "main.py"), str(Path(__file__).parent), str(tmp_path)])
    yield process
    process.kill()
    process.wait()


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGINT])
def test_workers_end_with_the_process_that_started_them(
    number: signal.Signals, script: subprocess.Popen, tmp_path: Path
) -> None:
    file = tmp_path / "process"
    wait_until(lambda: file.exists() and file.read_text() != "")
    worker = int(file.read_text())
    assert runs(worker)
    script.send_signal(number)
    script.wait(timeout=10)
    wait_until(lambda: not runs(worker))


def wait_until(condition) -> None:  # type: ignore[no-untyped-def]
    until = time.monotonic() + 20
    while not condition():
        assert time.monotonic() < until
        time.sleep(0.05)


def runs(process: int) -> bool:
    """Whether a process runs; one that has ended and waits to be asked about does not."""
    status = Path(f"/proc/{process}/status")
    if not Path("/proc/self/status").exists():
        pytest.skip("needs /proc")
    return status.exists() and "State:\tZ" not in status.read_text()


@without_ray
def test_ray_refuses_what_its_cluster_lacks(tmp_path: Path) -> None:
    wanted = ExecutorOptions("ray", gpus_per_cell=1000.0)
    with pytest.raises(
        UserError, match=r"executor.gpus_per_cell is 1000.0, but no machine of the Ray cluster has more"
    ):
        run_jobs(jobs_of(tmp_path, ("a", die, (), ())), wanted, Events())


def test_ray_that_is_not_installed_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "ray", None)  # makes its import fail
    with pytest.raises(UserError, match=r"ray is not installed: pip install 'bnood\[ray\]'"):
        run_jobs(jobs_of(tmp_path, ("a", die, (), ())), options("ray"), Events())


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ({"workers": 0}, "executor.workers is 0"),
        ({"kind": "processes", "threads_per_worker": 0}, "executor.threads_per_worker is 0"),
        ({"kind": "processes", "gpus_per_cell": 0.5}, "executor.gpus_per_cell is for executor.kind ray alone"),
        ({"ray_address": "auto"}, "executor.ray_address is for executor.kind ray alone"),
        ({"kind": "ray", "gpus_per_cell": -1.0}, "executor.gpus_per_cell is -1.0"),
    ],
)
def test_options_that_make_no_sense(given: dict, words: str) -> None:
    with pytest.raises(UserError) as error:
        ExecutorOptions(**given)
    assert words in str(error.value)
