"""The one kind of error that the user can fix, and how every script ends: with one line instead of a traceback."""

import ctypes
import multiprocessing
import os
import signal
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from multiprocessing import resource_tracker
from types import FrameType

RECEIVED: list[int] = []  # signals


class UserError(ValueError):
    """Something the user gave is wrong; the message, one line, says what, where, and what would be right."""

    def __init__(self, message: str) -> None:
        super().__init__(" ".join(message.split()))  # other libraries' messages inside have several lines


class Terminated(SystemExit):
    """SIGTERM: everything that is open is closed on the way out, and the exit status is 143."""


def run_door(main: Callable[[], object]) -> None:
    """Run a script: what a user can fix is one line on standard error and exit status 2 (Ctrl-C: 130, SIGTERM: 143).

    That is a :class:`UserError`, too little memory, or an :class:`OSError` such as a full disk. Anything else is a
    defect of the program and keeps its traceback. Signals raise inside ``main``, so that partial files are removed and
    W&B runs closed; no child process is left behind.
    """
    RECEIVED.clear()
    if threading.current_thread() is threading.main_thread():
        signal.signal(signal.SIGTERM, stop)
        if signal.getsignal(signal.SIGINT) is signal.default_int_handler:  # a shell's background job ignores Ctrl-C
            signal.signal(signal.SIGINT, stop)
    keep_freed_memory()
    try:
        main()
    except (Exception, KeyboardInterrupt, Terminated) as error:
        if RECEIVED or isinstance(error, KeyboardInterrupt):
            _end(RECEIVED[-1] if RECEIVED else signal.SIGINT)
        if isinstance(error, UserError):
            line = str(error)
        elif isinstance(error, OSError) and error.strerror is not None:
            line = ": ".join(str(part) for part in (error.filename, error.strerror) if part is not None)
        elif isinstance(error, MemoryError) or is_out_of_memory(error):
            line = "not enough memory: choose a smaller network, batch or image size, or fewer images"
        else:
            raise
        print(f"error: {line}", file=sys.stderr)
        raise SystemExit(2) from None


def keep_freed_memory() -> None:
    """Let glibc reuse freed memory: clearing new pages is half the processor time of a forward pass at 224 pixels."""
    with suppress(OSError, AttributeError):
        mallopt = ctypes.CDLL("libc.so.6").mallopt
        mallopt(-4, 0)  # M_MMAP_MAX of malloc.h
        mallopt(-1, 2**31 - 1)  # M_TRIM_THRESHOLD


def stop(signum: int, frame: FrameType | None) -> None:
    """Signal handler: raise KeyboardInterrupt or :class:`Terminated`, each once: cleaning up is not disturbed.

    Not during an import, where foreign code may swallow it or abort: then an alarm asks again.
    """
    if signum != signal.SIGALRM:
        RECEIVED.append(signum)
    while frame is not None and not frame.f_code.co_filename.startswith("<frozen importlib"):
        frame = frame.f_back
    if frame is not None:
        signal.signal(signal.SIGALRM, stop)
        signal.setitimer(signal.ITIMER_REAL, 0.05)
    else:
        signal.signal(RECEIVED[-1], signal.SIG_IGN)
        raise KeyboardInterrupt if RECEIVED[-1] == signal.SIGINT else Terminated(128 + signal.SIGTERM)


@contextmanager
def deaf_to_ctrl_c() -> Iterator[None]:
    """Ctrl-C waits until the end; processes that are started inside never react to it, however early it comes."""
    from joblib.externals.loky.backend.resource_tracker import ensure_running

    resource_tracker.ensure_running()  # starting either of them would let waiting signals through
    ensure_running()
    pressed: list[int] = []
    before = signal.signal(signal.SIGINT, lambda *arguments: pressed.append(1))
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})  # inherited by what is started
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGINT})
        signal.signal(signal.SIGINT, before)
        if pressed:
            signal.raise_signal(signal.SIGINT)


def is_out_of_memory(error: BaseException) -> bool:
    """Whether torch lacked memory: it has a class for a full accelerator, but none for a full main memory."""
    return type(error).__name__ == "OutOfMemoryError" or "DefaultCPUAllocator" in str(error)


def is_first_process() -> bool:
    """Whether this is the only process of a training, or the one with rank 0: the others write and print nothing."""
    return all(os.environ.get(rank, "0") == "0" for rank in ("RANK", "LOCAL_RANK", "SLURM_PROCID"))


def _end(signum: int) -> None:
    children = multiprocessing.active_children()
    for child in children:
        child.terminate()
    for child in children:
        child.join(5)
        if child.is_alive() and child.pid:  # one that was starting may have missed the signal; loky's have no kill()
            with suppress(ProcessLookupError):
                os.kill(child.pid, signal.SIGKILL)
    if is_first_process():
        print("interrupted" if signum == signal.SIGINT else "terminated", file=sys.stderr)
    raise SystemExit(128 + signum) from None
