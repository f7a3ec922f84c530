"""What the scripts print when something goes wrong."""

import errno
import os
from pathlib import Path

import pytest

from bnood.errors import UserError, one_line_errors


def status_and_line(error: BaseException, capsys: pytest.CaptureFixture[str]) -> tuple[object, str]:
    with pytest.raises(SystemExit) as stopped, one_line_errors():
        raise error
    out, err = capsys.readouterr()
    assert out == ""
    assert err.count("\n") == 1
    return stopped.value.code, err


def test_user_error_is_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    assert status_and_line(UserError("a is 3;\n   expected 4"), capsys) == (2, "error: a is 3; expected 4\n")


def test_system_errors_name_their_file(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    with pytest.raises(OSError) as missing:
        (tmp_path / "none").read_text()
    code, line = status_and_line(missing.value, capsys)
    assert code == 2
    assert line == f"error: {tmp_path / 'none'}: No such file or directory\n"
    full = OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
    assert status_and_line(full, capsys) == (2, "error: No space left on device\n")


def test_interrupt(capsys: pytest.CaptureFixture[str]) -> None:
    assert status_and_line(KeyboardInterrupt(), capsys) == (130, "interrupted\n")


@pytest.mark.parametrize("error", [ValueError("a defect"), OSError("a defect"), KeyError("a defect")])
def test_defects_keep_their_traceback(error: Exception) -> None:
    with pytest.raises(type(error), match="a defect"), one_line_errors():
        raise error


def test_nothing_happens_without_an_error() -> None:
    with one_line_errors():
        pass
    assert issubclass(UserError, ValueError)
