"""A folder that is written as a whole or not at all."""

import errno
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from bnood.errors import UserError


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
    beside = final.with_name(f".{final.name}.{os.getpid()}.partial")
    try:
        _check_writable(final)
        final.parent.mkdir(parents=True, exist_ok=True)
        shutil.rmtree(beside, ignore_errors=True)  # of a killed process that had the same number
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
    old = final.with_name(f".{final.name}.{os.getpid()}.old")
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
