"""The one kind of error that the user can mend: shown as a single line, without a traceback."""

import sys
from collections.abc import Iterator
from contextlib import contextmanager


class UserError(ValueError):
    """Something the user gave is wrong; the message says what, where, and what would be right."""


@contextmanager
def one_line_errors() -> Iterator[None]:
    """Turn what a user can mend into one line on standard error and exit status 2 (interrupted: 130).

    Bad input is a :class:`UserError`; a full disk, a missing permission and the like are an :class:`OSError` that
    names its file. Anything else is a defect of the program and keeps its traceback.
    """
    try:
        yield
    except UserError as error:
        _exit(" ".join(str(error).split()))
    except OSError as error:
        if error.filename is None and error.strerror is None:
            raise
        where = "" if error.filename is None else f"{error.filename}: "
        _exit(f"{where}{error.strerror}")
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        raise SystemExit(130) from None


def _exit(message: str) -> None:
    print(f"error: {message}", file=sys.stderr)
    raise SystemExit(2) from None
