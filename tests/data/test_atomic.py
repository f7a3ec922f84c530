"""Files and folders are written as a whole or not at all: real files, a real full disk, real kills."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
from refusal import files_up_to

from bnood.data import atomic
from bnood.data.atomic import locked, staged_folder, write_beside
from bnood.errors import UserError


def content(folder: Path) -> dict[str, str]:
    """All files below a folder, hidden ones too."""
    return {str(path.relative_to(folder)): path.read_text() for path in folder.rglob("*") if path.is_file()}


@pytest.fixture
def final(tmp_path: Path) -> Path:
    folder = tmp_path / "run" / "ood"
    (folder / "figures").mkdir(parents=True)
    (folder / "table.csv").write_text("old table")
    (folder / "figures" / "a.png").write_text("old figure")
    return folder


@pytest.mark.parametrize("error", [KeyboardInterrupt, UserError])
def test_an_error_inside_leaves_the_old_folder_and_names_it(final: Path, error: type[BaseException]) -> None:
    before = content(final.parent)
    with pytest.raises(error, match=f"{final / 'table.csv'} is wrong"), staged_folder(final) as beside:
        (beside / "table.csv").write_text("half")
        raise error(f"{(beside if error is UserError else final) / 'table.csv'} is wrong")
    assert content(final.parent) == before and list(final.parent.iterdir()) == [final]


def test_a_full_disk_leaves_the_old_folder_and_is_one_line(final: Path) -> None:
    before = content(final.parent)
    with files_up_to(4096), pytest.raises(UserError) as raised, staged_folder(final) as beside:
        (beside / "table.csv").write_text("new table")
        (beside / "scores.parquet").write_bytes(bytes(10_000))
    assert content(final.parent) == before and list(final.parent.iterdir()) == [final]
    assert str(raised.value) == f"{final} cannot be written (File too large); earlier files are kept"


def killed_process() -> int:
    """The number of a process that does not run any more."""
    with subprocess.Popen(["sleep", "600"]) as process:
        process.kill()
    return process.pid


def left_behind(final: Path, kind: str, process: int) -> Path:
    return final.with_name(atomic._beside(final, kind).name.replace(str(os.getpid()), str(process)))


def test_what_killed_processes_left_is_removed_and_what_others_write_is_kept(final: Path) -> None:
    dead, other = killed_process(), os.getppid()
    for kind, process in (("partial", dead), ("old", dead), ("partial", other)):
        left_behind(final, kind, process).mkdir()
    file = final.parent / "metrics.csv"
    left = {process: left_behind(file, "partial", process) for process in (dead, other)}
    for path in left.values():
        path.write_text("half")
    with staged_folder(final) as beside:
        assert list(beside.iterdir()) == []
        (beside / "table.csv").write_text("new table")
        assert content(final) == {"table.csv": "old table", "figures/a.png": "old figure"}
    write_beside(file, lambda path: path.write_text("all"))
    assert content(final) == {"table.csv": "new table"}
    names = {left_behind(final, "partial", other).name, left[other].name, "ood", "metrics.csv"}
    assert {path.name for path in final.parent.iterdir()} == names


def test_the_lock_is_freed_by_a_kill_and_leaves_no_file(tmp_path: Path) -> None:
    code = "import sys, time; from pathlib import Path; from bnood.data.atomic import locked\n"
    code += "with locked(Path(sys.argv[1]), ''): print(1, flush=True); time.sleep(600)"
    with subprocess.Popen([sys.executable, "-c", code, str(tmp_path)], stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        process.stdout.readline()
        refused = pytest.raises(UserError, match=f"{tmp_path}: another training writes to it; ")
        with refused, locked(tmp_path, "another training writes to it"):
            pytest.fail("the other process holds the lock")
        process.kill()
    with locked(tmp_path, "another training writes to it"):
        assert list(tmp_path.iterdir()) == []


def test_write_beside_renames_when_all_is_written_and_else_keeps_the_old_file(tmp_path: Path) -> None:
    target = tmp_path / "file.csv"
    target.write_text("old")

    errors = iter([OSError(28, "No space left on device"), KeyboardInterrupt()])

    def failing(path: Path) -> None:
        path.write_text("new")
        assert path.parent == tmp_path and path.suffix == ".csv" and target.read_text() == "old"
        raise next(errors)

    for expected in (UserError, KeyboardInterrupt):
        with pytest.raises(expected, match=r"file.csv can't be written: No space|^$"):
            write_beside(target, failing)
        assert content(tmp_path) == {"file.csv": "old"}
    write_beside(target, lambda path: path.write_text("new"))
    assert content(tmp_path) == {"file.csv": "new"}
