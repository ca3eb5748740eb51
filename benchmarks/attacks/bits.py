"""1,000 flipped bits in what is stored: the run ends as if nothing had been, or is refused in one line.

    python benchmarks/attacks/bits.py [COUNT]

A run on stored features of a small TFDS data set is stopped within its second phase. For each try one to eight bits of
one file are flipped: in its checkpoints, the rest of its workdir, the stored features, what is cached of labels and
contents, or the data; then the same command goes on. Report (without times), predictions and metrics must be those of
the run that was never damaged, else there is one line and an exit code. The record of the finished run is damaged too,
and then evaluated and shown again. Logs of TensorBoard are left out: nothing reads them back. Two cores: 40 minutes.
"""

import collections
import concurrent.futures
import contextlib
import functools
import io
import json
import multiprocessing
import os
import random
import re
import runpy
import shutil
import sys
import tempfile
import time
import traceback
from pathlib import Path

import numpy as np
import small
import tensorflow_datasets as tfds

PROCESSES = 2
PARTS = ("report", "predictions", "metrics")
SOURCE = """config.data.update(source="tfds:small_pictures", data_dir={!r})
config.probe.epochs = 1
config.finetune.epochs = 1
config.log.every_steps = 1"""
# of each state of the run, folders below the root, what of them is left out, and their share of the tries
PLACES = {
    "checkpoints": ("stopped", ["run/checkpoints"], "", 0.3),
    "the rest of the workdir": ("stopped", ["run"], "checkpoints/|tensorboard/|/.lock$", 0.15),
    "stored features": ("stopped", ["features"], ".lock$", 0.2),
    "cached labels and contents": ("stopped", ["cache/labels", "cache/contents"], "", 0.1),
    "record of a finished run": ("finished", ["run"], "checkpoints/|tensorboard/|/.lock$", 0.15),
    "checkpoints of a finished run": ("finished", ["run/checkpoints"], "", 0.05),
    "data": ("stopped", ["data"], "", 0.05),  # the last one: what is known of the contents of the files goes with them
}


class SmallPictures(tfds.core.GeneratorBasedBuilder):
    """64 images of two classes."""

    VERSION = tfds.core.Version("1.0.0")

    def _info(self):
        features = {"image": tfds.features.Image(), "label": tfds.features.ClassLabel(names=["dark", "light"])}
        return tfds.core.DatasetInfo(
            builder=self, features=tfds.features.FeaturesDict(features), supervised_keys=("image", "label")
        )

    def _split_generators(self, _):
        return {"train": self._generate_examples()}

    def _generate_examples(self):
        rng = np.random.default_rng(0)
        for i in range(64):
            pixels = np.clip(rng.normal((60, 170)[i % 2], 40, (40, 48, 3)), 0, 255).astype(np.uint8)
            yield i, {"image": pixels, "label": i % 2}


def main():
    count = int(sys.argv[1]) if len(sys.argv) > 1 else 1000
    counts, faults = collections.defaultdict(collections.Counter), []
    tries = [(place, seed) for place, (*_, share) in PLACES.items() for seed in range(round(share * count))]
    with tempfile.TemporaryDirectory() as folder:
        spawn = multiprocessing.get_context("spawn")
        with concurrent.futures.ProcessPoolExecutor(PROCESSES, spawn, enter, (folder,)) as pool:
            for (place, _), (outcome, what) in zip(tries, pool.map(tried, tries), strict=True):
                counts[place][outcome] += 1
                if outcome in ("silent", "raised"):
                    faults.append(f"{place}: {outcome}: {what}")
                    print(faults[-1], flush=True)
    for place in PLACES:
        print(f"{place:30} " + ", ".join(f"{n} {outcome}" for outcome, n in sorted(counts[place].items())))
    print(f"{len(tries)} tries, {len(faults)} faults")
    return bool(faults)


def enter(folder):
    """Makes the folder of this process, and tltrain keep its cache there."""
    root = Path(folder) / str(os.getpid())
    root.mkdir()
    os.environ["TLTRAIN_CACHE"] = str(root / "home" / "cache")
    os.chdir(root)


@functools.cache
def prepared():
    """The states `stopped` and `finished` of the run, copied beside `home`, and how it and its evaluation end."""
    from tltrain.errors import TerminatedError
    from tltrain.experiment import train
    from tltrain.runtime.process import Process

    home = Path("home").absolute()
    home.mkdir()
    small.config(home, home / "config.py", SOURCE.format(f"{home}/data"))
    tfds.builder("small_pictures", data_dir=f"{home}/data").download_and_prepare()
    time.sleep(3)  # the contents of files that changed just now are not kept
    second = home / "run/checkpoints/finetune"
    config = runpy.run_path(str(home / "config.py"))["get_config"]()
    with contextlib.redirect_stdout(io.StringIO()), contextlib.suppress(TerminatedError):
        train.run(config, home / "run", Process(asked=lambda: any(second.glob("manifest_*"))))
    shutil.copytree(home, "stopped")
    assert started()[0] == 0
    shutil.copytree(home, "finished")
    return ending(PARTS), evaluated()


def tried(case):
    """Flips bits of one file, starts the same command again, and tells how it ended."""
    place, seed = case
    expected, judged = prepared()
    state, folders, left_out, _ = PLACES[place]
    rng = random.Random(f"{place} {seed}")
    for name in ("run", "features", "cache", *(["data"] if place == "data" else [])):
        shutil.rmtree(f"home/{name}")
        shutil.copytree(f"{state}/{name}", f"home/{name}")
    file = damage([Path("home") / name for name in folders], left_out, rng)
    what = f"{file} (seed {seed})"
    try:
        if state == "finished" and rng.random() < 0.5:
            code, said = evaluated()
            same = (code, said) == judged
        else:
            code, said = started()
            parts = set(expected) - ({"metrics"} if "metrics.jsonl" in said else set())  # lines of it are lost, it says
            same = code == 0 and ending(parts) == {part: expected[part] for part in parts}
    except BaseException:
        return "raised", f"{what}: {traceback.format_exc()[-800:]}"
    if code == 0:
        return ("healed", "") if same else ("silent", f"{what}: {said[-800:]}")
    line = said.strip().splitlines()[-1]
    fine = line.startswith("tltrain: ") and line.isprintable() and "Traceback" not in said
    return ("refused", "") if fine else ("raised", f"{what}: {said[-800:]}")


def damage(folders, left_out, rng):
    """Flips bits of one file below `folders`, drawn by its size or as any other."""
    files = [path for folder in folders for path in sorted(folder.rglob("*")) if path.is_file() and path.stat().st_size]
    files = [path for path in files if not (left_out and re.search(left_out, str(path)))]
    (file,) = rng.choices(files, [path.stat().st_size for path in files] if rng.random() < 0.5 else None)
    content = bytearray(file.read_bytes())
    for _ in range(rng.randint(1, 8)):
        content[rng.randrange(len(content))] ^= 1 << rng.randrange(8)
    file.write_bytes(content)
    return file


def started():
    """The command of the run: its exit code and what it said on standard error."""
    from tltrain import main as verb

    return said_by(verb, "main", "--config=home/config.py", "--workdir=home/run")[::2]


def evaluated():
    """The exit code of `evaluate`, and what it said on standard output, or on standard error where it failed."""
    from tltrain import evaluate

    code, out, error = said_by(evaluate, "evaluate", "--workdir=home/run")
    return code, error if code else out


def said_by(verb, *argv):
    out, error = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(error):
        code = verb.main(list(argv))
    return code, out.getvalue(), error.getvalue()


def ending(parts):
    """What the run leaves, by name; a phase that is trained again logs after those that follow it."""
    run, found = Path("home/run"), {}
    if "report" in parts:
        found["report"] = small.without_times(json.loads((run / "report.json").read_text()))
    if "predictions" in parts:
        found["predictions"] = (run / "predictions.jsonl").read_bytes()
    if "metrics" in parts:
        lines = [small.without_times(json.loads(line)) for line in (run / "metrics.jsonl").read_text().splitlines()]
        found["metrics"] = sorted(lines, key=lambda line: (line["phase"], line["step"], "epoch" in line))
    return found


if __name__ == "__main__":
    sys.exit(main())
