"""Which batches a phase sees: images, or the stored activations at its cut where these are all it needs."""

import contextlib
import functools
import time
from collections.abc import Callable, Iterator
from typing import NamedTuple

import jax
import numpy as np
from jax.sharding import Mesh
from ml_collections import ConfigDict

from tltrain import config as config_lib
from tltrain.cache import features, space
from tltrain.data import augment, pipeline
from tltrain.data.split import Data
from tltrain.errors import TerminatedError
from tltrain.models import freeze
from tltrain.models.classifier import Classifier
from tltrain.runtime import console
from tltrain.runtime.workdir import Clock

Batches = Iterator[pipeline.Batch]


class SplitInputs(NamedTuple):
    """One split as a phase sees it: `batches(epoch, first)`, the stage these start at, and the shape of a row."""

    batches: Callable[[int | None, int], Batches]
    start: int
    row: jax.ShapeDtypeStruct


def batch_shapes(row: jax.ShapeDtypeStruct, batch_size: int) -> dict[str, jax.ShapeDtypeStruct]:
    """Shapes and dtypes of a batch whose inputs have rows like `row`."""
    fields = {"label": np.int32, "mask": np.bool_, "index": np.int32}
    shapes = {name: jax.ShapeDtypeStruct((batch_size,), dtype) for name, dtype in fields.items()}
    return shapes | {"inputs": jax.ShapeDtypeStruct((batch_size, *row.shape), row.dtype)}


class Inputs:
    """The inputs of a run: its splits, what of them is stored, and the images that could not be read."""

    def __init__(
        self,
        config: ConfigDict,
        model: Classifier,
        data: Data,
        mesh: Mesh,
        clock: Clock,
        stop: Callable[[], bool],
    ) -> None:
        self._config, self._model, self._data, self._mesh = config, model, data, mesh
        self._clock, self._stop = clock, stop
        limit = config.data.max_corrupt
        self._corrupt = {name: pipeline.Corrupt(split, limit, console.warn) for name, split in data.splits.items()}
        self._plans = {
            name: freeze.cut(model.backbone.stages, config[name].freeze_until)
            for name in config_lib.PHASES
            if config[name].epochs
        }
        self._num_computed, self._seconds_computing = 0, 0.0

    def num_corrupt(self) -> dict[str, int]:
        """Unreadable images seen so far, by split."""
        return {name: len(corrupt.indices) for name, corrupt in self._corrupt.items()}

    def images_per_second(self) -> float | None:
        """Speed of the frozen stages, up to the first cut, over the images whose activations were computed so far.

        Reading, decoding, forward pass and writing together, without compiling; None where all were stored already,
        or none are.
        """
        return self._num_computed / self._seconds_computing if self._num_computed else None

    def of_phase(self, name: str, split: str, variables: dict) -> SplitInputs:
        """What phase `name` sees of `split`; computes and stores activations first where that is due, and says so."""
        train = split == "train"
        augment = train and self._config[name].augment
        reason = self.why_images(name, train)
        try:
            found = None if reason else self._stored(name, split, augment, variables)
        except space.NoSpaceError as error:
            if self._config.features.enabled == "on":
                raise
            found, reason = None, str(error)
        if train or (reason and not self.why_images(name, False)):
            place = features.place(self._model, self._plans[name])
            seen = f"stored {place}: {_size(found)}" if found else f"images; {reason}"
            console.say(f"{name}: {split} from {seen}")
        return found or self.images(split, augment)

    def why_images(self, name: str, train: bool) -> str:
        """Why a phase sees images, of its training split where `train`; "" where stored activations will do."""
        options = self._config.features
        if options.enabled == "off":
            return "features.enabled is 'off'"
        if not self._plans[name]:
            return "nothing is frozen"
        if train and config_lib.mixes(self._config[name]):
            return f"{name}.mixup and cutmix mix images"
        if train and self._config[name].augment and not options.augment_views:
            return f"{name}.augment is random; features.augment_views = K would store K views of each"
        return ""

    def _sees_random(self, name):
        return self._config[name].augment or config_lib.mixes(self._config[name])

    def _stored(self, name, split, augment, variables):
        cut, num_views = self._plans[name], self._config.features.augment_views
        with self._clock("features"):
            if augment:
                wanted = [features.Wanted(self._data.splits[split], cut, self._random(), v) for v in range(num_views)]
                stores = [self._ensure(split, view, variables, None) for view in wanted]
            else:
                stores = [self._from_earlier_cuts(split, cut, variables)]
        labels, inputs = self._data.splits[split].labels, stores[0].inputs

        def batches(epoch, first):
            view = stores[(epoch or 0) % len(stores)]
            index, mask = self._rows(split, epoch, first)
            return pipeline.from_arrays(view.take, view.readable, labels, index, mask)

        return SplitInputs(batches, cut, jax.ShapeDtypeStruct(inputs.shape[1:], inputs.dtype))

    def _from_earlier_cuts(self, split, cut, variables):
        """The store at `cut`, each cut at which phases need `split` starting where the one before ends."""
        base = None
        for earlier in sorted(c for c in self.plain_cuts(split) if c < cut):
            with contextlib.suppress(space.NoSpaceError):  # of another phase, which will say so itself
                stored = self._ensure(split, features.Wanted(self._data.splits[split], earlier), variables, base)
                base = (earlier, stored)
        return self._ensure(split, features.Wanted(self._data.splits[split], cut), variables, base)

    def plain_cuts(self, split: str) -> set[int]:
        """The cuts at which phases need `split` without augmentation, where they need not see images."""
        return {
            self._plans[name]
            for name in self._plans
            if self._plans[name] and not (split == "train" and self._sees_random(name))
        }

    def _ensure(self, split, wanted, variables, base):
        corrupt = self._corrupt[split]
        progress = functools.partial(self._progress, base is None)
        return features.ensure(self._config, self._model, variables, wanted, base, corrupt, self._mesh, progress)

    @contextlib.contextmanager
    def _progress(self, from_images, title, total, first):
        started = time.perf_counter()
        with console.progress(title, total, first) as update:

            def progress(done):
                update(done)
                if self._stop():
                    raise TerminatedError(
                        "stopped while features were computed; those done are kept; the same command goes on"
                    )

            yield progress
        if from_images:
            self._num_computed += total - first
            self._seconds_computing += time.perf_counter() - started

    def _random(self):
        return augment.Augment(**self._config.data.augment.to_dict(), seed=self._config.seed)

    def images(self, split: str, augment: bool = False) -> SplitInputs:
        """`split` from its images."""
        data = self._config.data
        random = self._random() if augment else None

        def batches(epoch, first):
            index, mask = self._rows(split, epoch, first)
            corrupt = self._corrupt[split]
            return pipeline.from_images(
                self._data.splits[split], index, mask, data.image_size, data.resize, corrupt, random, epoch or 0
            )

        return SplitInputs(batches, 0, jax.ShapeDtypeStruct((*data.image_size, 3), np.uint8))

    def _rows(self, split, epoch, first):
        """Training order where there is an epoch, else the order of the split."""
        shuffle = None if epoch is None else (self._config.seed, epoch)
        rows = self._data.splits[split].rows
        order, mask = pipeline.rows(len(rows), self._config.batch_size, shuffle, first)
        return rows[order], mask


def _size(inputs: SplitInputs) -> str:
    shape = " x ".join(map(str, inputs.row.shape))
    return f"{shape} {inputs.row.dtype}, {inputs.row.size * inputs.row.dtype.itemsize / 1024:.1f} KiB an image"
