"""How the main thread gets on, which other processes of the job may wait for; `Watch` tells them.

It is always at work of one kind, see `_LIMITS`. What is `STEADY` is done in pieces of much the same length, steps and
batches, so it is known when one is late; of all `OTHER`, compiling and reading and writing among it, nobody knows.
"""

import contextlib
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

STEADY, OTHER = "steady", "other"
WAITING, OUTSIDE = "waiting", "outside"  # for other processes of the job, and for those of another job
OTHER_SECONDS = 1800.0  # also of a piece such as was not done before
_LIMITS = {STEADY: 20.0, WAITING: 20.0, OTHER: OTHER_SECONDS, OUTSIDE: float("inf")}  # seconds after which it is late
_TIMES = 3  # the longest such piece so far, after which one is late if that is more
_PACKAGE = f"{Path(__file__).parents[1]}/"


class Work:
    """What the main thread is at: `kind`, and a `name` that pieces of the same length share.

    `begun` are the pieces since it last got on, where devices do them, which may have many before them at once.
    """

    def __init__(self, kind: str, name: str = "") -> None:
        self.kind, self.begun = kind, 0
        self._piece = (name, "first")  # apart from others: a first one opens files, or imports a library
        self._earlier, self._since = 0.0, time.monotonic()

    @property
    def seconds(self) -> float:
        """Since the main thread last got on."""
        return time.monotonic() - self._since

    @property
    def limit(self) -> float:
        """After so many seconds it is late."""
        if self.kind != STEADY:
            return _LIMITS[self.kind]
        if self._piece not in _longest:
            return OTHER_SECONDS
        return max(_LIMITS[STEADY], _TIMES * _longest[self._piece] * max(1, self.begun))

    def get_on(self) -> None:
        """A piece is done, or those that were begun are."""
        if self.kind == STEADY:
            piece = (self._earlier + self.seconds) / max(1, self.begun)
            _longest[self._piece] = max(_longest.get(self._piece, 0.0), piece)
            self._piece = (self._piece[0], "other")
        self.begun, self._earlier, self._since = 0, 0.0, time.monotonic()

    def pause(self) -> None:
        """Something within it begins, whose time is none of a piece."""
        self._earlier += self.seconds

    def resume(self) -> None:
        """That is over."""
        self._since = time.monotonic()


_longest: dict[tuple[str, str], float] = {}  # seconds of a piece
_works = [Work(OTHER)]  # each within the one before it


def now() -> Work:
    """What the main thread is at."""
    return _works[-1]


def where() -> str:
    """The line of this package at which the main thread is, as `FILE:LINE`."""
    frame = sys._current_frames().get(threading.main_thread().ident or 0)
    while frame and not frame.f_code.co_filename.startswith(_PACKAGE):
        frame = frame.f_back
    return f"{frame.f_code.co_filename.removeprefix(_PACKAGE)}:{frame.f_lineno}" if frame else "its end"


def begin() -> None:
    """Says that devices were given a piece, for which the main thread does not wait yet."""
    if _is_main():
        now().begun += 1


def get_on() -> None:
    """Says that work goes on."""
    if _is_main():
        now().get_on()


@contextlib.contextmanager
def at(kind: str, name: str = "") -> Iterator[None]:
    """Marks the block as work of that kind, which is no part of that around it; in other threads it marks nothing."""
    if not _is_main():
        yield
        return
    now().pause()
    _works.append(Work(kind, name))
    try:
        yield
    finally:
        _works.pop()
        now().resume()


def _is_main():
    return threading.current_thread() is threading.main_thread()
