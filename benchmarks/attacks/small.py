"""The small run that the attacks are made on: 64 images of two classes, both phases, features and checkpoints kept."""

from pathlib import Path

import numpy as np
from PIL import Image

TIMES = {
    "seconds",
    "share_waiting_for_input",
    "examples_per_second",
    "step_examples_per_second",
    "files",
    "sha256",
}  # of a report or a line of metrics

_CONFIG = """
from tltrain.config import default


def get_config():
    config = default()
    config.data.source = {source!r}
    config.data.splits = ("train[:75%]", "train[75%:]")
    config.data.image_size = (32, 32)
    config.model.update(backbone="mobilenet_v2_0.35", weights="random", dropout=0.2)
    config.batch_size = 8
    config.log.every_steps = 2
    config.checkpoint.every_steps = 3
    config.probe.epochs = 3
    config.finetune.update(epochs=3, freeze_until="block_15", augment=False)
    config.features.dir = {features!r}
{changes}    return config
"""


def write(root: Path, changes: str = "", images: int = 32) -> Path:
    """Makes the images below `root`, so many of each class, and a config file; `changes` are lines of it."""
    rng = np.random.default_rng(0)
    for level, name in ((170, "light"), (60, "dark")):
        (root / "images" / name).mkdir(parents=True, exist_ok=True)
        for i in range(images):
            pixels = np.clip(rng.normal(level, 40, (40, 48, 3)), 0, 255).astype(np.uint8)
            Image.fromarray(pixels).save(root / "images" / name / f"{i:03}.jpg")
    return config(root, root / "config.py", changes)


def config(root: Path, path: Path, changes: str = "") -> Path:
    """Writes a config of the images below `root` to `path`."""
    lines = "".join(f"    {line}\n" for line in changes.splitlines())
    path.write_text(_CONFIG.format(source=f"folder:{root}/images", features=f"{root}/features", changes=lines))
    return path


def without_times(value):
    """A record without `TIMES`."""
    if isinstance(value, dict):
        return {key: without_times(item) for key, item in value.items() if key not in TIMES}
    return [without_times(item) for item in value] if isinstance(value, list) else value
