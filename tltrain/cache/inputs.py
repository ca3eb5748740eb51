"""Which batches a phase sees: examples, or the stored activations at its cut where these are all it needs."""

import contextlib
import functools
import itertools
import time
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import jax
import numpy as np

from tltrain import config as config_lib
from tltrain.cache import features, forward, space, store
from tltrain.data import packing, pipeline
from tltrain.runtime import console, hosts, pace, parallel
from tltrain.runtime.process import Process
from tltrain.training.setup import Setup

Batches = Iterator[pipeline.Batch]


class SplitInputs(NamedTuple):
    """One split as a phase sees it.

    `batches(epoch, first)` are those of an epoch, of each the share of this process; or, where it is None, those that
    this process evaluates. They begin before stage `start`. `shapes(epoch)` are those of the inputs of whole batches,
    where rows are tokens several. `row` is the shape of one
    example, of mean length where it is tokens.
    """

    batches: Callable[[int | None, int], Batches]
    start: int
    shapes: Callable[[int | None], tuple[Any, ...]]
    row: Any


def batch_shapes(setup: Setup, inputs: Any) -> dict[str, Any]:
    """Shapes and dtypes of a batch of inputs like `inputs`, arrays or shapes."""
    one = {name: jax.ShapeDtypeStruct((), dtype) for name, dtype in (("mask", np.bool_), ("index", np.int32))}
    count = packing.num_rows(inputs)
    return forward.batch_of({"label": setup.task.label, **one}, count) | {"inputs": inputs}


class Inputs:
    """The inputs of a run: its splits, what of them is stored, and the examples that could not be read."""

    def __init__(self, setup: Setup, process: Process) -> None:
        self._setup, self._process = setup, process
        self._config, splits = setup.config, setup.data.splits
        limit = self._config.data.max_corrupt
        self._corrupt = {name: pipeline.Corrupt(split, limit, console.warn) for name, split in splits.items()}
        self._cuts = {name: setup.plan(name).cut for name in config_lib.PHASES if self._config[name].epochs}
        self._num_computed, self._seconds_computing = 0, 0.0

    def num_corrupt(self) -> dict[str, int]:
        """Unreadable examples that all processes have seen so far, by split."""
        of_all = hosts.gather("unreadable examples", {name: list(one.indices) for name, one in self._corrupt.items()})
        return {name: len({i for of_one in of_all for i in of_one[name]}) for name in self._corrupt}

    def examples_per_second(self) -> float | None:
        """Speed of the frozen stages, up to the first cut, over the examples whose activations were computed so far.

        Reading, decoding, forward pass and writing together, without compiling; None where all were stored already,
        or none are.
        """
        return self._num_computed / self._seconds_computing if self._num_computed else None

    def of_phase(self, name: str, split: str, variables: dict) -> SplitInputs:
        """What phase `name` sees of `split`; computes and stores activations first where that is due, and says so."""
        train = split == "train"
        augment = train and self._config[name].augment
        reason = self.why_examples(name, train)
        try:
            found = None if reason else self._stored(name, split, variables)
        except space.NoSpaceError as error:
            if self._config.features.enabled == "on":
                raise
            found, reason = None, str(error)
        if train or (reason and not self.why_examples(name, False)):
            place = features.place(self._setup.model, self._cuts[name])
            seen = f"stored {place}: {_size(found)}" if found else f"{self._setup.data.kind.name}; {reason}"
            console.say(f"{name}: {split} from {seen}")
        return found or self.examples(split, augment)

    def why_examples(self, name: str, train: bool) -> str:
        """Why a phase sees examples, of its training split where `train`; "" where stored activations will do."""
        options = self._config.features
        if options.enabled == "off":
            return "features.enabled is 'off'"
        if not self._cuts[name]:
            return "nothing is frozen"
        if train and config_lib.mixes(self._config[name]):
            return f"{name}.mixup and cutmix mix images"
        if train and self._config[name].augment and not options.augment_views:
            return f"{name}.augment is random; features.augment_views = K would store K views of each"
        return ""

    def _sees_random(self, name):
        return self._config[name].augment or config_lib.mixes(self._config[name])

    def _stored(self, name, split, variables):
        cut, examples = self._cuts[name], self._setup.data.splits[split]
        stores = self.stores(name, split, variables)
        row = stores[0].row
        if (rows := stores[0].tokens) is not None:
            return self._of_tokens(split, cut, row, rows)

        def batches(epoch, first):
            view = stores[(epoch or 0) % len(stores)]
            index, mask = self._rows(split, epoch, first)
            return pipeline.from_arrays(view.take, view.readable, examples.labels, index, mask)

        return self._of_rows(batches, cut, row)

    def _of_rows(self, batches, start, row):
        def shapes(epoch):
            size = self._setup.local_batch_size if epoch is None else self._config.batch_size
            return (forward.batch_of(row, size),)

        return SplitInputs(batches, start, shapes, row)

    def _of_tokens(self, split, start, row, rows):
        """From rows of tokens, shaped like `row`."""
        examples, setup = self._setup.data.splits[split], self._setup

        def plan(epoch, first):
            if epoch is None:
                chosen = examples.rows
                planned = packing.passes(rows.lengths[chosen], setup.local_mesh.size)
                return ((np.where(mask, chosen[i], i), mask, shape) for i, mask, shape in planned)
            return pipeline.packed_rows(rows.lengths, *self._order(split, epoch, first), setup.mesh.size)

        def batches(epoch, first):
            planned = plan(epoch, first)
            if epoch is None:
                own = itertools.islice(planned, hosts.index(), None, hosts.count())
            else:
                own = ((parallel.share(i), parallel.share(mask), shape) for i, mask, shape in planned)
            return pipeline.from_tokens(rows, examples.labels, own, setup.local_mesh.size)

        def shapes(epoch):
            found = sorted({shape for _, _, shape in plan(epoch, 0)})
            num_groups = (setup.local_mesh if epoch is None else setup.mesh).size
            return tuple(packing.shapes_of(row, shape, num_groups) for shape in found)

        mean = round(float(rows.lengths.mean()))
        return SplitInputs(
            batches, start, shapes, jax.tree.map(lambda leaf: leaf.update(shape=(mean, *leaf.shape[1:])), row)
        )

    def stores(self, name: str, split: str, variables: dict, task: tuple[int, int] | None = None) -> list[store.Store]:
        """Those that phase `name` sees of `split`, one a view: computed, each cut from where the one before ends.

        What is not whole after its `task`, see `extraction.write`, and what would be computed from that are left out.
        """
        cut, examples, base = self._cuts[name], self._setup.data.splits[split], None
        ensure = functools.partial(self._ensure, split, variables, task)
        with self._process.clock("features"):
            if split == "train" and self._config[name].augment:
                views = [features.Wanted(examples, cut, view) for view in range(self._config.features.augment_views)]
                return [stored for view in views if (stored := ensure(view, None))]
            for earlier in sorted(c for c in self.plain_cuts(split) if c < cut):
                with contextlib.suppress(space.NoSpaceError):  # of another phase, which will say so itself
                    if (stored := ensure(features.Wanted(examples, earlier), base)) is None:
                        return []
                    base = (earlier, stored)
            stored = ensure(features.Wanted(examples, cut), base)
            return [stored] if stored else []

    def plain_cuts(self, split: str) -> set[int]:
        """The cuts at which phases need `split` without augmentation, where they need not see examples."""
        return {
            self._cuts[name]
            for name in self._cuts
            if self._cuts[name] and not (split == "train" and self._sees_random(name))
        }

    def _ensure(self, split, variables, task, wanted, base):
        corrupt = self._corrupt[split]
        progress = functools.partial(self._progress, base is None)
        return features.ensure(self._setup, variables, wanted, base, corrupt, progress, task)

    @contextlib.contextmanager
    def _progress(self, from_examples, title, total, first):
        started = time.perf_counter()
        with pace.at(pace.STEADY, title), console.progress(title, total, first) as update:

            def progress(done):
                update(min(first + done, total))
                return self._process.stop()

            yield progress
        if from_examples:
            self._num_computed += total - first
            self._seconds_computing += time.perf_counter() - started

    def examples(self, split: str, augment: bool = False) -> SplitInputs:
        """`split` from its examples."""
        kind = self._setup.data.kind
        if kind.ragged:
            rows = pipeline.tokens(self._setup.data.splits[split], self._corrupt[split])
            return self._of_tokens(split, 0, kind.shapes(), rows)

        def batches(epoch, first):
            index, mask = self._rows(split, epoch, first)
            examples, corrupt = self._setup.data.splits[split], self._corrupt[split]
            return pipeline.from_examples(examples, index, mask, corrupt, (epoch or 0) if augment else None)

        return self._of_rows(batches, 0, kind.shapes())

    def _order(self, split, epoch, first):
        """Rows of the batches of all processes: in training order where there is an epoch, else as in the split."""
        shuffle, size = (None, self._setup.local_batch_size) if epoch is None else ((self._config.seed, epoch), None)
        rows = self._setup.data.splits[split].rows
        order, mask = pipeline.rows(len(rows), size or self._config.batch_size, shuffle, first)
        return rows[order], mask

    def _rows(self, split, epoch, first):
        """Those of this process: its share of each batch where there is an epoch, else some of the batches."""
        order = self._order(split, epoch, first)
        if epoch is None:
            return [of_all[hosts.index() :: hosts.count()] for of_all in order]
        return [parallel.share(of_all.T).T for of_all in order]


def _size(inputs: SplitInputs) -> str:
    leaves = jax.tree.leaves(inputs.row)
    shapes = " and ".join(f"{' x '.join(map(str, leaf.shape))} {leaf.dtype}" for leaf in leaves)
    return f"{shapes}, {space.num_bytes(inputs.row) / 1024:.1f} KiB each"
