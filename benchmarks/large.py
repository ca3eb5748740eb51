"""Seconds and memory of a probe against the number of its examples: whole processes of `tltrain.main`.

    python benchmarks/large.py [--source tfds|folder|table] [--records 10000 100000 1000000]

The records are images of 32x32, in shards of TFRecord, as files in a folder, or as such files that a .csv names, of
which one of the smallest networks makes features: what is measured is what a data set costs by its number of examples,
not by its pixels. Each process computes its features, trains an epoch from them and evaluates a fifth of the records.
Memory is what the process alone holds (RssAnon): stored features are memory maps, whose pages the system takes back.
Two cores: 10 minutes a million records of TFDS.
"""

import argparse
import io
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import tensorflow_datasets as tfds
from PIL import Image
from scaling import slope

SHARD = 50_000  # records
CLASSES = ("dark", "light")
PARTS = {  # each up to the line that begins so
    "loading": "Data:",
    "features": "Compiling",
    "an epoch, and val": "probe 1/1:",
    "val again, predictions, page": "",
}
CHANGES = {
    "model.backbone": "mobilenet_v2_0.35",
    "features.dtype": "bfloat16",
    "model.weights": "random",
    "data.image_size": "(32, 32)",
    "batch_size": 256,
    "probe.epochs": 1,
    "finetune.epochs": 0,
    "log.tensorboard": False,
}


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--records", type=int, nargs="+", default=[10_000, 100_000, 1_000_000])
    parser.add_argument("--source", choices=SOURCES, default="tfds")
    arguments = parser.parse_args()
    counts, source = arguments.records, arguments.source
    with tempfile.TemporaryDirectory(prefix="tltrain_large_") as scratch:
        scratch = Path(scratch)
        SOURCES[source](scratch, 1000)
        run(scratch, 1000, source)  # compiles what the others load
        rows = []
        print("| records | part | seconds | MiB at most |\n|---|---|---|---|")
        for count in counts:
            SOURCES[source](scratch, count)
            rows.append(run(scratch, count, source))
            for part, (seconds, most) in rows[-1].items():
                print(f"| {count:,} | {part} | {seconds:.1f} | {most / 2**20:.0f} |", flush=True)
        if len(counts) > 1:
            print("\n| part | seconds a million records | bytes a record |\n|---|---|---|")
            for part in rows[0]:
                seconds, most = (slope(counts, [row[part][i] for row in rows]) for i in range(2))
                print(f"| {part} | {seconds * 1e6:.1f} | {most:.0f} |")


def write(scratch, count):
    """The TFDS set `small_COUNT` of `count` records."""
    pictures = images()
    identity = tfds.core.dataset_info.DatasetIdentity(
        name=f"small_{count}", version="1.0.0", data_dir=str(scratch / f"small_{count}" / "1.0.0"), module_name="large"
    )
    features = {"image": tfds.features.Image(), "label": tfds.features.ClassLabel(names=CLASSES)}
    info = tfds.core.DatasetInfo(
        builder=identity, features=tfds.features.FeaturesDict(features), supervised_keys=("image", "label")
    )
    Path(identity.data_dir).mkdir(parents=True)
    writer = tfds.core.SequentialWriter(info, SHARD)
    writer.initialize_splits(["train"])
    for first in range(0, count, 1000):
        examples = [{"image": pictures[i], "label": i % 2} for i in range(min(1000, count - first))]
        writer.add_examples({"train": examples})
    writer.close_all()


def images():
    """A thousand encoded images, dark and light in turn."""
    rng, pictures = np.random.default_rng(0), []
    for i in range(1000):
        buffer = io.BytesIO()
        pixels = np.clip(rng.normal(85 + 85 * (i % 2), 40, (32, 32, 3)), 0, 255).astype(np.uint8)
        Image.fromarray(pixels).save(buffer, "JPEG")
        pictures.append(buffer.getvalue())
    return pictures


def write_folder(scratch, count):
    """The folder `small_COUNT` of `count` files."""
    pictures = images()
    for i in range(count):
        path = scratch / f"small_{count}" / CLASSES[i % 2] / f"image_{i:07}.jpg"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(pictures[i % 1000])


def write_table(scratch, count):
    """The table `small_COUNT.csv`, which names as many files of a folder."""
    write_folder(scratch, count)
    names = (f"small_{count}/{CLASSES[i % 2]}/image_{i:07}.jpg,{CLASSES[i % 2]}\n" for i in range(count))
    with (scratch / f"small_{count}.csv").open("w") as file:
        file.writelines(["file,label\n", *names])


SOURCES = {"tfds": write, "folder": write_folder, "table": write_table}


def run(scratch, count, source):
    """Seconds and most bytes of each part of a probe on `small_COUNT`."""
    workdir = scratch / f"run_{count}"
    places = {"tfds": f"small_{count}", "folder": scratch / f"small_{count}", "table": scratch / f"small_{count}.csv"}
    changes = CHANGES | {"data.source": f"{source}:{places[source]}"}
    changes |= {"data.data_dir": str(scratch)} if source == "tfds" else {}
    command = [sys.executable, "-m", "tltrain.main", f"--workdir={workdir}"]
    command += [f"--config={Path(__file__).parent.parent / 'configs' / 'cats_dogs.py'}"]
    command += [f"--config.{key}={value}" for key, value in changes.items()]
    environment = os.environ | {"TLTRAIN_CACHE": str(scratch / "cache"), "PYTHONUNBUFFERED": "1"}
    parts, most, started = list(PARTS), dict.fromkeys(PARTS, 0), [time.perf_counter()]
    with subprocess.Popen(command, stdout=subprocess.PIPE, env=environment, text=True) as process:
        os.set_blocking(process.stdout.fileno(), False)
        while process.poll() is None:
            for line in process.stdout:
                if len(started) < len(parts) and line.startswith(PARTS[parts[len(started) - 1]]):
                    started.append(time.perf_counter())
            now = parts[len(started) - 1]
            most[now] = max(most[now], held(process.pid))
            time.sleep(0.01)
    if process.returncode:
        raise SystemExit(process.returncode)
    ends = [*started[1:], time.perf_counter()]
    return {part: (end - begin, most[part]) for part, begin, end in zip(parts, started, ends, strict=True)}


def held(pid):
    """Bytes of memory of a process that are its own, not pages of files."""
    try:
        lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    except OSError:
        return 0
    return sum(int(line.split()[1]) * 1024 for line in lines if line.startswith("RssAnon"))


if __name__ == "__main__":
    main()
