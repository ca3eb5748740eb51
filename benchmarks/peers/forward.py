"""Examples a second of the frozen base with pooling, in memory: one process, one JSON line.

Arguments: the folder of `libraries.py`, the library and the job; `tltrain` runs in its own environment.
"""

import json
import sys
import time
from pathlib import Path

import numpy as np

REPEATS, SECONDS = 5, 60  # of the measurement, whichever comes first
COMPARED = 4  # examples whose features are given with the result


def main(folder, library, job):
    sys.path.insert(0, str(Path(__file__).parent / folder))
    from libraries import LIBRARIES, examples

    given = examples(job, library)
    forward = LIBRARIES[library](job)
    features = forward(given)  # compiles
    seconds: list[float] = []
    while len(seconds) < REPEATS and sum(seconds) < SECONDS:
        started = time.perf_counter()
        forward(given)
        seconds.append(time.perf_counter() - started)
    result = {"per_second": len(given) / float(np.median(seconds)), "features": features[:COMPARED].tolist()}
    if library == "tltrain":
        result |= {"peak_gflops": peak(), "gflop": forward.gflop}
    return result


def peak():
    """GFLOP/s, float32, of the fastest matrix product at hand, for 2048 x 2048 matrices."""
    import jax

    a = np.random.default_rng(0).normal(size=(2048, 2048)).astype(np.float32)
    product, on_device = jax.jit(jax.numpy.matmul), jax.device_put(a)

    def rate(multiply):
        seconds = []
        for _ in range(8):
            started = time.perf_counter()
            multiply()
            seconds.append(time.perf_counter() - started)
        return 2 * 2048**3 / min(seconds) / 1e9

    return max(rate(lambda: a @ a), rate(lambda: product(on_device, on_device).block_until_ready()))


if __name__ == "__main__":
    print(json.dumps(main(sys.argv[1], sys.argv[2], json.loads(sys.argv[3]))))
