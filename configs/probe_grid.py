"""Sixty heads in one pass: rate x weight decay x seed, of the same stored features of cats and dogs.

python -m tltrain.sweep --config configs/probe_grid.py --workdir runs/probe_grid --seeds 3
Two CPU cores and 2,000 of the images: 11 seconds when the features are stored. Best: 3e-3 without decay, val accuracy
0.987 +- 0.001 over 3 seeds.
"""

from tltrain.config import default


def get_config():
    config = default()
    config.data.source = "tfds:cats_vs_dogs"
    config.probe.update(epochs=5, optimizer="adamw", learning_rate=1e-3)
    return config


def sweep():
    for learning_rate in (1e-3, 3e-4, 3e-3, 1e-2, 3e-2):  # the first arm is what the others are compared with
        for weight_decay in (0.0, 0.1, 1.0, 10.0):
            yield {"probe.learning_rate": learning_rate, "probe.weight_decay": weight_decay}
