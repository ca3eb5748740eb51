"""A data set of TFDS -> splits."""

import contextlib
import hashlib
import math
import os
import threading
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from ml_collections import ConfigDict

from tltrain.data import content
from tltrain.data.kinds.kind import Kind
from tltrain.data.split import Data, Split
from tltrain.data.tensorflow import import_tensorflow
from tltrain.errors import DataError, foreign_errors
from tltrain.places import cache_dir
from tltrain.runtime import sealed


def load(name: str, config: ConfigDict, kind: Kind) -> Data:
    """The splits that `config.splits` names of the TFDS data set `name`, prepared where it is not, and its class names.

    Raises:
        DataError: it cannot be prepared, has no labels that are classes or a number, or a split cannot be read or held
            in memory.
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
    with _unreadable(builder):
        splits = [_tfds_split(tfds, builder, expression, parts, labels, config, kind) for expression in config.splits]
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

    def array(self, labels: Sequence[Any]) -> np.ndarray:
        """What TFDS gives of all examples; raises DataError where one is no class."""
        if self.task != "multi_label":
            wide = np.asarray(labels, np.float64 if self.task == "regression" else np.int64)
            if self.task == "classification" and (wide != (narrow := wide.astype(np.int32))).any():
                raise DataError(f"label {wide[wide != narrow][0]} is no class; of TFDS; correct it")
            return wide.astype(self.dtype)
        found = np.zeros((len(labels), *self.shape), bool)
        for row, classes in zip(found, labels, strict=True):
            if len(classes) and not 0 <= min(classes) <= max(classes) < len(row):
                raise DataError(
                    f"labels {[int(c) for c in classes]} are not all in 0..{len(row) - 1}; of TFDS; correct them"
                )
            row[classes] = True
        return found


def _unreadable(builder):
    """Whatever TFDS raises of files that are gone or damaged becomes a DataError."""
    what, remedy = f"cannot read {builder.info.full_name}", f"in {builder.info.data_dir}; prepare the data set again"
    return foreign_errors(DataError, what, remedy)


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


def _tfds_split(tfds, builder, expression, parts, labels, config, kind):
    """One split, its encoded examples read into memory when the first is asked for: the files have no random access."""
    full_name = builder.info.full_name
    try:
        instructions = builder.info.splits[expression].file_instructions
    except (ValueError, KeyError) as error:
        raise DataError(f"split {expression!r} cannot be read; of {full_name}; change data.splits") from error
    stats = [tfds.core.Path(i.filename).stat() for i in instructions]
    gib = sum(stat.length * i.take / i.examples_in_shard for stat, i in zip(stats, instructions, strict=True)) / 2**30
    if gib > config.max_memory_gib:
        raise DataError(
            f"split {expression!r} of {full_name} holds {gib:.1f} GiB of encoded {kind.name}, more than "
            f"data.max_memory_gib = {config.max_memory_gib}; raise it, take a smaller split, or use a folder of files"
        )
    ids = tuple(f"{os.path.basename(i.filename)}[{i.skip + k}]" for i in instructions for k in range(i.take))
    paths = [Path(os.fspath(i.filename)) for i in instructions]
    contents = content.of_files(paths, str(builder.info.data_dir))
    files = {path.name: what.sha256 for path, what in zip(paths, contents, strict=True)}
    facts = (full_name, ids, sorted(files.items()), *([parts.examples] if parts.by_name else []))
    fingerprint = hashlib.sha256(repr(facts).encode()).hexdigest()
    records = _Records(lambda: _read_records(tfds, builder, expression, len(ids), parts, kind))
    name = f"{fingerprint}_{hashlib.sha256(parts.label.encode()).hexdigest()[:16]}" if parts.by_name else fingerprint
    found = _stored_labels(name, len(ids), labels, lambda: [label for _, label in records.all()])
    return Split(expression, ids, found, lambda i: records.all()[i][0], kind, fingerprint, files)


class _Records:
    """The examples of a split, read when they are first asked for, by whichever thread."""

    def __init__(self, read: Callable[[], list[tuple[bytes, Any]]]) -> None:
        self._read, self._lock = read, threading.Lock()
        self._records: list[tuple[bytes, Any]] | None = None

    def all(self) -> list[tuple[bytes, Any]]:
        """Encoded example and label of each."""
        with self._lock:
            if self._records is None:
                self._records = self._read()
            return self._records


def _read_records(tfds, builder, expression, count, parts, kind):
    import_tensorflow()
    key, feature = parts.examples[0], builder.info.features[parts.examples[0]]
    decoders = {key: tfds.decode.SkipDecoding()} if isinstance(feature, tfds.features.Image) else None
    if parts.by_name:  # what else is in a record is not read
        decoders = tfds.decode.PartialDecoding(dict.fromkeys((*parts.examples, parts.label), True))
    dataset = builder.as_dataset(
        split=expression,
        decoders=decoders,
        read_config=tfds.ReadConfig(interleave_cycle_length=1),
        shuffle_files=False,
    )
    with _unreadable(builder):
        records = [(_example(record, parts, kind), record[parts.label]) for record in dataset.as_numpy_iterator()]
    if any(not isinstance(example, bytes) for example, _ in records):
        raise DataError(
            f"{builder.info.full_name} has no encoded examples; {feature} is not read; choose another source"
        )
    if len(records) != count:
        raise DataError(
            f"split {expression!r} of {builder.info.full_name} has {len(records)} examples, its metadata says "
            f"{count}; prepare the data set again"
        )
    return records


def _example(record, parts, kind):
    if not parts.by_name:
        return record[parts.examples[0]]
    return kind.of_cells([record[name].decode() for name in parts.examples], Path())


def _stored_labels(name: str, count: int, labels: _Labels, read: Callable[[], list[Any]]) -> np.ndarray:
    """Labels `[count, ...]`, kept in the cache folder: where features are stored no example need be read for them."""
    others = "" if labels.task == "classification" else f"_{labels.task}"  # of the same files, differently declared
    path = cache_dir() / "labels" / f"{name}{others}"
    kept = sealed.read(path)
    if kept is not None and len(kept) == count * math.prod(labels.shape) * labels.dtype.itemsize:
        return np.frombuffer(kept, labels.dtype).reshape(count, *labels.shape)
    made = labels.array(read())
    sealed.write(path, made.tobytes())
    return made
