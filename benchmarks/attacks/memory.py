"""Memory over 3,000 steps: training on stored features and from images must not grow by 1 MiB in 100 steps.

    python benchmarks/attacks/memory.py

Prints the resident memory after every 500 steps of each kind, and the slope from the median of the second thousand to
that of the third; in the first all is compiled and buffers fill. Two cores: 3 minutes.
"""

import sys
import tempfile
from pathlib import Path

import numpy as np
import small

from tltrain.config import default
from tltrain.experiment import train
from tltrain.runtime import console
from tltrain.runtime.process import Process

STEPS = 3000
LIMIT = 1.0  # MiB in 100 steps


def main():
    slopes = []
    for kind in ("stored features", "images"):
        found = np.asarray(memory(kind))
        _, middle, last = np.median(found.reshape(3, -1), 1)
        slope = (last - middle) / (STEPS / 3) * 100
        slopes.append(slope)
        shown = " ".join(f"{mib:.0f}" for mib in found[499::500])
        print(f"{kind}: MiB after every 500 steps {shown}; {slope:+.3f} MiB in 100 steps")
    sys.exit(bool(max(slopes) > LIMIT))


def memory(kind):
    """Resident MiB after each step."""
    found = []

    def look():
        found.append(int(Path("/proc/self/statm").read_text().split()[1]) * 4096 / 2**20)
        return False

    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        small.write(root)
        config = default()
        config.data.source = f"folder:{root / 'images'}"
        config.data.splits = ("train[:75%]", "train[75%:]")
        config.data.image_size = (32, 32)
        config.model.update(backbone="mobilenet_v2_0.35", weights="random")
        config.batch_size = 8
        config.features.dir = str(root / "features")
        config.features.enabled = "off" if kind == "images" else "on"
        config.probe.epochs = STEPS // 6
        config.log.tensorboard = True
        with console.into(root / "output.txt"):
            train.run(config, root / "run", Process(asked=look))
    return found[-STEPS:]


if __name__ == "__main__":
    main()
