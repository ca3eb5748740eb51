"""The computation of a store: every example through frozen stages, batch by batch, written as it comes."""

import contextlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np

from tltrain.cache import forward, sharing, space, store
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


class _Work(NamedTuple):
    """Stages up to `cut` over the examples of `origin`; `tokens` are their tokens, None where they have none."""

    setup: Setup
    origin: Origin
    cut: int
    tokens: pipeline.TokenRows | None

    def batches(self, rows: np.ndarray) -> list[_Planned]:
        """Batches that hold each of the examples `rows` once."""
        if self.tokens is None:
            planned: Any = zip(*pipeline.rows(len(rows), self.setup.local_batch_size), strict=True)
            return [_Planned(rows[i].astype(np.int32), mask) for i, mask in planned]
        planned = packing.passes(self.tokens.lengths[rows], self.setup.local_mesh.size)
        return [_Planned(np.where(i < 0, -1, rows[i]).astype(np.int32), mask, shape) for i, mask, shape in planned]

    def programs(self, planned: list[_Planned]) -> list[forward.Program]:
        """Those that the batches need."""
        setup, stored, kind = self.setup, self.origin.stored, self.origin.split.kind
        row = stored.row if stored else kind.shapes()
        if not kind.ragged:
            inputs = [forward.batch_of(row, setup.local_batch_size)]
        else:
            shapes = sorted({batch.shape for batch in planned if batch.shape})
            inputs = [packing.shapes_of(row, shape, setup.local_mesh.size) for shape in shapes]
        return [forward.program(setup, self.origin.start, self.cut, one) for one in inputs]

    def result(self) -> Any:
        """The shapes of what is made of a batch, as they are stored."""
        program, *_ = self.programs(self.batches(np.zeros(1, np.int64)))
        return space.as_stored(self.setup.config, forward.result(program))

    def read(self, planned: list[Any]) -> Iterator[pipeline.Batch]:
        """The batches."""
        origin, setup, labels = self.origin, self.setup, self.origin.split.labels
        if self.tokens is not None:
            return pipeline.from_tokens(self.tokens, labels, planned, setup.local_mesh.size)
        size = setup.local_batch_size
        index = np.asarray([batch.rows for batch in planned], np.int32).reshape(-1, size)
        mask = np.asarray([batch.mask for batch in planned], bool).reshape(-1, size)
        if origin.stored:
            return pipeline.from_arrays(origin.stored.take, origin.stored.readable, labels, index, mask)
        return pipeline.from_examples(origin.split, index, mask, origin.corrupt, origin.view)


def write(
    setup: Setup,
    variables: dict,
    origin: Origin,
    cut: int,
    folder: Path,
    title: str,
    progress: Progress,
    facts: dict[str, Any],
    task: tuple[int, int] | None = None,
) -> None:
    """Writes what stages up to `cut` make of `origin` to the store of `folder`, as far as it is missing.

    `title` and `progress` are those of `features.ensure`, as are the errors; `facts` say what it holds. Each process
    computes its share of the shards; those that see no folder in common copy them from each other. As `task`
    `(i, n)` of n that know nothing of each other it computes the share of that one, and the store stays unfinished.
    """
    count = len(origin.split.ids)
    work = _Work(setup, origin, cut, _tokens(origin))
    arrays, offsets = space.of_store(work.result(), count, work.tokens and work.tokens.offsets)

    def opened():
        if not folder.with_suffix(".part").exists():
            space.check(setup, folder.parent, count, space.num_bytes(arrays))
        return store.Writer(folder, arrays, offsets)

    leads = sharing.leads(folder.parent)
    writer = hosts.in_turn(leads, opened)
    held = hosts.gather(title, writer.whole() if leads and task is None else [])
    due = sorted(set(range(writer.num_shards)).difference(*held))
    first, step = task or (hosts.index(), hosts.count())
    missing = writer.missing(due[first::step])
    left = sum(hosts.gather(title, len(missing)))
    done = 0 if task else count - left
    stopped = _compute(work, variables, writer, missing, lambda: progress(title, done + left, done))
    writer.flush()
    if any(hosts.gather(title, stopped)):
        raise TerminatedError("stopped while features were computed; those done are kept; the same command goes on")
    if task is None:
        sharing.copy(folder.parent, writer, due, held)
        hosts.in_turn(leads, lambda: writer.finish(facts) if leads else None)


def _compute(work, variables, writer, missing, progress) -> bool:
    """Computes the rows `missing` and writes them; returns whether it was stopped before all were there."""
    planned, origin, result, done = work.batches(missing), work.origin, work.result(), 0
    batches = work.read(planned)
    if planned and origin.reads_examples:
        begin_import()  # TensorFlow comes in while XLA compiles
    for program in work.programs(planned) if planned else ():
        forward.compiled(program)
    computed = forward.activations(work.setup, origin.start, work.cut, variables, batches)
    if planned and origin.reads_examples:
        import_tensorflow()
    with progress() as update:
        for batch, plan in zip(computed, planned, strict=True):
            keep = np.flatnonzero(plan.mask)
            writer.write(batch["index"][keep], _rows(batch["inputs"], keep, result), batch["mask"][keep])
            done += len(keep) * hosts.count()
            if update(done):
                return True
    return False


def _tokens(origin: Origin) -> pipeline.TokenRows | None:
    """The rows of tokens that a batch is packed of; None where rows are of one shape."""
    if origin.stored is not None:
        return origin.stored.tokens
    return pipeline.tokens(origin.split, origin.corrupt) if origin.split.kind.ragged else None


def _rows(inputs: Any, keep: np.ndarray, like: Any) -> list[Any]:
    """The rows `keep` of a batch of activations, of the dtypes of `like`."""
    inputs = jax.tree.map(lambda a, wanted: np.asarray(a).astype(wanted.dtype), inputs, like)
    if packing.is_packed(inputs):
        rows = packing.unpack(inputs)
        return [rows[i] for i in keep]
    return [jax.tree.map(lambda a, i=i: a[i], inputs) for i in keep]
