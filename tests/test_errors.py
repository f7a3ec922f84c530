"""How every script ends when something goes wrong."""

import errno
import os
import signal
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from bnood.errors import UserError, run_door


@pytest.fixture(autouse=True)
def handlers() -> Iterator[None]:
    before = [(number, signal.getsignal(number)) for number in (signal.SIGTERM, signal.SIGINT, signal.SIGALRM)]
    yield
    for each in before:
        signal.signal(*each)


def status_and_line(error: BaseException, capsys: pytest.CaptureFixture[str]) -> tuple[object, str]:
    def main() -> None:
        raise error

    with pytest.raises(SystemExit) as stopped:
        run_door(main)
    out, err = capsys.readouterr()
    assert out == "" and err.count("\n") == 1
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


SIGNALS = pytest.mark.parametrize(
    ("number", "line"), [(signal.SIGINT, "interrupted\n"), (signal.SIGTERM, "terminated\n")]
)


@SIGNALS
def test_a_signal_during_an_import_waits_until_no_library_can_swallow_it(
    number: int, line: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    code = f"import os\ntry:\n    os.kill(os.getpid(), {number:d})\nexcept BaseException:\n    pass\nwhole = 1\n"
    (tmp_path / f"swallows_{number}.py").write_text(code)
    monkeypatch.syspath_prepend(tmp_path)
    seen = list[int]()

    def main() -> None:
        seen.append(__import__(f"swallows_{number}").whole)
        time.sleep(60)

    with pytest.raises(SystemExit) as stopped:
        run_door(main)
    assert (stopped.value.code, capsys.readouterr().err, seen) == (128 + number, line, [1])


@SIGNALS
def test_a_signal_that_a_library_makes_another_error_of(number: int, line: str, capsys) -> None:
    def main() -> None:
        try:
            os.kill(os.getpid(), number)
        except BaseException as error:
            raise AttributeError("half imported") from error

    with pytest.raises(SystemExit) as stopped:
        run_door(main)
    assert (stopped.value.code, capsys.readouterr().err) == (128 + number, line)


@pytest.mark.parametrize("error", [ValueError("a defect"), OSError("a defect"), RuntimeError("a defect")])
def test_defects_keep_their_traceback(error: Exception) -> None:
    def main() -> None:
        raise error

    with pytest.raises(type(error), match="a defect"):
        run_door(main)
