"""A thread beside each of several processes: it says that this one is there, and ends it where another is not.

It also finds the training step at which all stop where one was asked to: the furthest that any of them has begun.
"""

import ctypes
import json
import os
import signal
import sys
import threading
import time
from typing import Any

from tltrain.errors import HostError, TerminatedError

SILENT_SECONDS = 20  # after which a process is taken for dead
_GRACE = 5.0  # seconds: to end by itself after another did, or of silence where devices lost each other
_EVERY = 0.25  # seconds
_ABORT = ctypes.CFUNCTYPE(None, ctypes.c_int)
_AT, _ENDS, _HELD, _ASKED = (f"tltrain/{name}/" for name in ("at", "ends", "held", "asked"))


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
        self._abort = _ABORT(lambda _: self._give_up(f"process 0 of {count} is gone"))  # kept: C calls it
        if index:
            ctypes.CDLL(None).signal(signal.SIGABRT, self._abort)  # which jax raises when its service is gone
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
                self._client.key_value_set(f"{_AT}{self._index}", json.dumps([beat, self._steps]), allow_overwrite=True)
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
            time.sleep(self._every)

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
        self._give_up(f"process {other} of {self._count} ended with exit code {code}")

    def _give_up(self, reason, code=HostError.exit_code):
        print(f"tltrain: {reason}; so this one ends; the same command goes on", file=sys.stderr, flush=True)
        os._exit(code)
