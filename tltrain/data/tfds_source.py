"""A data set of TFDS -> splits."""

import contextlib
import hashlib
import itertools
import math
import os
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from ml_collections import ConfigDict

from tltrain.data import content, records
from tltrain.data.kinds.kind import Kind
from tltrain.data.names import Places, Span
from tltrain.data.split import Data, Split
from tltrain.data.tensorflow import import_tensorflow
from tltrain.errors import DataError, foreign_errors, reason_of
from tltrain.places import cache_dir
from tltrain.runtime import console, sealed

_CHUNK = 1 << 14  # examples that are in memory at a time while all are passed over


def load(name: str, config: ConfigDict, kind: Kind) -> Data:
    """The splits that `config.splits` names of the TFDS data set `name`, prepared where it is not, and its class names.

    Raises:
        DataError: it cannot be prepared, has no labels that are classes or a number, or a split cannot be read.
    """
    import tensorflow_datasets as tfds  # without TensorFlow, which it imports where a file is read

    with _tfds_errors(name, config):
        builder = tfds.builder(name, data_dir=config.data_dir or None)
        if not builder.is_prepared():
            import_tensorflow()
            builder.download_and_prepare()
    parts = _Parts.of(tfds, builder.info, config, kind)
    labels = _Labels.of(tfds, builder.info.features[parts.label]) if parts else None
    if parts is None or labels is None:
        keys = parts or builder.info.supervised_keys
        raise DataError(
            f"{name} has no labels that are classes or a number; TFDS declares {keys}; choose another data.source"
        )
    for feature in map(builder.info.features.__getitem__, parts.examples):
        if not isinstance(feature, tfds.features.Image) and (feature.shape != () or feature.np_dtype != np.object_):
            raise DataError(f"{name} has no encoded examples; {feature!r:.80} is not read; choose another data.source")
    unreadable = _unreadable(builder.info)
    with unreadable():
        splits = [
            _tfds_split(builder.info, expression, parts, labels, kind, unreadable) for expression in config.splits
        ]
    roles = dict(zip(("train", "val", "test"), splits, strict=False))
    return Data(roles, labels.class_names, labels.task)


class _Parts(NamedTuple):
    """Which features of a data set are an example, and which is its label; `by_name` where a config says so."""

    examples: tuple[str, ...]
    label: str
    by_name: bool

    @classmethod
    def of(cls, tfds: Any, info: Any, config: ConfigDict, kind: Kind) -> "_Parts | None":
        """What `config`, the group `data`, names of text, else what TFDS declares; None where that is nothing.

        Raises:
            DataError: there is no such feature, or it is no text.
        """
        named = kind.columns(config)
        if set(named.values()) != {"data.text"}:
            return cls((info.supervised_keys[0],), info.supervised_keys[1], False) if info.supervised_keys else None
        for name, key in (*named.items(), (config.label, "data.label")):
            if name not in info.features:
                raise DataError(
                    f"{info.full_name} has no feature {name!r}; its features are {', '.join(info.features)}; set {key}"
                )
            if key == "data.text" and not isinstance(info.features[name], tfds.features.Text):
                raise DataError(
                    f"the feature {name!r} of {info.full_name} is no text; it is {info.features[name]!r:.80}; set {key}"
                )
        return cls(tuple(named), config.label, True)


class _Labels(NamedTuple):
    """What the labels of a data set are, see `Data`, and the type of one."""

    task: str
    class_names: tuple[str, ...]
    dtype: np.dtype
    shape: tuple[int, ...]

    @classmethod
    def of(cls, tfds: Any, feature: Any) -> "_Labels | None":
        """Those of a feature; None where they are of no task."""
        if isinstance(feature, tfds.features.ClassLabel):
            return cls("classification", tuple(feature.names), np.dtype(np.int32), ())
        inner = getattr(feature, "feature", None)
        if isinstance(inner, tfds.features.ClassLabel) and feature.shape == (None,):  # else places have a meaning
            return cls("multi_label", tuple(inner.names), np.dtype(bool), (len(inner.names),))
        if feature.shape == () and np.issubdtype(np.dtype(feature.np_dtype), np.number):
            return cls("regression", (), np.dtype(np.float32), ())
        return None

    def array(self, values: Sequence[Sequence[Any]]) -> np.ndarray:
        """What TFDS stores of examples, some values of each; raises DataError where one is no class."""
        if self.task != "multi_label":
            wide = np.asarray([value for (value,) in values], np.float64 if self.task == "regression" else np.int64)
            if self.task == "classification" and (wide != (narrow := wide.astype(np.int32))).any():
                raise DataError(f"label {wide[wide != narrow][0]} is no class; of TFDS; correct it")
            return wide.astype(self.dtype)
        found = np.zeros((len(values), *self.shape), bool)
        for row, classes in zip(found, values, strict=True):
            if classes and not 0 <= min(classes) <= max(classes) < len(row):
                raise DataError(f"labels {classes} are not all in 0..{len(row) - 1}; of TFDS; correct them")
            row[classes] = True
        return found


def _unreadable(info):
    """What makes a DataError of whatever is raised of files that are gone or damaged."""
    what, remedy = f"cannot read {info.full_name}", f"in {info.data_dir}; prepare the data set again"

    @contextlib.contextmanager
    def unreadable():
        with foreign_errors(DataError, what, remedy):
            try:
                yield
            except OSError as error:
                if not error.filename:
                    raise
                raise ValueError(f"{Path(error.filename).name}: {reason_of(error)}") from error  # of a thousand files

    return unreadable


def to_prepare(name: str, config: ConfigDict) -> str:
    """How much `load` would have to download of the data set `name`, in words; "" where it is prepared already.

    Raises:
        DataError: there is no such data set.
    """
    import tensorflow_datasets as tfds

    with _tfds_errors(name, config):
        builder = tfds.builder(name, data_dir=config.data_dir or None)
        return "" if builder.is_prepared() else str(builder.info.download_size)


@contextlib.contextmanager
def _tfds_errors(name, config):
    try:
        yield
    except Exception as error:  # TFDS raises errors of many kinds: unknown name, no network, no disk, checksums
        message = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise DataError(
            f"cannot prepare the data set {name!r}; {message}; in {config.data_dir or 'the default data_dir of TFDS'}; "
            "check data.source and data.data_dir, or prepare it where there is a network"
        ) from error


def _tfds_split(info, expression, parts, labels, kind, unreadable):
    """One split, of which an example is read from its file when it is asked for."""
    from tensorflow_datasets.proto import tf_example_pb2

    full_name = info.full_name
    try:
        instructions = info.splits[expression].file_instructions
    except (ValueError, KeyError) as error:
        raise DataError(f"split {expression!r} cannot be read; of {full_name}; change data.splits") from error
    paths = [Path(os.fspath(i.filename)) for i in instructions]
    ids = Places([Span(path.name, i.skip, i.take) for path, i in zip(paths, instructions, strict=True)])
    contents = content.of_files(paths, f"records in {info.data_dir}", sys.maxsize)
    files = {path.name: what.sha256 for path, what in zip(paths, contents, strict=True)}
    fingerprint = _fingerprint(full_name, ids, sorted(files.items()), *([parts.examples] if parts.by_name else []))
    opened = [records.opened(path, what, info.file_format.value) for path, what in zip(paths, contents, strict=True)]
    for path, file, instruction in zip(paths, opened, instructions, strict=True):
        if len(file) != instruction.examples_in_shard:
            raise DataError(
                f"{path.name} of {full_name} has {len(file)} examples, its metadata says "
                f"{instruction.examples_in_shard}; in {path.parent}; prepare the data set again"
            )

    def features(i):
        span, position = ids.at(i)
        return tf_example_pb2.Example.FromString(opened[span].read(position)).features.feature

    def read(i):
        with unreadable():
            return _example(features(i), parts, kind)

    name = f"{fingerprint}_{hashlib.sha256(parts.label.encode()).hexdigest()[:16]}" if parts.by_name else fingerprint
    found = _stored_labels(name, len(ids), labels, lambda i: _values(features(i)[parts.label]))
    return Split(expression, ids, found, read, kind, fingerprint, lambda: files)


def _fingerprint(full_name, ids, *facts):
    """The sha256 of what `repr` makes of all, the `ids` in a tuple."""
    digest, names, before = hashlib.sha256(f"({full_name!r}, (".encode()), map(repr, ids), ""
    while some := ", ".join(itertools.islice(names, _CHUNK)):
        digest.update(f"{before}{some}".encode())
        before = ", "
    digest.update(f"{',' * (len(ids) == 1)}), {', '.join(map(repr, facts))})".encode())
    return digest.hexdigest()


def _example(features, parts, kind):
    found = [_values(features[name])[0] for name in parts.examples]
    return kind.of_cells([text.decode() for text in found], Path()) if parts.by_name else found[0]


def _values(feature):
    """Those of a feature of a `tf.train.Example`: bytes, integers or numbers."""
    form = feature.WhichOneof("kind")
    return list(getattr(feature, form).value) if form else []


def _stored_labels(name: str, count: int, labels: _Labels, read: Callable[[int], Sequence[Any]]) -> np.ndarray:
    """Labels `[count, ...]`, kept in the cache folder: where features are stored no example need be read for them."""
    others = "" if labels.task == "classification" else f"_{labels.task}"  # of the same files, differently declared
    path = cache_dir() / "labels" / f"{name}{others}"
    kept = sealed.read(path)
    if kept is not None and len(kept) == count * math.prod(labels.shape) * labels.dtype.itemsize:
        return np.frombuffer(kept, labels.dtype).reshape(count, *labels.shape)
    made = np.empty((count, *labels.shape), labels.dtype)
    with console.progress("Reading labels", count) as update:
        for start in range(0, count, _CHUNK):
            rows = range(start, min(start + _CHUNK, count))
            made[start : rows.stop] = labels.array(list(map(read, rows)))
            update(rows.stop)
    sealed.write(path, made.tobytes())
    return made
