"""Files of other formats that are proven: each is loaded again and compared with the run before it gets its name."""

import importlib.util
import json
import os
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from tltrain import places
from tltrain.data.preprocess import decode, load_image
from tltrain.errors import ConfigError, DataError, TerminatedError, WeightsError, WorkdirError
from tltrain.experiment import finished
from tltrain.experiment.finished import Finished
from tltrain.exports.formats import FORMATS, Function
from tltrain.models.classifier import run_frozen
from tltrain.runtime import console
from tltrain.training import steps

MAX_BYTES = 2**30  # of decoded photos
# Of probabilities. Sums of float32 in another order move them by 1e-6 to 1e-5; a grey level that a large photo may
# differ by here and there, or one cropped to a size that is no square, by 1e-4.
TOLERANCE = 1e-3


class Photos(NamedTuple):
    """Photos at their own sizes, uint8 `[H, W, 3]` each, and the probabilities of the run, `[N, num_classes]`."""

    images: list[np.ndarray]
    probabilities: np.ndarray

    def spread(self, count: int) -> "Photos":
        """`count` of them, or all where there are no more."""
        chosen = _spread(len(self.images), count)
        return Photos([self.images[i] for i in chosen], self.probabilities[chosen])


class Compared(NamedTuple):
    """The largest difference of a probability, and the share of photos put in the same class."""

    difference: float
    agreement: float


def check(names: list[str], folder: Path) -> None:
    """Raises ConfigError where a format is not known, cannot be made here, or is in `folder` already."""
    for name in names:
        if name not in FORMATS:
            raise ConfigError(f"no format {name!r}; given by --format; choose from {', '.join(FORMATS)}")
        file, extra, packages, *_ = FORMATS[name]
        missing = [package for package in packages if importlib.util.find_spec(package) is None]
        if missing:
            raise ConfigError(f"{name} needs {', '.join(missing)}; not installed; pip install 'tltrain[{extra}]'")
        backend = os.environ.get("KERAS_BACKEND", "tensorflow")
        if backend != "tensorflow" and packages and name != "keras":
            raise ConfigError(f"{name} is made by TensorFlow; KERAS_BACKEND is {backend!r}; unset it for this command")
        if (folder / file).exists():
            raise ConfigError(f"{folder / file} is there already; nothing is overwritten; move it, or give --output")


def export(run: Finished, names: list[str], folder: Path, stop: Callable[[], bool]) -> None:
    """Writes `run` to `folder` in each of the formats `names`, in float32, and says how to use it.

    Raises:
        WeightsError: a file does not compute what the run does; it is removed.
        DataError: the photos of val cannot be read.
        WorkdirError: `folder` cannot be written.
        TerminatedError: `stop()` became true.
    """
    run = run._replace(model=run.model.clone(backbone=run.model.backbone.clone(dtype=jnp.float32)))
    photos = read_photos(run, max(FORMATS[name].max_photos for name in names))
    for name in names:
        try:
            _export_one(run, name, folder, photos.spread(FORMATS[name].max_photos), stop)
        except OSError as error:
            raise WorkdirError(f"cannot write {folder}; {error}; free space, or give another --output") from error


def _export_one(run, name, folder, photos, stop):
    start = time.perf_counter()
    path = folder / FORMATS[name].file
    folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=".export_", dir=folder) as part, places.literal(Path(part)) as named:
        unproven = named / path.name
        FORMATS[name].write(run, unproven)
        compared = compare(FORMATS[name].load(unproven), photos, stop)
        if not compared.difference <= TOLERANCE:
            raise WeightsError(
                f"the {name} export is not the run; probabilities differ by {compared.difference:.2g}, allowed is "
                f"{TOLERANCE}; {path} is not written; take another format, and report this"
            )
        (folder / "class_names.json").write_text(json.dumps(run.class_names) + "\n")
        unproven.rename(path)
    _say(name, path, compared, len(photos.images), time.perf_counter() - start)


def read_photos(run: Finished, count: int) -> Photos:
    """Up to `count` photos spread over val, and what the steps of evaluation make of them."""
    data, model = run.config.data, run.model
    split = finished.own_split(run, data.splits[1])
    images: list[np.ndarray] = []
    inputs = []
    for i in _spread(split.num_examples, count):
        try:
            encoded = split.read(int(i))
            inputs.append(load_image(encoded, data.image_size, data.resize))
        except OSError:  # the run has named it, and left it out
            continue
        images.append(np.asarray(decode(encoded)))
        if sum(image.nbytes for image in images) > MAX_BYTES:
            break
    if not images:
        raise DataError(f"no photo can be read; in {split.expression} of {data.source}; repair it to export the run")
    num_stages = len(model.backbone.stages)

    @jax.jit
    def probabilities(variables, pixels):
        features = run_frozen(model, variables, pixels, 0, num_stages)
        return steps.probabilities(model.apply(variables, features, num_stages))

    return Photos(images, np.asarray(probabilities(run.variables, np.stack(inputs))))


def _spread(total, count):
    """`count` numbers from 0 to below `total`, in even steps; all where there are no more."""
    return np.unique(np.linspace(0, total - 1, count).round().astype(int))


def compare(function: Function, photos: Photos, stop: Callable[[], bool]) -> Compared:
    """Runs an export on `photos`, one by one."""
    found = []
    for image in photos.images:
        if stop():
            raise TerminatedError("stopped; the export under way is removed; the same command makes it")
        found.append(function(image[None])[0])
    same = np.argmax(found, -1) == photos.probabilities.argmax(-1)
    return Compared(float(np.abs(found - photos.probabilities).max()), float(same.mean()))


def _say(name, path, compared, num_photos, seconds):
    files = [file for file in path.rglob("*") if file.is_file()] if path.is_dir() else [path]
    mib = sum(file.stat().st_size for file in files) / 2**20
    console.say(
        f"{name}: {path}, {mib:.1f} MiB, {seconds:.0f} s; on {num_photos} photos of val the same class for "
        f"{100 * compared.agreement:.1f} %, probabilities differ by at most {compared.difference:.0e}"
    )
    usage = FORMATS[name].usage.replace("'PATH'", repr(str(path)))
    console.say(f"  {usage}")
    console.say(f"  class names: {FORMATS[name].class_names}")
