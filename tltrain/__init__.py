"""Transfer learning in JAX/Flax that never computes a frozen layer twice."""

import sys
import time

if sys.platform == "win32":
    print("tltrain: Windows is not supported; use WSL (wsl --install), and start it there", file=sys.stderr)
    raise SystemExit(2)

STARTED = time.perf_counter()  # before the slow imports, so that a report can say what these cost
__version__ = "0.2.0"
