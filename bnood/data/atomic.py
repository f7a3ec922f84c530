"""Files and folders that are written as a whole or not at all, and the lock on a run's folder.

What is being written lies beside its place under a hidden name. What a killed process left, the next one removes.
"""

import fcntl
import os
import platform
import re
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from bnood.errors import UserError

_HOST = re.sub(r"[^A-Za-z0-9-]", "-", platform.node()) or "host"


def write_beside(target: Path, write: Callable[[Path], object]) -> None:
    """Let ``write`` fill a file beside ``target``, then rename it; on an error it goes. UserError for OSError."""
    partial = _beside(target, "partial")
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        _remove_remains(target, "partial")
        write(partial)
        partial.replace(target)
    except OSError as error:
        raise UserError(f"{target} can't be written: {error.strerror or error}") from error
    finally:
        with suppress(OSError):  # where the folder may not be entered: this error would hide the one that says so
            partial.unlink(missing_ok=True)


def check_replaceable(folder: Path) -> None:
    """Raise ``UserError`` for a folder that holds other files than an evaluation: it would be replaced as a whole."""
    ours = any((folder / name).exists() for name in ("evaluation.json", "table.csv"))
    if folder.is_dir() and any(folder.iterdir()) and not ours:
        raise UserError(f"{folder} holds other files, and would be replaced: give a new folder for the evaluation")


@contextmanager
def staged_folder(final: Path) -> Iterator[Path]:
    """Yield an empty folder beside ``final``; on success it takes ``final``'s place, on any error it is removed.

    What was in ``final`` before stays until everything new is written. UserError if ``final`` is a file or may not be
    written, the disk is full, and for every ``UserError`` inside, which then names files in ``final``.
    """
    final = final.resolve() if final.name in ("", "..") else final  # such as a folder "."
    beside, old = _beside(final, "partial"), _beside(final, "old")
    try:
        # Renames would replace a file, and a folder that its owner has closed to writing.
        if final.exists() and not final.is_dir():
            raise FileExistsError(0, "File exists")
        if final.exists() and not os.access(final, os.W_OK | os.X_OK):
            raise PermissionError(0, "Permission denied")
        final.parent.mkdir(parents=True, exist_ok=True)
        if not final.exists():
            for left in _remains(final, "old")[:1]:  # its process was killed between the two renames
                left.replace(final)
        _remove_remains(final, "partial", "old")
        beside.mkdir()
        yield beside
        if final.exists():
            final.replace(old)
        beside.replace(final)
        shutil.rmtree(old, ignore_errors=True)
    except UserError as error:
        raise UserError(str(error).replace(str(beside), str(final))) from error
    except OSError as error:
        raise UserError(f"{final} cannot be written ({error.strerror or error}); earlier files are kept") from error
    finally:
        with suppress(OSError):
            if old.exists() and not final.exists():  # stopped between the two renames
                old.replace(final)
        shutil.rmtree(beside, ignore_errors=True)


@contextmanager
def locked(folder: Path, what: str) -> Iterator[None]:
    """Hold the one lock on a folder, which is made if needed; a kill frees it. UserError if another process has it."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        descriptor = os.open(folder, os.O_RDONLY)
    except OSError as error:
        raise UserError(f"{folder} can't be written: {error.strerror}") from error
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise UserError(f"{folder}: {what}; wait for it, stop it, or choose another --name") from None
        except OSError:
            pass  # a file system without locks
        yield
    finally:
        os.close(descriptor)


def _beside(target: Path, kind: str) -> Path:
    """The end of the name stays, because pandas and numpy go by it."""
    return target.with_name(f".{kind}-{_HOST}-{os.getpid()}.{target.name}")


def _remains(target: Path, kind: str) -> list[Path]:
    """What processes of this host that do not run any more (or had this one's number) left beside a place."""
    pattern = re.compile(rf"\.{kind}-{re.escape(_HOST)}-(\d+)\.{re.escape(target.name)}")
    matches = ((path, pattern.fullmatch(path.name)) for path in target.parent.iterdir())
    return [path for path, match in matches if match and not _is_another(int(match[1]))]


def _remove_remains(target: Path, *kinds: str) -> None:
    for path in (path for kind in kinds for path in _remains(target, kind)):
        if path.is_dir():
            shutil.rmtree(path, ignore_errors=True)
        else:
            path.unlink(missing_ok=True)


def _is_another(process: int) -> bool:
    try:
        os.kill(process, 0)
    except OSError as error:
        return isinstance(error, PermissionError)  # another user's
    return process != os.getpid()
