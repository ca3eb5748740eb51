"""`python -m tltrain.export --workdir DIR --format keras,onnx`: a finished run as files that need no tltrain.

Each holds the whole way from images, uint8 `[B, H, W, 3]` of any size, to probabilities, float32 `[B, num_classes]`. A
file is loaded again and compared with the run on photos of val at their own sizes before it gets its name.
"""

import argparse
import importlib.util
import json
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from tltrain import command, console, finished, steps
from tltrain.data import sources
from tltrain.data.preprocess import decode, load_image
from tltrain.errors import ConfigError, DataError, TerminatedError, WeightsError, WorkdirError
from tltrain.export_formats import FORMATS, Format, Function
from tltrain.finished import Finished
from tltrain.models.classifier import run_frozen

MAX_PHOTOS = 64
MAX_SIZES = 16  # of photos, for each of which XLA compiles a StableHLO program
MAX_BYTES = 2**30  # of decoded photos held at a time
# float32 sums in another order, and a grey level's difference in about one pixel of a hundred (see export_resize)
TOLERANCE = 0.01


class Photos(NamedTuple):
    """Photos of val at their own sizes, uint8 `[H, W, 3]` each, and what the run makes of them: `[N, num_classes]`."""

    images: list[np.ndarray]
    probabilities: np.ndarray


def main(argv: list[str]) -> int:
    """Runs the command line `argv`; returns the exit code."""
    parser = argparse.ArgumentParser("python -m tltrain.export", description=__doc__.partition("\n\n")[2])
    parser.add_argument("--workdir", type=Path, required=True, help="of a finished run")
    parser.add_argument("--format", required=True, help=f"{', '.join(FORMATS)}; several with commas between")
    parser.add_argument("--output", type=Path, help="folder of the files; default: WORKDIR/export")
    parser.add_argument("--debug", action="store_true", help="show the traceback of an error")
    arguments = parser.parse_args(argv[1:])
    # an export has no use for an accelerator, which may be at work on something else
    jax.config.update("jax_platforms", "cpu")

    def work(stop):
        names = arguments.format.split(",")
        folder = arguments.output or arguments.workdir / "export"
        check(names, folder)
        export(finished.load(arguments.workdir), names, folder, stop)
        return 0

    return command.run(argv, work)


def check(names: list[str], folder: Path) -> None:
    """Raises ConfigError where a format is not known, lacks a package, or is in `folder` already."""
    for name in names:
        if name not in FORMATS:
            raise ConfigError(f"no format {name!r}; given by --format; choose from {', '.join(FORMATS)}")
        format_ = FORMATS[name]
        missing = [package for package in format_.packages if importlib.util.find_spec(package) is None]
        if missing:
            raise ConfigError(
                f"{name} needs {', '.join(missing)}; not installed; pip install 'tltrain[{format_.extra}]'"
            )
        if (folder / format_.file).exists():
            raise ConfigError(
                f"{folder / format_.file} is there already; nothing is overwritten; remove it or give another --output"
            )


def export(run: Finished, names: list[str], folder: Path, stop: Callable[[], bool]) -> None:
    """Writes `run` to `folder` in each of the formats `names`, in float32, and says how to use it.

    Raises:
        WeightsError: a file computes something else than the run; it is removed.
        DataError: the photos of val cannot be read.
        WorkdirError: `folder` cannot be written.
    """
    run = run._replace(model=run.model.clone(backbone=run.model.backbone.clone(dtype=jnp.float32)))
    photos = read_photos(run)
    for name in names:
        try:
            _export_one(run, name, folder, photos, stop)
        except OSError as error:
            raise WorkdirError(f"cannot write {folder}; {error}; free space, or give another --output") from error


def _export_one(run, name, folder, photos, stop):
    format_, start = FORMATS[name], time.perf_counter()
    folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=".export_", dir=folder) as part:
        path = Path(part) / format_.file
        format_.write(run, path)
        compared = compare(format_.load(path), photos, stop)
        if not compared.difference <= TOLERANCE:
            raise WeightsError(
                f"the {name} export is not the run; probabilities differ by up to {compared.difference:.2g}, allowed are "
                f"{TOLERANCE}; {folder / format_.file} was not written; please report it"
            )
        (folder / "class_names.json").write_text(json.dumps(run.class_names) + "\n")
        path.rename(folder / format_.file)
    _say(name, folder / format_.file, compared, len(photos.images), time.perf_counter() - start)


def read_photos(run: Finished) -> Photos:
    """Up to `MAX_PHOTOS` photos spread over val, and the run's probabilities, by the steps of evaluation."""
    data, model = run.config.data, run.model
    split = sources.load(data).splits["val"]
    images, inputs, sizes = [], [], set()
    for i in np.unique(np.linspace(0, split.num_examples - 1, MAX_PHOTOS).round().astype(int)):
        encoded = split.read(int(i))
        try:
            image = np.asarray(decode(encoded))
        except OSError:
            continue
        if len(sizes | {image.shape}) > MAX_SIZES:
            continue
        sizes.add(image.shape)
        images.append(image)
        inputs.append(load_image(encoded, data.image_size, data.resize))
        if sum(image.nbytes for image in images) > MAX_BYTES:
            break
    if not images:
        raise DataError(f"no photo can be read; in {split.expression} of {data.source}; repair the data")
    num_stages = len(model.backbone.stages)

    @jax.jit
    def probabilities(variables, pixels):
        features = run_frozen(model, variables, pixels, 0, num_stages)
        return steps.probabilities(model.apply(variables, features, num_stages))

    return Photos(images, np.asarray(probabilities(run.variables, np.stack(inputs))))


class Compared(NamedTuple):
    """The largest difference of a probability, and the share of photos put in the same class."""

    difference: float
    agreement: float


def compare(function: Function, photos: Photos, stop: Callable[[], bool]) -> Compared:
    """Runs an export on `photos`, one by one."""
    found = []
    for image in photos.images:
        if stop():
            raise TerminatedError("stopped; the export that was being compared is removed; the same command starts it")
        found.append(function(image[None])[0])
    same = np.argmax(found, -1) == photos.probabilities.argmax(-1)
    return Compared(float(np.abs(found - photos.probabilities).max()), float(same.mean()))


def _say(name, path, compared, num_photos, seconds):
    files = [file for file in path.rglob("*") if file.is_file()] if path.is_dir() else [path]
    mib = sum(file.stat().st_size for file in files) / 2**20
    console.say(
        f"{name}: {path}, {mib:.1f} MiB, {seconds:.1f} s; on {num_photos} photos of val the same class for "
        f"{100 * compared.agreement:.1f} %, probabilities differ by up to {compared.difference:.1e}"
    )
    console.say(f"  {FORMATS[name].usage.replace('PATH', str(path))}")


if __name__ == "__main__":
    sys.exit(main(sys.argv))
