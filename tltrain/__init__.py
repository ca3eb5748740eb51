"""Transfer learning in JAX/Flax that never computes a frozen layer twice."""

import time

STARTED = time.perf_counter()  # before the slow imports, so that a report can say what these cost
__version__ = "0.1.0"
