"""A thread beside each of several processes: it says that this one is there, and ends it where another is not.

What is promised, with a line that names the process and the exit code of `HostError`: where one dies, or it, its
machine or its network stops, the others end within half a minute. Where its main thread alone hangs, all end: within a
step or a batch after as long as `pace` allows, else once others have waited for it for half an hour. None ends because
a process takes long and gets on, or because all take equally long.

It also finds the training step at which all stop where one was asked to: the furthest that any of them has begun.
"""

import ctypes
import json
import os
import signal
import sys
import threading
import time
from collections.abc import Mapping
from typing import Any, NamedTuple

from tltrain.errors import HostError, TerminatedError, TltrainError
from tltrain.runtime import pace

SILENT_SECONDS = 20  # after which a process is taken for dead
_GRACE = 5.0  # seconds: to end by itself after another did, or of silence where devices lost each other
_EVERY = 0.25  # seconds
_ABORT = ctypes.CFUNCTYPE(None, ctypes.c_int)
_abort: Any = None  # kept: C calls it
_AT, _ENDS, _HELD, _ASKED = (f"tltrain/{name}/" for name in ("at", "ends", "held", "asked"))


def end_on_abort(reason: str) -> None:
    """Lets this process end with a line of `reason` where jax aborts it, as it does when its service is silent."""
    global _abort
    _abort = _ABORT(lambda _: _end(reason, HostError.exit_code))
    ctypes.CDLL(None).signal(signal.SIGABRT, _abort)


def _end(reason, code):
    print(f"tltrain: {reason}; so this one ends; the same command goes on", file=sys.stderr, flush=True)
    os._exit(code)


class Progress(NamedTuple):
    """How a process gets on: the training steps it has begun, its work as in `pace.Work`, and where that is."""

    steps: int
    kind: str
    seconds: float
    limit: float
    where: str

    @property
    def is_late(self) -> bool:
        """Whether it should have got on."""
        return self.seconds > self.limit


def behind(found: Mapping[int, Progress]) -> list[int]:
    """The processes, by their numbers, that do not get on and keep others from it.

    Whoever began more steps than another may wait for it within a step, so those that began the fewest are looked at.
    Work of no known length is taken for hung only where another is kept as long from going on; a process that waits,
    only where all are late, for then what it waits for has come.
    """
    fewest = min((one.steps for one in found.values()), default=0)
    late = {i: one for i, one in found.items() if one.is_late}
    kept = max((one.seconds for one in late.values() if one.kind != pace.OTHER), default=0.0)
    hung = [
        i
        for i, one in late.items()
        if one.steps == fewest and one.kind != pace.WAITING and (one.kind == pace.STEADY or kept > one.limit)
    ]
    if hung or any(one.kind == pace.OTHER or not one.is_late for one in found.values()):
        return hung
    return [i for i, one in late.items() if one.steps == fewest and one.kind == pace.WAITING]


class Watch:
    """Of the process `index` of `count`, which know each other by the key-value service of `client`."""

    def __init__(self, client: Any, index: int, count: int) -> None:
        self._client, self._index, self._count = client, index, count
        self._steps, self._asked, self._over, self._patience = 0, False, False, float(SILENT_SECONDS)
        self._held: int | None = None  # the step up to which this process goes until `target` is known
        self._target: int | None = None
        self._changed = threading.Condition()
        self._every = _EVERY * max(1.0, count / 16)  # all ask one process
        self._heard_service = time.monotonic()
        if index:
            end_on_abort(f"process 0 of {count} is gone")  # with which jax's service is
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()
        threading.Thread(target=self._guard, daemon=True).start()

    def stop_at_step(self, asked: bool) -> bool:
        """Called after each step was begun: whether it is the last. Waits while the last step is being found."""
        with self._changed:
            self._steps += 1
            self._asked |= asked
            while self._held == self._steps and self._target is None:
                self._changed.wait()
            return self._target == self._steps

    def stop_between(self, asked: bool) -> bool:
        """Whether no process begins another step."""
        with self._changed:
            self._asked |= asked
            return self._target is not None and self._target <= self._steps + 1

    def suspect(self) -> None:
        """Says that devices lost each other: whoever is silent now is soon taken for dead."""
        self._patience = _GRACE

    def end(self, code: int) -> None:
        """Says that this process ends; the first, which serves the others, waits for them to have ended."""
        self._over = True
        self._thread.join()
        try:
            self._client.key_value_set(f"{_ENDS}{self._index}", str(code))
            until = time.monotonic() + (2 * _GRACE if code else SILENT_SECONDS)
            while self._index == 0 and len(self._read(_ENDS)) < self._count and time.monotonic() < until:
                time.sleep(_EVERY / 5)
        except Exception:  # whatever the service says once its process is gone
            return

    def _read(self, folder):
        return {int(key.rpartition("/")[2]): value for key, value in self._client.key_value_dir_get(folder)}

    def _guard(self):
        """Ends this process where the service, which lives in process 0, does not answer."""
        while not self._over:
            time.sleep(_EVERY)
            if not self._over and time.monotonic() - self._heard_service > self._patience:
                self._give_up(f"process 0 of {self._count} is silent for {self._patience:.0f} s")

    def _run(self):
        heard: dict[int, tuple[str, float]] = {}
        beat = 0
        while not self._over:
            beat += 1
            try:
                told = json.dumps([beat, *self._own()])
                self._client.key_value_set(f"{_AT}{self._index}", told, allow_overwrite=True)
                at, ends = self._read(_AT), self._read(_ENDS)
                self._find_last_step()
                self._heard_service = time.monotonic()
            except Exception:  # whatever is said of a service that is gone: `_guard` ends it
                time.sleep(self._every)
                continue
            now = time.monotonic()
            for i in range(self._count):
                if heard.get(i, ("", 0.0))[0] != at.get(i, ""):
                    heard[i] = (at.get(i, ""), now)
                elif i in ends:
                    if ends[i] != "0":
                        self._follow(i, int(ends[i]))
                elif (silent := now - heard.setdefault(i, ("", now))[1]) > self._patience:
                    self._give_up(f"process {i} of {self._count} is silent for {silent:.0f} s")
            self._end_where_one_is_behind(
                {i: Progress(*json.loads(text)[1:]) for i, text in at.items() if i not in ends}
            )
            time.sleep(self._every)

    def _own(self):
        work = pace.now()
        return Progress(self._steps, work.kind, work.seconds, work.limit, pace.where())

    def _end_where_one_is_behind(self, found):
        if late := behind(found):
            told = [
                f"process {i} of {self._count} is behind, for {found[i].seconds:.0f} s at {found[i].where}"
                for i in late
            ]
            self._give_up("; ".join(told))

    def _find_last_step(self):
        if self._asked and not self._read(_ASKED):
            self._client.key_value_set(f"{_ASKED}{self._index}", "1", allow_overwrite=True)
        if self._target is not None or not self._read(_ASKED):
            return
        with self._changed:
            if self._held is None:
                self._held = self._steps + 1
                self._client.key_value_set(f"{_HELD}{self._index}", str(self._held))
        if len(held := self._read(_HELD)) == self._count:
            with self._changed:
                self._target = max(map(int, held.values()))
                self._changed.notify_all()

    def _follow(self, other, code):
        """Ends this process some time after another did, which it cannot go on without."""
        time.sleep(_GRACE)
        if self._over:
            return
        if code == TerminatedError.exit_code:
            self._give_up(f"process {other} of {self._count} was stopped", code)
        told = {kind.exit_code for kind in TltrainError.__subclasses__()}  # of what is wrong with the run
        self._give_up(
            f"process {other} of {self._count} ended with exit code {code}",
            code if code in told else HostError.exit_code,
        )

    def _give_up(self, reason, code=HostError.exit_code):
        if self._index == 0:
            time.sleep(4 * self._every)  # in which others find the same, before they lose its service
        _end(reason, code)
