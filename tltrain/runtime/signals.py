"""SIGTERM and SIGINT: noted and obeyed between steps, and at once where nothing would be lost.

While XLA compiles no Python runs in the main thread, so no handler does: a thread waits for signals beside it.
"""

import contextlib
import os
import select
import signal
import sys
import threading
from collections.abc import Callable, Iterator

from tltrain.errors import TerminatedError

_SIGNALS = (signal.SIGTERM, signal.SIGINT)
_GRACE = 3.0  # seconds that the main thread has to notice a signal

_received: list[int] = []
_abandonable: list[str] = []  # what the main thread does that may be left at any point


class Abandoned(BaseException):
    """A signal came where nothing is lost; no `except Exception` on the way takes it for an error of its own."""

    def __init__(self) -> None:
        super().__init__(f"stopped while {_abandonable[-1]}; nothing is lost; the same command goes on")


@contextlib.contextmanager
def noted() -> Iterator[Callable[[], bool]]:
    """Yields a function that is true once a signal came; a second one ends the process at once."""
    before = {number: signal.signal(number, _note) for number in _SIGNALS}
    reader, writer = os.pipe()
    os.set_blocking(writer, False)
    wakeup = signal.set_wakeup_fd(writer)
    threading.Thread(target=_watch, args=(reader,), daemon=True).start()
    try:
        yield lambda: bool(_received)
    finally:
        signal.set_wakeup_fd(wakeup)
        os.close(writer)  # which ends the thread
        for number, handler in before.items():
            signal.signal(number, handler)
        _received.clear()
        _abandonable.clear()


@contextlib.contextmanager
def abandonable(what: str) -> Iterator[None]:
    """Marks a block that loses nothing when it is left: within `noted`, a signal raises `Abandoned` in it.

    Where the main thread does not come back to Python for some seconds, the process ends, as if killed. In other
    threads the block is like any other.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    _abandonable.append(what)
    try:
        if _received:
            raise Abandoned
        yield
    finally:
        _abandonable.pop()


def _note(number, _):
    if _received:
        os._exit(128 + number)
    _received.append(number)
    if _abandonable:
        raise Abandoned
    print("\ntltrain: stopping after this step and saving; once more to stop at once", file=sys.stderr)


def _watch(reader):
    """Ends the process where the main thread cannot notice a signal: within a block to abandon, or the second one."""
    sent: list[int] = []
    while True:
        unnoticed = len(sent) > len(_received)
        if select.select([reader], [], [], _GRACE if unnoticed else None)[0]:
            if not (numbers := os.read(reader, 64)):
                os.close(reader)
                return
            sent += [number for number in numbers if number in _SIGNALS]
        elif len(sent) > len(_received) and (_abandonable or len(sent) > 1):
            if _abandonable:
                print(f"\ntltrain: {Abandoned()}", file=sys.stderr, flush=True)
            os._exit(TerminatedError.exit_code if _abandonable else 128 + sent[-1])
