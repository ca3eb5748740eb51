"""Seconds of a probe against the number of images and of epochs: whole processes of `tltrain.main`.

    python benchmarks/scaling.py

The images are those of the quickstart under as many names as are needed, each computed as a file of its own. Against
images the features are new in each run; against epochs they are stored. Two cores: 7 minutes.
"""

import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
from textile import get_config

IMAGES = (500, 1000, 2000, 5000, 10000, 20000)
EPOCHS = (1, 2, 5, 10, 20, 50)
ROUNDS = 3  # of the short runs against epochs


def main():
    root = Path(get_config().data.source.removeprefix("folder:"))
    files = sorted(root.rglob("*.jpg"), key=lambda path: path.name)
    with tempfile.TemporaryDirectory(prefix="tltrain_scaling_") as scratch:
        scratch = Path(scratch)
        run(scratch, link(scratch, files, 200), 1)  # compiles what the others load
        print("| images | seconds, features new | of these extraction |\n|---|---|---|")
        seconds = []
        for count in IMAGES:
            passed, parts = run(scratch, link(scratch, files, count), 5)
            seconds.append(passed)
            print(f"| {count:,} | {passed:.1f} | {parts['features']:.1f} |", flush=True)
        print(f"\nAn image costs {slope(IMAGES, seconds) * 1e3:.2f} ms.\n")
        print("| epochs over 1,600 images | seconds, features stored |\n|---|---|")
        folder, seconds = link(scratch, files, 2000), []
        for epochs in EPOCHS:
            seconds.append(statistics.median(run(scratch, folder, epochs)[0] for _ in range(ROUNDS)))
            print(f"| {epochs} | {seconds[-1]:.1f} |", flush=True)
        print(f"\nAn epoch costs {slope(EPOCHS, seconds):.3f} s.")


def link(scratch, files, count):
    """A folder of `count` images, a sub-folder a class."""
    folder = scratch / f"images_{count}"
    for i in range(0 if folder.exists() else count):
        file = files[i % len(files)]
        (folder / file.parent.name).mkdir(parents=True, exist_ok=True)
        (folder / file.parent.name / f"{i:06d}_{file.name}").symlink_to(file)
    return folder


def run(scratch, folder, epochs):
    """Seconds of a probe, a whole process, and its own seconds by part."""
    workdir = Path(tempfile.mkdtemp(dir=scratch)) / "run"
    changes = {"data.source": f"folder:{folder}", "probe.epochs": epochs, "finetune.epochs": 0}
    command = [sys.executable, "-m", "tltrain.main", f"--config={Path(__file__).parent / 'textile.py'}"]
    command += [f"--config.{key}={value}" for key, value in changes.items()] + [f"--workdir={workdir}"]
    environment = os.environ | {"TLTRAIN_CACHE": str(scratch / "cache")}
    started = time.perf_counter()
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL, env=environment)
    return time.perf_counter() - started, json.loads((workdir / "report.json").read_text())["seconds"]


def slope(x, y):
    """Of the straight line through the points, by least squares."""
    return float(np.polyfit(x, y, 1)[0])


if __name__ == "__main__":
    main()
