"""What belongs to the process that works on a run, and to no run: where its seconds go, and whether it was stopped."""

import collections
import contextlib
import os
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

from tltrain.runtime import hosts, pace


class Clock:
    """Seconds spent by part; parts may be entered many times, and one inside another counts for the inner one alone."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = collections.defaultdict(float)
        self._earlier: dict[str, float] = {}
        self._inner = [0.0]

    def resume(self, earlier: dict[str, float]) -> None:
        """Goes on from the total of an earlier process."""
        self._earlier = earlier

    def total(self) -> dict[str, float]:
        """Seconds by part, of this process and of those it resumed."""
        parts = dict.fromkeys([*self._earlier, *self.seconds])
        return {part: self._earlier.get(part, 0.0) + self.seconds[part] for part in parts}

    @contextlib.contextmanager
    def __call__(self, part: str) -> Iterator[None]:
        """Adds the time of the block to `part`."""
        start = time.perf_counter()
        self._inner.append(0.0)
        try:
            yield
        finally:
            passed = time.perf_counter() - start
            self.seconds[part] += passed - self._inner.pop()
            self._inner[-1] += passed


@dataclass(frozen=True)
class Process:
    """`clock` has the seconds of its run by part; `asked()` is true once this process was asked to end."""

    clock: Clock = field(default_factory=Clock)
    asked: Callable[[], bool] = lambda: False

    def stop(self) -> bool:
        """Polled after each step of another kind than training: whether the run is to end here, in all processes."""
        pace.get_on()
        return hosts.stop_between(self.asked())

    def stop_at_step(self) -> bool:
        """Polled once after each training step was begun: whether it is the last, in all processes."""
        pace.begin()
        return hosts.stop_at_step(self.asked())


def free_memory() -> int:
    """Bytes that a process can take without swapping."""
    lines = Path("/proc/meminfo").read_text().splitlines() if Path("/proc/meminfo").exists() else []
    for line in lines:
        if line.startswith("MemAvailable:"):
            return int(line.split()[1]) * 1024
    return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
