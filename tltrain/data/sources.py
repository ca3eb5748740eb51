"""A TFDS name or a folder of images -> splits with random access to encoded images, and the class names.

Class names come from the train split alone; splits never share an example.
"""

import contextlib
import hashlib
import os
import re
import threading
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from ml_collections import ConfigDict

from tltrain.data import import_tensorflow
from tltrain.download import cache_dir
from tltrain.errors import ConfigError, DataError

SUFFIXES = (".jpg", ".jpeg", ".png")
_PERCENT = re.compile(r"(\w+)(?:\[(?:(\d+)%)?:(?:(\d+)%)?\])?")


@dataclass(frozen=True)
class Split:
    """Examples of one split in a fixed order.

    `ids` name them (a path below the folder, or shard and position), `labels` is int32 `[N]`, `read(i)` gives the
    encoded bytes of one, `fingerprint` changes when the examples do.
    """

    expression: str
    ids: tuple[str, ...]
    labels: np.ndarray
    read: Callable[[int], bytes]
    fingerprint: str

    @property
    def num_examples(self) -> int:
        """Number of examples."""
        return len(self.ids)


@dataclass(frozen=True)
class Data:
    """`splits` by role (`train`, `val`, perhaps `test`), and the class names that labels index."""

    splits: dict[str, Split]
    class_names: tuple[str, ...]


def load(config: ConfigDict) -> Data:
    """Reads what `config.data` names.

    Raises:
        DataError: it is not there, a split is empty, malformed or overlaps another, or labels do not fit the classes.
    """
    kind, _, place = config.source.partition(":")
    splits, class_names = _folder(Path(place), config) if kind == "folder" else _tfds(place, config)
    data = Data(dict(zip(("train", "val", "test"), splits, strict=False)), class_names)
    _check(data, config.source)
    return data


def class_weights(setting: Any, data: Data) -> np.ndarray:
    """Factor of the loss by class, float32 `[num_classes]`, for `config.loss.class_weights`.

    None gives ones; `"auto"` the inverse of each class' frequency in train, with mean 1 over the training examples; a
    dict gives its own numbers, 1 where it names no number.

    Raises:
        ConfigError: the dict names a class that does not exist.
    """
    num_classes = len(data.class_names)
    if setting is None:
        return np.ones(num_classes, np.float32)
    if setting == "auto":
        labels = data.splits["train"].labels
        return (len(labels) / (num_classes * np.bincount(labels, minlength=num_classes))).astype(np.float32)
    unknown = sorted(set(setting) - set(data.class_names))
    if unknown:
        raise ConfigError(f"loss.class_weights names {unknown}, allowed: {', '.join(data.class_names)}")
    return np.asarray([setting.get(name, 1.0) for name in data.class_names], np.float32)


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


def _folder(root: Path, config):
    if not root.is_dir():
        raise DataError(
            f"no folder at {root}; named by data.source; give the path of a folder with a sub-folder a class"
        )
    names = [_parse(expression, root)[0] for expression in config.splits]
    divided = all((root / name).is_dir() for name in names)
    if not divided and set(names) != {"train"}:
        raise DataError(
            f"{root} has no sub-folders {', '.join(dict.fromkeys(names))}; data.splits = {config.splits}; use "
            "percents of one folder, as ('train[:80%]', 'train[80%:]'), or make these sub-folders"
        )
    class_names = _class_names(root / names[0] if divided else root)
    splits = []
    for expression in config.splits:
        name, start, stop = _parse(expression, root)
        base = root / name if divided else root
        extra = sorted(set(_class_names(base)) - set(class_names))
        if extra:
            raise DataError(
                f"{base} has classes that train has not; {', '.join(extra)}; add them to train or remove them"
            )
        paths, labels = [], []
        for label, class_name in enumerate(class_names):
            files = _slice(_image_files(base / class_name), start, stop)
            paths += files
            labels += [label] * len(files)
        splits.append(_folder_split(expression, root, paths, labels))
    return splits, class_names


def _parse(expression, root):
    match = _PERCENT.fullmatch(expression.replace(" ", ""))
    start, stop = (int(match[2] or 0), int(match[3] or 100)) if match else (0, 0)
    if not match or not 0 <= start < stop <= 100:
        raise DataError(
            f"split {expression!r} cannot be read; of {root}; write 'train', 'train[:80%]' or 'train[80%:]'"
        )
    return match[1], start, stop


def _class_names(base):
    return tuple(sorted(p.name for p in base.iterdir() if p.is_dir() and not p.name.startswith((".", "__"))))


def _image_files(folder: Path) -> list[Path]:
    if not folder.is_dir():
        return []
    files = (Path(top) / name for top, _, names in os.walk(folder, followlinks=True) for name in names)
    return sorted(
        path
        for path in files
        if path.suffix.lower() in SUFFIXES and not any(p.startswith(".") for p in path.relative_to(folder).parts)
    )


def _slice(files, start, stop):
    """The files whose rank in an order by hash of the name lies in `[start, stop)` percent: one order for all seeds."""
    ranked = sorted(files, key=lambda path: hashlib.sha256(path.name.encode()).digest())
    return ranked[round(len(ranked) * start / 100) : round(len(ranked) * stop / 100)]


def _folder_split(expression, root, paths, labels):
    stats = [path.stat() for path in paths]
    ids = tuple(path.relative_to(root).as_posix() for path in paths)
    lines = (f"{i}\0{stat.st_size}\0{stat.st_mtime_ns}" for i, stat in zip(ids, stats, strict=True))
    fingerprint = hashlib.sha256("\n".join(lines).encode("utf-8", "surrogateescape")).hexdigest()
    return Split(expression, ids, np.asarray(labels, np.int32), lambda i: paths[i].read_bytes(), fingerprint)


def _tfds(name: str, config):
    import tensorflow_datasets as tfds  # without TensorFlow, which it imports where a file is read

    try:
        builder = tfds.builder(name, data_dir=config.data_dir or None)
        if not builder.is_prepared():
            import_tensorflow()
            builder.download_and_prepare()
    except Exception as error:  # TFDS raises errors of many kinds: unknown name, no network, no disk, checksums
        message = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise DataError(
            f"cannot prepare the data set {name!r}; {message}; in {config.data_dir or 'the default data_dir of TFDS'}; "
            "check data.source and data.data_dir, or prepare it where there is a network"
        ) from error
    keys = builder.info.supervised_keys
    if not keys or not hasattr(builder.info.features[keys[1]], "names"):
        raise DataError(f"{name} is no classification data set; TFDS declares {keys}; choose another data.source")
    splits = [_tfds_split(tfds, builder, expression, keys, config) for expression in config.splits]
    return splits, tuple(builder.info.features[keys[1]].names)


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
    facts = (full_name, builder.info.data_dir, ids, [(stat.length, stat.mtime) for stat in stats])
    fingerprint = hashlib.sha256(repr(facts).encode()).hexdigest()
    records = _Records(lambda: _read_records(tfds, builder, expression, keys, len(ids)))
    labels = _stored_labels(fingerprint, len(ids), lambda: [label for _, label in records.all()])
    return Split(expression, ids, labels, lambda i: records.all()[i][0], fingerprint)


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
    records = [(record[image_key], int(record[label_key])) for record in dataset.as_numpy_iterator()]
    if len(records) != count:
        raise DataError(
            f"split {expression!r} of {builder.info.full_name} has {len(records)} examples, its metadata says "
            f"{count}; prepare the data set again"
        )
    return records


def _stored_labels(fingerprint: str, count: int, read: Callable[[], list[int]]) -> np.ndarray:
    """Labels, int32 `[count]`, kept in the cache folder: where features are stored no image need be read for them."""
    path = cache_dir() / "labels" / f"{fingerprint}.npy"
    with contextlib.suppress(OSError, ValueError):
        if (labels := np.load(path)).shape == (count,):
            return labels
    labels = np.asarray(read(), np.int64).astype(np.int32)
    with contextlib.suppress(OSError):  # without a cache they are read again
        path.parent.mkdir(parents=True, exist_ok=True)
        part = path.with_suffix(f".{os.getpid()}.npy")
        np.save(part, labels)
        part.replace(path)
    return labels
