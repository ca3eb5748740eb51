"""What `config.data` names -> its splits and class names, checked: splits never share an example."""

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np
from ml_collections import ConfigDict

from tltrain import config as config_lib
from tltrain import places
from tltrain.data import folder_source, tfds_source
from tltrain.data.split import Data, Split
from tltrain.errors import ConfigError, DataError

_SMALL_BATCH, _PADDED = 256, 8  # examples that a batch may always have, and times the training examples


def resolved(config: ConfigDict) -> ConfigDict:
    """A copy of the whole `config` whose paths mean the same from every folder, and whose splits are those there are.

    Raises:
        ConfigError: a path is a remote one.
        DataError: a folder is not there, or its sub-folders cannot be told from classes.
    """
    config = with_absolute_paths(config)
    kind, _, place = config.data.source.partition(":")
    if kind == "folder":
        config.data.splits = folder_source.resolved(Path(place), config.data.splits)
    return config


def with_absolute_paths(config: ConfigDict) -> ConfigDict:
    """A copy of the whole `config` whose paths mean the same from every folder; raises ConfigError for remote ones."""
    made = config_lib.copied(config)
    made.update_from_flattened_dict(places.absolute(config_lib.flatten(config)))
    return made


def load(config: ConfigDict, seed: int) -> Data:
    """Reads what `config.data` names; `seed` draws the training examples where it asks for a few of each class.

    Raises:
        DataError: it is not there, a split is empty, malformed or overlaps another, or labels do not fit the classes.
    """
    data = _read(config)
    _check(data, config.source)
    return _few(data, config.shots, seed) if config.shots else data


def _few(data, shots, seed):
    """`data` with `shots` examples of each class drawn from train."""
    train, drawn = data.splits["train"], []
    for label, name in enumerate(data.class_names):
        rows = np.flatnonzero(train.labels == label)
        if len(rows) < shots:
            raise DataError(
                f"{name} has {len(rows)} training examples, data.shots = {shots}; in {train.expression}; lower it"
            )
        drawn.append(np.random.default_rng((seed, label)).permutation(rows)[:shots])
    few = dataclasses.replace(train, drawn=np.sort(np.concatenate(drawn)).astype(np.int32))
    return dataclasses.replace(data, splits=data.splits | {"train": few})


def load_split(config: ConfigDict, expression: str, class_names: tuple[str, ...]) -> Split:
    """The split `expression` of what `config` names, its labels those of `class_names`.

    Raises:
        DataError: it cannot be read, is empty, or has a class that is not one of these.
    """
    config = config.copy_and_resolve_references()
    config.splits = (expression,)
    data = _read(config)
    (split,) = data.splits.values()
    if unknown := [name for name in data.class_names if name not in class_names]:
        raise DataError(
            f"{config.source} has classes that the run has not; {', '.join(unknown)}; the run knows "
            f"{', '.join(class_names)}; rename or remove them"
        )
    if not split.num_examples:
        raise DataError(f"split {expression!r} of {config.source} is empty; give another")
    labels = np.asarray([class_names.index(name) for name in data.class_names], np.int32)[split.labels]
    return dataclasses.replace(split, labels=labels)


def _read(config):
    kind, _, place = config.source.partition(":")
    if kind == "folder":
        return folder_source.load(Path(place), config.splits)
    return tfds_source.load(place, config)


def check(config: ConfigDict, data: Data) -> None:
    """Raises ConfigError where the batch or the class weights of a whole `config` make no sense with `data`."""
    num_examples = data.splits["train"].num_examples
    largest = max(_SMALL_BATCH, _PADDED * num_examples)
    if config.batch_size > largest:
        raise ConfigError(
            f"batch_size = {config.batch_size}, allowed: at most {largest} with {num_examples} training examples, for "
            "the rest of a batch is padding; in the config; lower it"
        )
    class_weights(config.loss.class_weights, data)


def class_weights(setting: Any, data: Data) -> np.ndarray:
    """Factor of the loss by class, float32 `[num_classes]`, for `config.loss.class_weights`.

    None gives ones; `"auto"` the inverse of each class' frequency in train, with mean 1 over the training examples; a
    dict gives its own numbers, 1 where it names no number.

    Raises:
        ConfigError: the dict names a class that does not exist, or leaves no class with a weight.
    """
    num_classes = len(data.class_names)
    if setting is None:
        return np.ones(num_classes, np.float32)
    if setting == "auto":
        counts = data.splits["train"].class_counts(num_classes)
        return (counts.sum() / (num_classes * counts)).astype(np.float32)
    unknown = sorted(set(setting) - set(data.class_names))
    if unknown:
        raise ConfigError(f"loss.class_weights names {unknown}, allowed: {', '.join(data.class_names)}")
    weights = np.asarray([setting.get(name, 1.0) for name in data.class_names], np.float32)
    if not weights.any():
        raise ConfigError("loss.class_weights are 0 for every class, so nothing is learned; in the config; raise some")
    return weights


def _check(data, source):
    num_classes = len(data.class_names)
    if num_classes < 2:
        raise DataError(f"{source} has {num_classes} class; at least two are needed; put each in a sub-folder")
    seen: dict[str, str] = {}
    for split in data.splits.values():
        if not split.num_examples:
            raise DataError(f"split {split.expression!r} of {source} is empty; change data.splits")
        outside = np.flatnonzero((split.labels < 0) | (split.labels >= num_classes))
        if len(outside):
            example, label = split.ids[outside[0]], split.labels[outside[0]]
            raise DataError(f"label {label} of {example} is outside 0..{num_classes - 1}; in {source}; correct it")
        for example in split.ids:
            if example in seen:
                raise DataError(
                    f"splits {seen[example]!r} and {split.expression!r} of {source} overlap; both hold {example}; "
                    "change data.splits"
                )
        seen |= dict.fromkeys(split.ids, split.expression)
    absent = [name for i, name in enumerate(data.class_names) if not (data.splits["train"].labels == i).any()]
    if absent:
        raise DataError(f"no training example of {', '.join(absent)}; in {source}; add some, or remove the class")
