"""Runs a command; its last line is JSON: seconds from start to end, and MiB that its processes held at most together.

A small process of its own, because Linux counts the memory of whoever starts a command as the command's. Memory is the
largest sum, sampled, of the proportional set sizes of the command and all it started.
"""

import contextlib
import json
import subprocess
import sys
import time
from pathlib import Path


def processes(pid):
    """`pid` and its descendants."""
    found = [pid]
    for child in Path(f"/proc/{pid}/task").glob("*/children"):
        for descendant in child.read_text().split():
            found += processes(int(descendant))
    return found


def held(pid):
    """KiB of one process, pages it shares counted in part."""
    lines = Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("Pss:"))


def main(command):
    started, peak = time.perf_counter(), 0
    process = subprocess.Popen(command)
    while process.poll() is None:
        with contextlib.suppress(OSError, StopIteration):  # one of them has ended meanwhile
            peak = max(peak, sum(map(held, processes(process.pid))))
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(0.2)
    print(json.dumps({"seconds": time.perf_counter() - started, "mib": peak / 1024}))
    return process.returncode


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
