"""The computation of a store: every example through frozen stages, batch by batch, written as it comes."""

import contextlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np

from tltrain.cache import forward, space, store
from tltrain.data import packing, pipeline
from tltrain.data.split import Split
from tltrain.data.tensorflow import begin_import, import_tensorflow
from tltrain.errors import TerminatedError
from tltrain.runtime import hosts
from tltrain.training.setup import Setup

Progress = Callable[[str, int, int], contextlib.AbstractContextManager[Callable[[int], bool]]]


class Origin(NamedTuple):
    """What a store is computed from: examples of `split`, varied as those of epoch `view` where that is no None.

    Or the activations before stage `start` of its examples, where these are `stored`. `corrupt` collects the examples
    that cannot be read.
    """

    split: Split
    view: int | None
    start: int
    stored: store.Store | None
    corrupt: pipeline.Corrupt

    @property
    def reads_examples(self) -> bool:
        """Whether TensorFlow reads them."""
        return self.stored is None and not self.split.kind.ragged


class _Planned(NamedTuple):
    """The rows of a batch, those of no example masked, and its shape where these are tokens."""

    rows: np.ndarray
    mask: np.ndarray
    shape: packing.Shape | None = None


def write(
    setup: Setup,
    variables: dict,
    origin: Origin,
    cut: int,
    folder: Path,
    title: str,
    progress: Progress,
    facts: dict[str, Any],
) -> None:
    """Writes what stages up to `cut` make of `origin` to the store of `folder`, as far as it is missing.

    `title` and `progress` are those of `features.ensure`, as are the errors; `facts` say what it holds. Each process
    computes its share of the rows.
    """
    count = len(origin.split.ids)
    tokens = _tokens(origin)
    planned = _plan(setup, origin, tokens)
    programs = [forward.program(setup, origin.start, cut, inputs) for inputs in _shapes(setup, origin, planned)]
    result = space.as_stored(setup.config, forward.result(programs[0]))
    arrays, offsets = space.of_store(result, count, tokens and tokens.offsets)

    def opened():
        if not folder.with_suffix(".part").exists():
            space.check(setup, folder.parent, count, space.num_bytes(arrays))
        return store.Writer(folder, arrays, offsets)

    writer = hosts.writer_first(opened)
    hosts.gather(title, None)  # nothing is written before all have seen what is missing
    due = [batch for batch in planned if (writer.missing[batch.rows] & batch.mask).any()]
    due = due[hosts.index() :: hosts.count()]
    batches = _batches(setup, origin, tokens, due)
    if origin.reads_examples:
        begin_import()  # TensorFlow comes in while XLA compiles
    for program in programs:
        forward.compiled(program)
    computed = forward.activations(setup, origin.start, cut, variables, batches)
    if origin.reads_examples:
        import_tensorflow()
    done, stopped = count - int(writer.missing.sum()), False
    with progress(title, count, done) as update:
        for batch, plan in zip(computed, due, strict=True):
            keep = np.flatnonzero(plan.mask)
            writer.write(batch["index"][keep], _rows(batch["inputs"], keep, result), batch["mask"][keep])
            done += len(keep) * hosts.count()
            if stopped := update(min(done, count)):
                break
    writer.flush()
    if any(hosts.gather(title, stopped)):
        raise TerminatedError("stopped while features were computed; those done are kept; the same command goes on")
    hosts.on_writer(writer.finish, facts)


def _tokens(origin: Origin) -> pipeline.TokenRows | None:
    """The rows of tokens that a batch is packed of; None where rows are of one shape."""
    if origin.stored is not None:
        return origin.stored.tokens
    return pipeline.tokens(origin.split, origin.corrupt) if origin.split.kind.ragged else None


def _plan(setup, origin, tokens) -> list[_Planned]:
    """Batches that hold every example once."""
    if tokens is None:
        rows = pipeline.rows(len(origin.split.ids), setup.local_batch_size)
        return [_Planned(*batch) for batch in zip(*rows, strict=True)]
    return [_Planned(*batch) for batch in packing.passes(tokens.lengths, setup.local_mesh.size)]


def _shapes(setup, origin, planned) -> list[Any]:
    """Those of the inputs of all batches."""
    stored = origin.stored
    row = stored.row if stored else origin.split.kind.shapes()
    if not origin.split.kind.ragged:
        return [forward.batch_of(row, setup.local_batch_size)]
    return [
        packing.shapes_of(row, shape, setup.local_mesh.size) for shape in sorted({batch.shape for batch in planned})
    ]


def _batches(setup, origin, tokens, due) -> Iterator[pipeline.Batch]:
    labels, stored = origin.split.labels, origin.stored
    if tokens is not None:
        return pipeline.from_tokens(tokens, labels, due, setup.local_mesh.size)
    size = setup.local_batch_size
    index = np.asarray([batch.rows for batch in due], np.int32).reshape(-1, size)
    mask = np.asarray([batch.mask for batch in due], bool).reshape(-1, size)
    if stored:
        return pipeline.from_arrays(stored.take, stored.readable, labels, index, mask)
    return pipeline.from_examples(origin.split, index, mask, origin.corrupt, origin.view)


def _rows(inputs: Any, keep: np.ndarray, like: Any) -> list[Any]:
    """The rows `keep` of a batch of activations, of the dtypes of `like`."""
    inputs = jax.tree.map(lambda a, wanted: np.asarray(a).astype(wanted.dtype), inputs, like)
    if packing.is_packed(inputs):
        rows = packing.unpack(inputs)
        return [rows[i] for i in keep]
    return [jax.tree.map(lambda a, i=i: a[i], inputs) for i in keep]
