"""What a user sees where a script refuses to go on, and a full disk."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from bnood.errors import run_door


def refusal(door: Callable[[list[str]], object], arguments: list[str], capsys: pytest.CaptureFixture[str]) -> str:
    """Run a script's function as the script does; the one line on standard error that it has to end with."""
    capsys.readouterr()
    with pytest.raises(SystemExit) as stopped:
        run_door(lambda: door(arguments))
    captured = capsys.readouterr()
    assert stopped.value.code == 2
    assert "Traceback" not in captured.out + captured.err
    assert captured.err.startswith("error: ") and captured.err.count("\n") == 1, captured.err
    return captured.err.rstrip("\n")


def tree(folder: Path) -> dict[str, bytes | None]:
    """All that is in a folder: the content of its files, None for folders."""
    return {str(path.relative_to(folder)): path.read_bytes() if path.is_file() else None for path in folder.rglob("*")}


@contextmanager
def files_up_to(size: int) -> Iterator[None]:
    """Inside, writing beyond ``size`` bytes fails with ``OSError``; keep it short, for pytest's own log counts too."""
    resource = pytest.importorskip("resource")  # not on Windows
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
