"""Jobs in this process and in processes: surroundings, failures, signals."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from bnood.errors import UserError
from bnood.study.execution import Job, run_jobs
from bnood.study.options import ExecutorOptions

# Where workers find this file's functions and the project.
PATHS = os.pathsep.join([str(Path(__file__).parent), str(Path(__file__).parents[2])])


def describe(file: Path) -> None:
    print("describing")
    file.write_text(f"{os.getcwd()} {torch.get_num_threads()} {torch.get_float32_matmul_precision()}")


def fail(error: Exception) -> None:
    raise error


def die() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def sleep_long(own: Path) -> None:
    own.write_text(str(os.getpid()))
    time.sleep(60)


def sleeping_study() -> None:
    folder = Path(sys.argv[1])
    run_jobs(jobs_of(folder, ("a", sleep_long, folder / "process")), ExecutorOptions("loky", workers=2))


def jobs_of(folder: Path, *parts: tuple) -> list[Job]:
    return [Job(name, call, tuple(arguments), folder / f"{name}.log") for name, call, *arguments in parts]


@pytest.mark.parametrize("backend", ["sequential", "loky"])
def test_all_backends_run_jobs_in_the_same_surroundings(
    backend: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PYTHONPATH", PATHS)
    out = tmp_path / "out"
    parts = [("first", describe, out), ("refused", fail, UserError("svhn: no\nsuch set")),
             ("broken", fail, ZeroDivisionError("of all things"))]  # fmt: skip
    torch.set_float32_matmul_precision("medium")  # as a training in this process might have left it
    options = ExecutorOptions(backend, workers=2, threads_per_worker=2)  # type: ignore[arg-type]
    try:
        failed = run_jobs(jobs_of(tmp_path, *parts), options)
    finally:
        torch.set_float32_matmul_precision("highest")
        torch.set_num_threads(1)
    assert out.read_text() == f"{tmp_path} 2 highest"
    assert failed == {
        "refused": "svhn: no such set",
        "broken": f"ZeroDivisionError: of all things (traceback in {tmp_path / 'broken.log'})",
    }
    assert "in fail" in (tmp_path / "broken.log").read_text()
    assert (tmp_path / "first.log").read_text() == "describing\n"
    assert (tmp_path / "refused.log").read_text() == "error: svhn: no such set\n"
    told = capsys.readouterr().out.splitlines()
    assert len(told) == 3 and any(line.endswith("] first: done in 0:00") for line in told)


def test_a_worker_that_is_killed_is_one_line(tmp_path: Path) -> None:
    words = r"a worker process was killed \(out of memory\?\) .* not done: killed; the same"
    with pytest.raises(UserError, match=words):
        run_jobs(jobs_of(tmp_path, ("killed", die)), ExecutorOptions("loky", workers=2))


def test_a_worker_that_starts_when_its_study_is_gone_ends_too() -> None:
    code = "import time; from bnood.study.execution import become_worker; become_worker(0); time.sleep(600)"
    assert subprocess.run([sys.executable, "-c", code], env=os.environ | {"PYTHONPATH": PATHS}).returncode == 1


@pytest.mark.parametrize(("number", "status"), [(signal.SIGKILL, -9), (signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_workers_end_with_the_study(number: signal.Signals, status: int, tmp_path: Path) -> None:
    imports = "from bnood.errors import run_door\nfrom test_execution import sleeping_study\n"
    (tmp_path / "main.py").write_text(f"{imports}if __name__ == '__main__':\n    run_door(sleeping_study)\n")
    command = [sys.executable, str(tmp_path / "main.py"), str(tmp_path)]
    study = subprocess.Popen(command, env=os.environ | {"PYTHONPATH": PATHS}, stderr=subprocess.PIPE, text=True)
    file = tmp_path / "process"
    wait_until(lambda: file.exists() and file.read_text() != "")
    study.send_signal(number)
    errors = study.communicate(timeout=60)[1]
    assert study.returncode == status
    assert number == signal.SIGKILL or errors.splitlines() == [{130: "interrupted", 143: "terminated"}[status]]
    status = Path("/proc", file.read_text(), "status")  # of a worker; Z: it has ended and waits to be asked about
    wait_until(lambda: not status.exists() or "State:\tZ" in status.read_text())


def wait_until(condition: Callable[[], bool]) -> None:
    until = time.monotonic() + 120
    while not condition():
        assert time.monotonic() < until
        time.sleep(0.05)
