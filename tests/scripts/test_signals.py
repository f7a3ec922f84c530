"""SIGTERM and Ctrl-C to evaluation, study and lab: one line, the exit status, no partial folder, no process left."""

import multiprocessing.util
import os
import signal
import sys
import time
import traceback
from collections.abc import Callable
from functools import partial
from pathlib import Path

import pytest
from eval_ood import main as evaluate
from joblib.externals.loky import get_reusable_executor
from lab import main as lab
from study import main as study
from tiny_runs import copy_of_run, evaluation_arguments
from tiny_study import TRAINING, lab_config, study_config

from bnood.errors import run_door

LONG = 1_000_000  # epochs or shuffles: the signal ends them
Program = tuple[Callable[[list[str]], object], list[str], Callable[[], bool]]


def evaluation(folder: Path) -> Program:
    run = copy_of_run(folder / "runs" / "bn")
    arguments = evaluation_arguments("--run", str(run), "--runs", str(folder / "runs"), "--shuffles", str(LONG))
    arguments.remove("--no-wandb")
    return evaluate, arguments, lambda: any(run.glob("wandb/offline-run-*/*.wandb"))


def study_in(backend: str, workers: int, folder: Path) -> Program:
    recipe = TRAINING | {"trainer": TRAINING["trainer"] | {"max_epochs": LONG}}
    config = study_config(folder, recipe, {"overrides": {}}, executor={"backend": backend, "workers": workers})
    return study, ["--config", str(config)], (folder / "runs/tiny/bn-s0/checkpoints/last.ckpt").exists


def lab_in(workers: int, folder: Path) -> Program:
    config, began = lab_config(folder, grid={"epochs": LONG}, workers=workers), folder / "stdout"
    return lab, ["--config", str(config)], lambda: began.exists() and "4 to train" in began.read_text()


PROGRAMS = {
    "evaluation": evaluation,
    "study": partial(study_in, "sequential", 1), "study in processes": partial(study_in, "loky", 2),
    "lab": partial(lab_in, 1), "lab in processes": partial(lab_in, 2),
}  # fmt: skip


def in_session(session: int) -> list[str]:
    """The processes of a session that run; one that has ended and waits to be asked about does not."""
    found = []
    for process in Path("/proc").glob("[0-9]*"):
        try:
            state, _, _, owner = (process / "stat").read_text().rpartition(")")[2].split()[:4]
            if int(owner) == session and state != "Z":
                found.append((process / "cmdline").read_text())
        except OSError:
            continue
    return found


def until(condition: Callable[[], bool]) -> bool:
    for _ in range(6000):
        if condition():
            return True
        time.sleep(0.05)
    return False


@pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="needs /proc")
@pytest.mark.parametrize(("number", "status", "line"), [(15, 143, "terminated"), (2, 130, "interrupted")])
@pytest.mark.parametrize("program", PROGRAMS.values(), ids=PROGRAMS)
def test_a_signal_is_one_line_and_leaves_nothing_behind(
    program: Callable[[Path], Program], number: int, status: int, line: str, tmp_path: Path
) -> None:
    main, arguments, ready = program(tmp_path)
    get_reusable_executor().shutdown(wait=True)  # of an earlier test; its threads would be missing in a fork
    child = os.fork()
    if child == 0:
        os.setsid()
        for descriptor, name in ((1, "stdout"), (2, "stderr")):
            os.dup2(os.open(tmp_path / name, os.O_WRONLY | os.O_CREAT | os.O_APPEND), descriptor)
        sys.stdout, sys.stderr = (os.fdopen(each, "w", buffering=1, closefd=False) for each in (1, 2))
        signal.signal(signal.SIGINT, signal.default_int_handler)
        try:
            run_door(lambda: main(arguments))
        except SystemExit as ended:
            multiprocessing.util._run_finalizers()  # as the interpreter does at its end; semaphores leak without
            os._exit(ended.code if isinstance(ended.code, int) else 1)
        except BaseException:
            traceback.print_exc()
        finally:
            os._exit(99)
    try:
        assert until(ready), (tmp_path / "stderr").read_text()
        # A terminal sends Ctrl-C to all processes of the program, and users press it twice.
        for send in (os.killpg, os.killpg) if number == signal.SIGINT else (os.kill,):
            send(child, number)
        found = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
        printed = (tmp_path / "stderr").read_text()
        assert (printed, found) == (f"{line}\n", status), printed
        assert until(lambda: not in_session(child)), in_session(child)
    finally:
        if in_session(child):
            os.killpg(child, signal.SIGKILL)
    assert [path for path in tmp_path.rglob(".*") if path.name.startswith((".partial", ".old"))] == []
    assert not list(tmp_path.rglob("ood")) and not list(tmp_path.rglob("lab.parquet"))
