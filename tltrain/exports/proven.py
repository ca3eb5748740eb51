"""Files of other formats that are proven: each is loaded again and compared with the run before it gets its name."""

import importlib.util
import json
import os
import tempfile
import time
from pathlib import Path
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from tltrain import places
from tltrain.data import packing
from tltrain.errors import ConfigError, DataError, TerminatedError, WeightsError, WorkdirError
from tltrain.experiment import finished
from tltrain.experiment.finished import Finished
from tltrain.exports import keras_model
from tltrain.exports.formats import FORMATS, Function
from tltrain.models.classifier import run_frozen
from tltrain.runtime import console
from tltrain.runtime.process import Process

MAX_BYTES = 2**30  # of decoded examples
# Of probabilities, or of numbers in units of the largest. Sums of float32 in another order move them by 1e-6 to 1e-5; a
# grey level that a large photo may differ by here and there, or one cropped to a size that is no square, by 1e-4.
TOLERANCE = 1e-3


class Examples(NamedTuple):
    """Examples as `Kind.raw` gives them, images at their own sizes, and `Task.activation` of the run, `[N, K]`."""

    raw: list[tuple[np.ndarray, ...]]
    answers: np.ndarray

    def spread(self, count: int) -> "Examples":
        """`count` of them, or all where there are no more."""
        chosen = _spread(len(self.raw), count)
        return Examples([self.raw[i] for i in chosen], self.answers[chosen])


class Compared(NamedTuple):
    """The largest difference of two answers, see `TOLERANCE`, and the share of examples with the same answer."""

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


def export(run: Finished, names: list[str], folder: Path, process: Process) -> None:
    """Writes `run` to `folder` in each of the formats `names`, in float32, and says how to use it.

    Raises:
        ConfigError: a format has no layers for the backbone of `run`.
        WeightsError: a file does not compute what the run does; it is removed.
        DataError: the examples of val cannot be read.
        WorkdirError: `folder` cannot be written.
        TerminatedError: `process.stop()` became true.
    """
    for name in names:
        if FORMATS[name].packages and keras_model.body_of(run.model.backbone) is None:
            raise ConfigError(
                f"{name} is made of layers of Keras, of which there is no {run.config.model.backbone}, that takes "
                f"{run.kind.name}; in {run.path}; choose stablehlo"
            )
        if FORMATS[name].packages and run.model.bank:
            raise ConfigError(
                f"{name} is made of layers of Keras, of which there is none of nearest neighbours; in {run.path}; "
                "choose stablehlo"
            )
    run = run._replace(model=run.model.clone(backbone=run.model.backbone.clone(dtype=jnp.float32)))
    examples = read_examples(run, max(FORMATS[name].max_examples for name in names))
    for name in names:
        try:
            _export_one(run, name, folder, examples.spread(FORMATS[name].max_examples), process)
        except OSError as error:
            raise WorkdirError(f"cannot write {folder}; {error}; free space, or give another --output") from error


def _export_one(run, name, folder, examples, process):
    start = time.perf_counter()
    path = folder / FORMATS[name].file
    folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=".export_", dir=folder) as part, places.literal(Path(part)) as named:
        unproven = named / path.name
        FORMATS[name].write(run, unproven)
        compared = compare(run, FORMATS[name].load(unproven), examples, process)
        if not compared.difference <= TOLERANCE:
            raise WeightsError(
                f"the {name} export is not the run; answers differ by {compared.difference:.2g}, allowed is "
                f"{TOLERANCE}; {path} is not written; take another format, and report this"
            )
        if run.class_names:
            (folder / "class_names.json").write_text(json.dumps(run.class_names) + "\n")
        for file, text in run.kind.files().items():
            (folder / file).write_text(text)
        unproven.rename(path)
    _say(run, name, path, compared, f"{len(examples.raw)} {run.kind.name}", time.perf_counter() - start)


def read_examples(run: Finished, count: int) -> Examples:
    """Up to `count` examples spread over val, and what the steps of evaluation make of them."""
    data, model = run.config.data, run.model
    split = finished.own_split(run, data.splits[1])
    raw: list[tuple[np.ndarray, ...]] = []
    rows = []
    for i in _spread(split.num_examples, count):
        try:
            encoded = split.read(int(i))
            rows.append(run.kind.row(encoded))
        except OSError:  # the run has named it, and left it out
            continue
        raw.append(run.kind.raw(encoded))
        if sum(part.nbytes for one in raw for part in one) > MAX_BYTES:
            break
    if not raw:
        raise DataError(
            f"none of the {run.kind.name} can be read; in {split.expression} of {data.source}; repair them to export "
            "the run"
        )
    num_stages = len(model.backbone.stages)

    @jax.jit
    def answers(variables, rows):
        features = run_frozen(model, variables, rows, 0, num_stages)
        return run.task.activation(jax.nn, model.apply(variables, features, num_stages))

    batch = packing.batch_of(rows) if run.kind.ragged else jax.tree.map(lambda *leaves: np.stack(leaves), *rows)
    return Examples(raw, np.asarray(answers(run.variables, batch)))


def _spread(total, count):
    """`count` numbers from 0 to below `total`, in even steps; all where there are no more."""
    return np.unique(np.linspace(0, total - 1, count).round().astype(int))


def compare(run: Finished, function: Function, examples: Examples, process: Process) -> Compared:
    """Runs an export on `examples`, one by one."""
    names = [argument.name for argument in run.kind.signature()]
    found = []
    for one in examples.raw:
        if process.stop():
            raise TerminatedError("stopped; the export under way is removed; the same command makes it")
        found.append(function({name: part[None] for name, part in zip(names, one, strict=True)})[0])
    theirs, ours = np.asarray(found), examples.answers
    difference = np.abs(theirs - ours).max() / max(1.0, np.abs(ours).max())
    return Compared(float(difference), float(run.task.same(theirs, ours).mean()))


def _say(run, name, path, compared, examples, seconds):
    files = [file for file in path.rglob("*") if file.is_file()] if path.is_dir() else [path]
    mib = sum(file.stat().st_size for file in files) / 2**20
    console.say(
        f"{name}: {path}, {mib:.1f} MiB, {seconds:.0f} s; on {examples} of val the same answer for "
        f"{100 * compared.agreement:.1f} %, answers differ by at most {compared.difference:.0e}"
    )
    arguments = [argument.name for argument in run.kind.signature()]
    console.say(f"  {FORMATS[name].use(str(path), arguments, run.task.output)}")
    if run.class_names:
        console.say(f"  class names: {FORMATS[name].class_names}")
