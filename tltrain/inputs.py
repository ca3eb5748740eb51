"""Which batches a phase sees: images, or the stored activations at its cut where these are all it needs."""

from collections.abc import Callable, Iterator
from typing import NamedTuple

import jax
import numpy as np
from ml_collections import ConfigDict

from tltrain import config as config_lib
from tltrain import console, features, freeze
from tltrain.data import pipeline, preprocess, sources
from tltrain.errors import TerminatedError
from tltrain.models.classifier import Classifier
from tltrain.workdir import Clock

Batches = Iterator[pipeline.Batch]


class SplitInputs(NamedTuple):
    """One split as a phase sees it: `batches(epoch, first)`, the stage these start at, and the shape of a row."""

    batches: Callable[[int | None, int], Batches]
    start: int
    row: jax.ShapeDtypeStruct

    def batch_shapes(self, batch_size: int) -> dict[str, jax.ShapeDtypeStruct]:
        """Shapes and dtypes of a batch."""
        fields = {"label": np.int32, "mask": np.bool_, "index": np.int32}
        shapes = {name: jax.ShapeDtypeStruct((batch_size,), dtype) for name, dtype in fields.items()}
        return shapes | {"inputs": jax.ShapeDtypeStruct((batch_size, *self.row.shape), self.row.dtype)}


class Inputs:
    """The inputs of a run: its splits, what of them is stored, and the images that could not be read."""

    def __init__(
        self, config: ConfigDict, model: Classifier, data: sources.Data, clock: Clock, stop: Callable[[], bool]
    ) -> None:
        self._config, self._model, self._data, self._clock, self._stop = config, model, data, clock, stop
        limit = config.data.max_corrupt
        self._corrupt = {name: pipeline.Corrupt(split, limit, console.warn) for name, split in data.splits.items()}
        self._plans = {
            name: freeze.cut(model.backbone.stages, config[name].freeze_until)
            for name in config_lib.PHASES
            if config[name].epochs
        }

    def num_corrupt(self) -> dict[str, int]:
        """Unreadable images seen so far, by split."""
        return {name: len(corrupt.indices) for name, corrupt in self._corrupt.items()}

    def of_phase(self, name: str, split: str, variables: dict) -> SplitInputs:
        """What phase `name` sees of `split`; computes and stores activations first where that is due."""
        augment = split == "train" and self._config[name].augment
        cut = self._plans[name]
        if self._config.features.enabled == "off" or augment or not cut:
            return self.images(split, augment)
        store = None
        with self._clock("features"):
            for earlier in self._stored_cuts(split, cut):
                store = self._store(split, earlier, variables, store)
        assert store is not None, "the cut of the phase is among the stored ones"
        labels, stored = self._data.splits[split].labels, store

        def batches(epoch, first):
            index, mask = self._rows(split, epoch, first)
            return pipeline.from_arrays(stored.inputs, stored.readable, labels, index, mask)

        return SplitInputs(batches, cut, jax.ShapeDtypeStruct(stored.inputs.shape[1:], stored.inputs.dtype))

    def images(self, split: str, augment: bool = False) -> SplitInputs:
        """`split` from its images."""
        data = self._config.data
        random = preprocess.Augment(**data.augment.to_dict(), seed=self._config.seed) if augment else None

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
        return pipeline.rows(self._data.splits[split].num_examples, self._config.batch_size, shuffle, first)

    def _stored_cuts(self, split, cut):
        """The cuts at which phases need `split`, up to `cut`: the store of one is where the next starts."""
        cuts = {
            self._plans[name]
            for name in self._plans
            if self._plans[name] and not (split == "train" and self._config[name].augment)
        }
        return sorted(c for c in cuts if c <= cut)

    def _store(self, split, cut, variables, base):
        stages = self._model.backbone.stages
        place = "pooled features" if cut == len(stages) else f"activations before {stages[cut]}"
        size = self._data.splits[split].num_examples
        with console.progress(f"Computing the {place}, {split}", size) as update:

            def progress(done, _):
                update(done)
                if self._stop():
                    raise TerminatedError(
                        "stopped while features were computed; no step was done yet; the same command begins again"
                    )

            return features.ensure(
                self._config,
                self._model,
                variables,
                self._data.splits[split],
                cut,
                self._corrupt[split],
                base,
                progress,
            )
