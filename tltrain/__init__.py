"""Transfer learning in JAX/Flax that never computes a frozen layer twice."""

import os
import sys
import time

if sys.platform == "win32":
    print("tltrain: Windows is not supported; use WSL (wsl --install), and start it there", file=sys.stderr)
    raise SystemExit(2)

for _name, _mode in (("stdin", "r"), ("stdout", "w"), ("stderr", "w")):
    if getattr(sys, _name) is None:  # closed by who started the process; the lowest free number is its own
        setattr(sys, _name, os.fdopen(os.open(os.devnull, os.O_RDWR), _mode))

STARTED = time.perf_counter()  # before the slow imports, so that a report can say what these cost
__version__ = "0.2.0"
