"""A data set of TFDS -> splits."""

import contextlib
import hashlib
import os
import threading
from collections.abc import Callable
from pathlib import Path

import numpy as np
from ml_collections import ConfigDict

from tltrain.data import content
from tltrain.data.split import Data, Split
from tltrain.data.tensorflow import import_tensorflow
from tltrain.errors import DataError, foreign_errors
from tltrain.places import cache_dir
from tltrain.runtime import sealed


def load(name: str, config: ConfigDict) -> Data:
    """The splits that `config.splits` names of the TFDS data set `name`, prepared where it is not, and its class names.

    Raises:
        DataError: it cannot be prepared or is no classification data set, or a split cannot be read or held in memory.
    """
    import tensorflow_datasets as tfds  # without TensorFlow, which it imports where a file is read

    with _tfds_errors(name, config):
        builder = tfds.builder(name, data_dir=config.data_dir or None)
        if not builder.is_prepared():
            import_tensorflow()
            builder.download_and_prepare()
    keys = builder.info.supervised_keys
    if not keys or not hasattr(builder.info.features[keys[1]], "names"):
        raise DataError(f"{name} is no classification data set; TFDS declares {keys}; choose another data.source")
    with _unreadable(builder):
        splits = [_tfds_split(tfds, builder, expression, keys, config) for expression in config.splits]
    roles = dict(zip(("train", "val", "test"), splits, strict=False))
    return Data(roles, tuple(builder.info.features[keys[1]].names))


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


def _tfds_split(tfds, builder, expression, keys, config):
    """One split, its encoded images read into memory when the first is asked for: the files have no random access."""
    full_name = builder.info.full_name
    try:
        instructions = builder.info.splits[expression].file_instructions
    except (ValueError, KeyError) as error:
        raise DataError(f"split {expression!r} cannot be read; of {full_name}; change data.splits") from error
    stats = [tfds.core.Path(i.filename).stat() for i in instructions]
    gib = sum(stat.length * i.take / i.examples_in_shard for stat, i in zip(stats, instructions, strict=True)) / 2**30
    if gib > config.max_memory_gib:
        raise DataError(
            f"split {expression!r} of {full_name} holds {gib:.1f} GiB of encoded images, more than "
            f"data.max_memory_gib = {config.max_memory_gib}; raise it, take a smaller split, or use a folder of images"
        )
    ids = tuple(f"{os.path.basename(i.filename)}[{i.skip + k}]" for i in instructions for k in range(i.take))
    paths = [Path(os.fspath(i.filename)) for i in instructions]
    contents = content.of_files(paths, str(builder.info.data_dir))
    files = {path.name: what.sha256 for path, what in zip(paths, contents, strict=True)}
    facts = (full_name, ids, sorted(files.items()))
    fingerprint = hashlib.sha256(repr(facts).encode()).hexdigest()
    records = _Records(lambda: _read_records(tfds, builder, expression, keys, len(ids)))
    labels = _stored_labels(fingerprint, len(ids), lambda: [label for _, label in records.all()])
    return Split(expression, ids, labels, lambda i: records.all()[i][0], fingerprint, files)


class _Records:
    """The examples of a split, read when they are first asked for, by whichever thread."""

    def __init__(self, read: Callable[[], list[tuple[bytes, int]]]) -> None:
        self._read, self._lock = read, threading.Lock()
        self._records: list[tuple[bytes, int]] | None = None

    def all(self) -> list[tuple[bytes, int]]:
        """Encoded image and label of each."""
        with self._lock:
            if self._records is None:
                self._records = self._read()
            return self._records


def _read_records(tfds, builder, expression, keys, count):
    import_tensorflow()
    image_key, label_key = keys
    dataset = builder.as_dataset(
        split=expression,
        decoders={image_key: tfds.decode.SkipDecoding()},
        read_config=tfds.ReadConfig(interleave_cycle_length=1),
        shuffle_files=False,
    )
    with _unreadable(builder):
        records = [(record[image_key], int(record[label_key])) for record in dataset.as_numpy_iterator()]
    if len(records) != count:
        raise DataError(
            f"split {expression!r} of {builder.info.full_name} has {len(records)} examples, its metadata says "
            f"{count}; prepare the data set again"
        )
    return records


def _stored_labels(fingerprint: str, count: int, read: Callable[[], list[int]]) -> np.ndarray:
    """Labels, int32 `[count]`, kept in the cache folder: where features are stored no image need be read for them."""
    path = cache_dir() / "labels" / fingerprint
    kept = sealed.read(path)
    if kept is not None and len(kept) == 4 * count:
        return np.frombuffer(kept, np.int32)
    labels = np.asarray(read(), np.int64)
    if (labels != labels.astype(np.int32)).any():
        raise DataError(f"label {labels[labels != labels.astype(np.int32)][0]} is no class; of TFDS; correct it")
    labels = labels.astype(np.int32)
    sealed.write(path, labels.tobytes())
    return labels
