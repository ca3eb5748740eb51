"""What `config.data` names -> its splits and class names, checked: splits never share an example."""

import dataclasses
from pathlib import Path

import numpy as np
from ml_collections import ConfigDict

from tltrain import config as config_lib
from tltrain import places
from tltrain.data import folder_source, names, table_source, tfds_source
from tltrain.data.kinds.kind import Kind
from tltrain.data.split import Data, Split
from tltrain.errors import ConfigError, DataError
from tltrain.runtime import console

_NAMED = 5  # classes that a line names
# what to do where there is one class
_TO_DIVIDE = {"folder": "put each in a sub-folder", "table": "name another column by data.label"}
_TO_DIVIDE |= {"tfds": "choose another data.source"}


def resolved(config: ConfigDict) -> ConfigDict:
    """A copy of the whole `config` whose paths mean the same from every folder, and whose splits are those there are.

    Raises:
        ConfigError: a path is a remote one.
        DataError: a folder or a table is not there, or sub-folders cannot be told from classes.
    """
    config = with_absolute_paths(config)
    scheme, _, place = config.data.source.partition(":")
    if scheme == "folder":
        config.data.splits = folder_source.resolved(Path(place), config.data.splits)
    elif scheme == "table":
        config.data.splits = table_source.resolved(Path(place), config.data)
    return config


def with_absolute_paths(config: ConfigDict) -> ConfigDict:
    """A copy of the whole `config` whose paths mean the same from every folder; raises ConfigError for remote ones."""
    made = config_lib.copied(config)
    made.update_from_flattened_dict(places.absolute(config_lib.flatten(config)))
    return made


def load(config: ConfigDict, kind: Kind) -> Data:
    """Reads what the group `data` of the whole `config` names: examples of `kind`, labels as its task says.

    Its seed draws the training examples where it asks for a few of each class.

    Raises:
        DataError: it is not there, a split is empty, malformed or overlaps another, or labels do not fit the classes.
    """
    data, source = _read(config.data, kind, config.task), config.data.source
    _check(data, source)
    _warn_of_unmeasured(data, source)
    return _few(data, config.data.shots, config.seed) if config.data.shots else data


def _few(data, shots, seed):
    """`data` with `shots` examples of each class drawn from train."""
    if data.task != "classification":
        raise ConfigError(f"data.shots = {shots}, allowed: 0 where labels are not one class each; in the config; set 0")
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


def load_split(config: ConfigDict, kind: Kind, expression: str, like: Data) -> Split:
    """The split `expression` of what `config`, the group `data` of a whole one, names; labels as those of `like` are.

    Raises:
        DataError: it cannot be read, is empty, or its labels are no such labels.
    """
    config = config.copy_and_resolve_references()
    config.splits = (expression,)
    data = _read(config, kind, like.task)
    (split,) = data.splits.values()
    if data.task != like.task:
        raise DataError(
            f"the labels of {config.source} are for {data.task}, those of the run for {like.task}; take others"
        )
    if unknown := [name for name in data.class_names if name not in like.class_names]:
        raise DataError(
            f"{config.source} has classes that the run has not; {', '.join(unknown)}; the run knows "
            f"{', '.join(like.class_names)}; rename or remove them"
        )
    if not split.num_examples:
        raise DataError(f"split {expression!r} of {config.source} is empty; give another")
    _check_labels(split, data, config.source)
    columns, labels = [like.class_names.index(name) for name in data.class_names], split.labels
    if data.task == "classification":
        labels = np.asarray(columns, np.int32)[labels]
    elif data.task == "multi_label":
        labels = np.zeros((len(labels), len(like.class_names)), bool)
        labels[:, columns] = split.labels
    return dataclasses.replace(split, labels=labels)


def _read(config, kind, task):
    scheme, _, place = config.source.partition(":")
    if scheme == "folder":
        return folder_source.load(Path(place), config.splits, kind)
    if scheme == "table":
        return table_source.load(Path(place), config, kind, task)
    return tfds_source.load(place, config, kind)


def _check(data, source):
    num_classes = len(data.class_names)
    if data.task == "classification" and num_classes < 2:
        remedy = _TO_DIVIDE[source.partition(":")[0]]
        raise DataError(f"{source} has {num_classes} class; at least two are needed; {remedy}")
    earlier: list[Split] = []
    for split in data.splits.values():
        if not split.num_examples:
            raise DataError(f"split {split.expression!r} of {source} is empty; change data.splits")
        _check_labels(split, data, source)
        for other in earlier:
            if (example := names.common(split.ids, other.ids)) is not None:
                raise DataError(
                    f"splits {other.expression!r} and {split.expression!r} of {source} overlap; both hold {example}; "
                    "change data.splits"
                )
        earlier.append(split)
    counts = data.splits["train"].class_counts(num_classes)
    if absent := [name for name, count in zip(data.class_names, counts, strict=True) if not count]:
        raise DataError(f"no training example of {', '.join(absent)}; in {source}; add some, or remove the class")


def _warn_of_unmeasured(data, source):
    """A class that train alone has is learnt and never measured: often a folder that is none, as aclImdb's `unsup`."""
    others = [split for name, split in data.splits.items() if name != "train"]
    counts = sum(split.class_counts(len(data.class_names)) for split in others)
    absent = [name for name, count in zip(data.class_names, counts, strict=True) if not count]
    if absent:
        named = ", ".join(absent[:_NAMED]) + (f" and {len(absent) - _NAMED} more" if len(absent) > _NAMED else "")
        console.warn(
            f"no split but train has examples of {named}; in {source}; remove what is no class, or add examples of it"
        )


def _check_labels(split, data, source):
    last = len(data.class_names) - 1
    if data.task == "classification":
        wrong, why = (split.labels < 0) | (split.labels > last), f"is outside 0..{last}"
    elif data.task == "regression":
        wrong, why = ~np.isfinite(split.labels), "is no number"
    else:
        return
    if wrong.any():
        i = int(wrong.argmax())
        raise DataError(f"label {split.labels[i]} of {split.ids[i]} {why}; in {source}; correct it")
