"""Files and folders that are written as a whole or not at all, and the lock on a run's folder.

What is being written lies beside its final place under a hidden name that holds the host and the number of the process.
Where a process was killed, the next one that writes to the same place removes what is left.
"""

import errno
import os
import platform
import re
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from bnood.errors import UserError

try:
    import fcntl
except ImportError:  # Windows: two trainings of one name are not told apart there
    fcntl = None  # type: ignore[assignment]

_HOST = re.sub(r"[^A-Za-z0-9-]", "-", platform.node()) or "host"


def write_beside(target: Path, write: Callable[[Path], object]) -> None:
    """Let ``write`` fill a file beside ``target``, then rename it: a reader never sees half a file.

    If writing fails (disk full, no permission), nothing is left behind.

    Raises:
        UserError: naming the file and the reason that the system gave.
    """
    partial = _beside(target.parent, target.stem, f"partial{target.suffix}")
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        _remove_remains(target.parent, target.stem, f"partial{target.suffix}")
        write(partial)
        partial.replace(target)
    except OSError as error:
        raise UserError(f"{target} can't be written: {error.strerror or error}") from error
    finally:
        # Where the folder is none or may not be entered, there is nothing to remove, and unlink's own error would
        # hide the one that says so.
        with suppress(OSError):
            partial.unlink(missing_ok=True)


@contextmanager
def staged_folder(final: Path, what: str = "the evaluation") -> Iterator[Path]:
    """Yield an empty folder beside ``final``; on success it takes ``final``'s place, on any error it is removed.

    What was in ``final`` before stays untouched until everything new is written, and is removed afterwards: files of
    two evaluations never stand in one folder, whatever fails in between. Both steps are renames, which need no space.

    Args:
        final: the folder to be written, which may exist.
        what: is written, for messages.

    Raises:
        UserError: if ``final`` is a file or may not be written, the disk is full, and for every ``UserError`` inside,
            which then names files where the user knows them, in ``final``.
    """
    beside = _beside(final.parent, final.name, "partial")
    try:
        _check_writable(final)
        final.parent.mkdir(parents=True, exist_ok=True)
        _restore(final)
        for kind in ("partial", "old"):
            _remove_remains(final.parent, final.name, kind)
        beside.mkdir()
        yield beside
        _swap(beside, final)
    except UserError as error:
        raise UserError(str(error).replace(str(beside), str(final))) from error
    except OSError as error:
        reason = error.strerror or " ".join(str(error).split())
        raise UserError(f"{final}: {what} cannot be written there ({reason}); earlier files are kept") from error
    finally:
        shutil.rmtree(beside, ignore_errors=True)


@contextmanager
def locked(folder: Path, what: str) -> Iterator[None]:
    """Hold the one lock on an existing folder; a kill of any kind frees it, and no file is left.

    Raises:
        UserError: if another process holds it.
    """
    if fcntl is None:
        yield
        return
    descriptor = os.open(folder, os.O_RDONLY)
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


def _beside(folder: Path, name: str, kind: str) -> Path:
    return folder / f".{name}.{_HOST}-{os.getpid()}.{kind}"


def _of_dead_processes(folder: Path, name: str, kind: str) -> list[Path]:
    """What processes of this host that do not run any more (or had this one's number) left beside a place."""
    found = []
    pattern = re.compile(rf"\.{re.escape(name)}\.{re.escape(_HOST)}-(\d+)\.{re.escape(kind)}")
    for path in folder.iterdir():
        match = pattern.fullmatch(path.name)
        if match and (int(match[1]) == os.getpid() or not _runs(int(match[1]))):
            found.append(path)
    return found


def _remove_remains(folder: Path, name: str, kind: str) -> None:
    for path in _of_dead_processes(folder, name, kind):
        if path.is_dir():
            shutil.rmtree(path, ignore_errors=True)
        else:
            path.unlink(missing_ok=True)


def _runs(process: int) -> bool:
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    except OSError:
        return True  # it is another user's
    return True


def _restore(final: Path) -> None:
    """Undo half a swap: the process was killed between its two renames."""
    if not final.exists():
        for old in _of_dead_processes(final.parent, final.name, "old")[:1]:
            old.replace(final)


def _check_writable(final: Path) -> None:
    """Renames would replace a file, and a folder that its owner has closed to writing."""
    if not final.exists():
        return
    if not final.is_dir():
        raise FileExistsError(errno.EEXIST, os.strerror(errno.EEXIST), str(final))
    if not os.access(final, os.W_OK | os.X_OK, effective_ids=os.access in os.supports_effective_ids):
        raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), str(final))


def _swap(beside: Path, final: Path) -> None:
    """Put ``beside`` in the place of ``final``."""
    if not final.exists():
        beside.replace(final)
        return
    old = _beside(final.parent, final.name, "old")
    shutil.rmtree(old, ignore_errors=True)
    final.replace(old)
    try:
        beside.replace(final)
    except BaseException:
        with suppress(OSError):
            old.replace(final)
        raise
    # The new folder stands; that something of the old one may not be removed is no reason to fail.
    shutil.rmtree(old, ignore_errors=True)
