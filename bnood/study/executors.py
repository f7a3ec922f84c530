"""Jobs that depend on one another, one after the other, in parallel processes, or on a Ray cluster.

A job is a function of an importable module and its arguments. All three ways run it in the same surroundings
(:func:`perform`: threads of torch, precision of matrix products, output into a log), so that they give the same results
bit for bit. A job that fails ends with one line; jobs that need it are left out, all others go on.
"""

import contextlib
import logging
import multiprocessing
import os
import signal
import threading
import time
import traceback
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from multiprocessing.connection import Connection, wait
from pathlib import Path
from typing import Any, Literal, Protocol

import torch

from bnood.errors import UserError

PAUSE = 0.2  # seconds between two looks at what runs


@dataclass
class ExecutorOptions:
    """Where the cells of a study run.

    Args:
        kind: ``serial`` (in this process), ``processes`` (on this machine) or ``ray``.
        workers: how many cells run at a time; ``serial`` runs one at a time whatever it is.
        threads_per_worker: torch's threads for each of them. Sums in another order differ in the last bits, so runs
            are the same bit for bit with the same number alone.
        gpus_per_cell: share of a GPU that Ray reserves for each cell, for instance 0.5; for ``ray`` alone.
        ray_address: of a Ray cluster that runs already (``auto`` finds the one of this machine); none: a cluster of
            this machine's own for the time of the study. All its machines need the folder of the runs and of the
            data sets under the same path.
    """

    kind: Literal["serial", "processes", "ray"] = "serial"
    workers: int = 1
    threads_per_worker: int = 1
    gpus_per_cell: float = 0.0
    ray_address: str | None = None

    def __post_init__(self) -> None:
        for name in ("workers", "threads_per_worker"):
            if getattr(self, name) < 1:
                raise UserError(f"executor.{name} is {getattr(self, name)}; it has to be at least 1")
        if self.gpus_per_cell < 0:
            raise UserError(f"executor.gpus_per_cell is {self.gpus_per_cell}; expected 0 or a number above it")
        for name, unset in (("gpus_per_cell", 0.0), ("ray_address", None)):
            if self.kind != "ray" and getattr(self, name) != unset:
                raise UserError(f"executor.{name} is for executor.kind ray alone; it is {self.kind}")


@dataclass(frozen=True)
class Job:
    """A function to call.

    Attributes:
        name: unlike that of any other job.
        call: a function of an importable module.
        arguments: its arguments, which can be pickled.
        log: where its output goes.
        after: names of the jobs that have to succeed first.
    """

    name: str
    call: Callable[..., object]
    arguments: tuple[Any, ...]
    log: Path
    after: tuple[str, ...] = ()


@dataclass(frozen=True)
class Outcome:
    """How a job ended.

    Attributes:
        error: the one line that says what was wrong; None if it succeeded.
        seconds: that it took.
        left_out: whether it never ran, because a job that it needs failed.
    """

    error: str | None
    seconds: float
    left_out: bool = False


class Watch(Protocol):
    """Who is told what becomes of the jobs."""

    def started(self, job: Job) -> None: ...

    def ended(self, job: Job, outcome: Outcome) -> None: ...


class Pool(Protocol):
    """Something that runs jobs."""

    def submit(self, job: Job) -> None: ...

    def finished(self) -> list[tuple[str, Outcome]]: ...

    def close(self) -> None: ...


def run_jobs(jobs: Sequence[Job], options: ExecutorOptions, watch: Watch) -> dict[str, Outcome]:
    """Run jobs, those that stand first in the list first, and give how each ended.

    Raises:
        UserError: if Ray is asked for and not installed, or its cluster lacks what a cell needs.
    """
    by_name = {job.name: job for job in jobs}
    assert len(by_name) == len(jobs) and all(name in by_name for job in jobs for name in job.after)
    outcomes: dict[str, Outcome] = {}
    at_a_time = 1 if options.kind == "serial" else options.workers
    waiting, running = list(jobs), set[str]()

    def end(name: str, outcome: Outcome) -> None:
        outcomes[name] = outcome
        watch.ended(by_name[name], outcome)

    pool = _pool(options)
    try:
        while waiting or running:
            for job in list(waiting):
                failed = [name for name in job.after if name in outcomes and outcomes[name].error]
                if failed:
                    waiting.remove(job)
                    end(job.name, Outcome(f"left out, because it needs {failed[0]}", 0.0, left_out=True))
                elif len(running) < at_a_time and all(name in outcomes for name in job.after):
                    waiting.remove(job)
                    running.add(job.name)
                    watch.started(job)
                    pool.submit(job)
            for name, outcome in pool.finished() if running else []:
                running.remove(name)
                end(name, outcome)
    finally:
        pool.close()
    return outcomes


def _pool(options: ExecutorOptions) -> Pool:
    if options.kind == "ray":
        return _RayCluster(options)
    return _Processes(options) if options.kind == "processes" else _Serial(options)


def perform(
    call: Callable[..., object], arguments: tuple[Any, ...], log: Path, threads: int, folder: str | None = None
) -> Outcome:
    """Call a job's function in the surroundings that all jobs have.

    Args:
        call: the function.
        arguments: its arguments.
        log: a file that its output is appended to.
        threads: of torch.
        folder: the working directory; none: as it is.

    Raises:
        KeyboardInterrupt: if the job was interrupted, also where Lightning has made ``SystemExit`` of it.
    """
    began, error = time.perf_counter(), None
    if folder is not None:
        os.chdir(folder)
    log.parent.mkdir(parents=True, exist_ok=True)
    with (
        log.open("a", buffering=1) as output,
        _torch_settings(threads),
        contextlib.redirect_stdout(output),
        contextlib.redirect_stderr(output),
    ):
        try:
            call(*arguments)
        except UserError as problem:
            error = " ".join(str(problem).split())
        # A defect of the program in one cell must not cost the others: its traceback goes to the log.
        except (Exception, SystemExit) as problem:
            if isinstance(problem.__context__, KeyboardInterrupt):  # Lightning ends a training that way
                raise problem.__context__ from None
            traceback.print_exc()
            error = f"{type(problem).__name__}: {' '.join(str(problem).split())} (traceback in {log})"
        if error:
            print(f"error: {error}")
    return Outcome(error, time.perf_counter() - began)


@contextlib.contextmanager
def _torch_settings(threads: int) -> Iterator[None]:
    """The state in which a process starts, but for the number of threads; put back after."""
    before, precision = torch.get_num_threads(), torch.get_float32_matmul_precision()
    torch.set_num_threads(threads)
    torch.set_float32_matmul_precision("highest")
    try:
        yield
    finally:
        torch.set_num_threads(before)
        torch.set_float32_matmul_precision(precision)


class _Serial:
    """Each job in this process, when it is submitted."""

    def __init__(self, options: ExecutorOptions) -> None:
        self.threads = options.threads_per_worker
        self.done: list[tuple[str, Outcome]] = []

    def submit(self, job: Job) -> None:
        self.done.append((job.name, perform(job.call, job.arguments, job.log, self.threads)))

    def finished(self) -> list[tuple[str, Outcome]]:
        done, self.done = self.done, []
        return done

    def close(self) -> None:
        pass


BEGAN = "began"  # what a worker sends when it has taken a job


@dataclass
class _Worker:
    process: Any
    pipe: Connection
    job: Job | None = None
    since: float = 0.0
    began: bool = False
    jobs: int = 0


class _Processes:
    """Processes that are kept between jobs; one that dies takes its job alone with it.

    (concurrent.futures gives up all jobs when one of its processes is killed.)
    """

    def __init__(self, options: ExecutorOptions) -> None:
        self.threads = options.threads_per_worker
        self.context = multiprocessing.get_context("spawn")  # a fork of a process with threads can hang
        self.workers: list[_Worker] = []

    def submit(self, job: Job) -> None:
        for worker in [worker for worker in self.workers if worker.job is None and not worker.process.is_alive()]:
            self._remove(worker)  # killed while it had nothing to do
        idle = [worker for worker in self.workers if worker.job is None]
        worker = idle[0] if idle else self._new_worker()
        worker.job, worker.since, worker.began = job, time.perf_counter(), False
        worker.jobs += 1
        with contextlib.suppress(BrokenPipeError, ConnectionResetError):  # it died just now, which finished() finds
            worker.pipe.send((job.call, job.arguments, job.log, self.threads))

    def finished(self) -> list[tuple[str, Outcome]]:
        busy = {worker.pipe: worker for worker in self.workers if worker.job is not None}
        done = []
        for pipe in wait(list(busy), timeout=PAUSE):
            worker = busy[pipe]  # type: ignore[index]
            assert worker.job is not None
            job = worker.job
            try:
                outcome = worker.pipe.recv()
            except (EOFError, OSError):
                if worker.jobs > 1 and not worker.began:
                    # It was killed while it had nothing to do, though it still looked alive: another one does the job.
                    self._remove(worker)
                    self.submit(job)
                    continue
                outcome = self._died(worker)
            if outcome == BEGAN:
                worker.began = True
                continue
            done.append((job.name, outcome))
            worker.job = None
        return done

    def close(self) -> None:
        for worker in self.workers:
            if worker.job is not None:
                worker.process.terminate()
            worker.pipe.close()  # the end of the file is what an idle worker ends at
        for worker in self.workers:
            worker.process.join()

    def _new_worker(self) -> _Worker:
        ours, theirs = self.context.Pipe()
        with _environment(OMP_NUM_THREADS=str(self.threads)):  # read when torch is imported
            process = self.context.Process(target=_work, args=(theirs,), daemon=True)
            process.start()
        theirs.close()
        self.workers.append(_Worker(process, ours))
        return self.workers[-1]

    def _remove(self, worker: _Worker) -> None:
        worker.process.join()
        self.workers.remove(worker)
        worker.pipe.close()

    def _died(self, worker: _Worker) -> Outcome:
        self._remove(worker)
        code = worker.process.exitcode
        reason = f"by signal {-code} ({signal.Signals(-code).name})" if code < 0 else f"with exit status {code}"
        assert worker.job is not None
        hint = "; is there enough memory?" if code == -signal.SIGKILL else ""
        error = f"its process was ended {reason}{hint} (output in {worker.job.log})"
        return Outcome(error, time.perf_counter() - worker.since)


def _work(pipe: Connection) -> None:
    """A worker: jobs come through the pipe, outcomes go back, until its other end is closed."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C ends the parent, which ends its workers
    threading.Thread(target=_end_with_parent, daemon=True).start()
    while True:
        try:
            call, arguments, log, threads = pipe.recv()
        except EOFError:
            return
        pipe.send(BEGAN)
        log.parent.mkdir(parents=True, exist_ok=True)
        # Also for what does not go through Python's own streams, such as warnings of libraries in C.
        with log.open("a") as output:
            os.dup2(output.fileno(), 1)
            os.dup2(output.fileno(), 2)
        pipe.send(perform(call, arguments, log, threads))


def _end_with_parent() -> None:
    """End this process when the one that started it is gone: killed, it can end nobody itself."""
    parent = multiprocessing.parent_process()
    assert parent is not None
    wait([parent.sentinel])
    os._exit(1)


@contextlib.contextmanager
def _environment(**variables: str) -> Iterator[None]:
    """Set variables of the environment, for processes that are started inside."""
    before = {name: os.environ.get(name) for name in variables}
    os.environ.update(variables)
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                del os.environ[name]
            else:
                os.environ[name] = value


class _RayCluster:
    """Jobs as tasks of a Ray cluster: https://docs.ray.io/en/latest/ray-core/tasks.html"""

    def __init__(self, options: ExecutorOptions) -> None:
        os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")  # no report to anybody
        # Without it, a task that needs no GPU finds none: https://docs.ray.io/en/latest/ray-core/scheduling/accelerators.html
        os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
        try:
            import ray
        except ImportError as error:
            raise UserError("executor.kind is ray, but ray is not installed: pip install 'bnood[ray]'") from error
        self.ray, self.threads = ray, options.threads_per_worker
        own: dict[str, Any] = {"num_cpus": options.workers * options.threads_per_worker, "include_dashboard": False}
        try:
            ray.init(
                address=options.ray_address or "local",
                log_to_driver=False,
                logging_level=logging.ERROR,
                **({} if options.ray_address else own),
            )
        except (ConnectionError, RuntimeError, ValueError) as error:
            text = " ".join(str(error).split())
            raise UserError(f"executor.ray_address {options.ray_address}: no Ray cluster answers ({text})") from error
        self.running: dict[Any, tuple[Job, float]] = {}
        self._check_resources(options)
        # A failed job is reported, not tried again: what fails for its input fails twice, at twice the cost.
        self.perform = ray.remote(num_cpus=options.threads_per_worker, num_gpus=options.gpus_per_cell, max_retries=0)(
            perform
        )

    def _check_resources(self, options: ExecutorOptions) -> None:
        """Refuse what no machine of the cluster has: Ray would wait for it without end."""
        for name, key, wanted in (
            ("GPU", "gpus_per_cell", options.gpus_per_cell),
            ("CPU", "threads_per_worker", options.threads_per_worker),
        ):
            most = max(node["Resources"].get(name, 0.0) for node in self.ray.nodes() if node["Alive"])
            if wanted > most:
                self.close()
                raise UserError(f"executor.{key} is {wanted}, but no machine of the Ray cluster has more than {most:g}")

    def submit(self, job: Job) -> None:
        reference = self.perform.remote(job.call, job.arguments, job.log, self.threads, os.getcwd())
        self.running[reference] = (job, time.perf_counter())

    def finished(self) -> list[tuple[str, Outcome]]:
        done, _ = self.ray.wait(list(self.running), num_returns=1, timeout=PAUSE)
        found = []
        for reference in done:
            job, since = self.running.pop(reference)
            try:
                outcome = self.ray.get(reference)
            except self.ray.exceptions.RayError as error:
                line = " ".join(str(error).split())[:200]
                outcome = Outcome(f"Ray: {line} (output in {job.log})", time.perf_counter() - since)
            found.append((job.name, outcome))
        return found

    def close(self) -> None:
        self.ray.shutdown()
