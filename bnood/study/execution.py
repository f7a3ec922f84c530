"""Jobs in this process or in processes of this machine, through joblib.

Both give the same results bit for bit. A job that fails ends with one line, and all others go on.
"""

import contextlib
import os
import shutil
import threading
import time
import traceback
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import joblib
import torch
from joblib.externals.loky import get_reusable_executor
from joblib.externals.loky.process_executor import BrokenProcessPool

from bnood.errors import Terminated, UserError, deaf_to_ctrl_c
from bnood.study.options import ExecutorOptions


class Job(NamedTuple):
    """What to call, with what (all picklable), and where its output goes."""

    name: str
    call: Callable[..., object]
    arguments: tuple[Any, ...]
    log: Path


def run_jobs(jobs: Sequence[Job], options: ExecutorOptions) -> dict[str, str]:
    """Run jobs and print a line as each ends; gives, by name, the one line that says what was wrong with a job.

    Raises ``UserError`` if a worker process died, which ends the others too; what is finished is kept. On Ctrl-C and
    SIGTERM all workers have ended before the exception goes on.
    """
    threads, surroundings = options.threads_per_worker, (os.getpid(), options.threads_per_worker, os.getcwd())
    settings: dict[str, Any] = {"n_jobs": 1 if options.backend == "sequential" else options.workers}
    if options.backend == "loky":
        settings |= {"inner_max_num_threads": threads, "initializer": become_worker, "initargs": (os.getpid(),)}
    left, failed = [job.name for job in jobs], dict[str, str]()
    with joblib.parallel_config(options.backend, **settings):
        parallel = joblib.Parallel(return_as="generator_unordered", pre_dispatch="all", batch_size=1)
        try:
            with contextlib.nullcontext() if options.backend == "sequential" else deaf_to_ctrl_c():
                results = parallel(joblib.delayed(perform)(job, *surroundings) for job in jobs)  # starts the workers
            for name, error, seconds in results:
                left.remove(name)
                if error:
                    failed[name] = error
                shown = error or "done in {}:{:02d}".format(*divmod(round(seconds), 60))
                print(f"[{len(jobs) - len(left)}/{len(jobs)}] {name}: {shown}", flush=True)
        except BrokenProcessPool as error:
            text = f"a worker process was killed (out of memory?) while these were not done: {', '.join(left)}"
            raise UserError(f"{text}; the same command goes on") from error
        except BaseException:
            if options.backend == "loky":
                get_reusable_executor().shutdown(wait=True, kill_workers=True)
                for rest in jobs[0].log.parents[1].rglob(".partial-*"):  # what a worker was just writing
                    shutil.rmtree(rest) if rest.is_dir() else rest.unlink()
            raise
    return failed


def perform(job: Job, study: int, threads: int, folder: str) -> tuple[str, str, float]:
    """Call a job's function; its name, what was wrong, seconds. Other processes than ``study`` are workers."""
    began, error = time.perf_counter(), ""
    torch.set_num_threads(threads)
    torch.set_float32_matmul_precision("highest")  # an earlier training in this process may have changed it
    job.log.parent.mkdir(parents=True, exist_ok=True)
    with job.log.open("a", buffering=1) as output:
        if os.getpid() != study:
            os.chdir(folder)
            os.dup2(output.fileno(), 1)  # also for what libraries in C print
            os.dup2(output.fileno(), 2)
        with contextlib.redirect_stdout(output), contextlib.redirect_stderr(output):
            try:
                job.call(*job.arguments)
            except UserError as problem:
                error = " ".join(str(problem).split())
            except Terminated:
                raise
            # A defect of the program in one job must not cost the others: its traceback goes to the log.
            except (Exception, SystemExit) as problem:
                if isinstance(problem.__context__, KeyboardInterrupt):  # Lightning ends a training that way
                    raise problem.__context__ from None
                traceback.print_exc()
                error = f"{type(problem).__name__}: {' '.join(str(problem).split())} (traceback in {job.log})"
            if error:
                print(f"error: {error}")
    return job.name, error, time.perf_counter() - began


def become_worker(parent: int) -> None:
    """What a worker process does first: see to it that it ends when its parent is gone, even if that was killed."""

    def watch() -> None:
        while os.getppid() == parent:
            time.sleep(0.5)
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()
