"""How every script ends when something goes wrong."""

import errno
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from bnood.errors import UserError, run_door


@pytest.fixture(autouse=True)
def handlers() -> Iterator[None]:
    before = signal.getsignal(signal.SIGTERM)
    yield
    signal.signal(signal.SIGTERM, before)


def status_and_line(error: BaseException, capsys: pytest.CaptureFixture[str]) -> tuple[object, str]:
    def main() -> None:
        raise error

    with pytest.raises(SystemExit) as stopped:
        run_door(main)
    out, err = capsys.readouterr()
    assert out == ""
    assert err.count("\n") == 1
    return stopped.value.code, err


def test_what_a_user_can_fix_is_one_line(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    with pytest.raises(OSError) as missing:
        (tmp_path / "none").read_text()
    for error, line in (
        (UserError("[red]a[/red] is 3;\n   expected 4"), "[red]a[/red] is 3; expected 4"),
        (missing.value, f"{tmp_path / 'none'}: No such file or directory"),
        (OSError(errno.ENOSPC, os.strerror(errno.ENOSPC)), "No space left on device"),
    ):
        assert status_and_line(error, capsys) == (2, f"error: {line}\n")


def test_too_little_memory_is_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(RuntimeError) as full:
        torch.empty(2**60)
    for error in (full.value, MemoryError()):
        assert status_and_line(error, capsys)[1].startswith("error: not enough memory")


@pytest.mark.parametrize("error", [ValueError("a defect"), OSError("a defect"), RuntimeError("a defect")])
def test_defects_keep_their_traceback(error: Exception) -> None:
    def main() -> None:
        raise error

    with pytest.raises(type(error), match="a defect"):
        run_door(main)


DOOR = """
import multiprocessing, os, sys, time
from pathlib import Path
from bnood.errors import run_door

def child():
    print(os.getpid(), flush=True)
    time.sleep(600)

def main():
    multiprocessing.Process(target=child, daemon=False).start()
    try:
        time.sleep(600)
    finally:
        Path(sys.argv[1]).write_text("cleaned up")

run_door(main)
"""


@pytest.mark.parametrize(
    ("number", "status", "line"), [(signal.SIGTERM, 143, "terminated\n"), (signal.SIGINT, 130, "interrupted\n")]
)
def test_signals_clean_up_and_leave_no_child(number: int, status: int, line: str, tmp_path: Path) -> None:
    command = [sys.executable, "-c", DOOR, str(tmp_path / "mark")]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None and process.stderr is not None
        child = int(process.stdout.readline())
        process.send_signal(number)
        assert process.wait(60) == status
        assert process.stderr.read() == line
    assert (tmp_path / "mark").read_text() == "cleaned up"
    with pytest.raises(ProcessLookupError):
        os.kill(child, 0)
