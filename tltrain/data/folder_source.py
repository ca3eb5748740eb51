"""A folder of images -> splits."""

import hashlib
import os
import re
from pathlib import Path

import numpy as np

from tltrain.data.split import Split
from tltrain.errors import DataError

SUFFIXES = (".jpg", ".jpeg", ".png")
_PERCENT = re.compile(r"(\w+)(?:\[(?:(\d+)%)?:(?:(\d+)%)?\])?")


def load(root: Path, expressions: tuple[str, ...]) -> tuple[list[Split], tuple[str, ...]]:
    """The splits that `expressions` name below `root`, and the class names, which come from the first alone.

    `root` has a sub-folder a class, or one a split with these in each. Images are found at any depth, in the order of
    their paths; which of them a percentage takes follows from their names alone.

    Raises:
        DataError: a folder is not there, an expression cannot be read, or a split has a class that the first has not.
    """
    if not root.is_dir():
        raise DataError(
            f"no folder at {root}; named by data.source; give the path of a folder with a sub-folder a class"
        )
    names = [_parse(expression, root)[0] for expression in expressions]
    divided = all((root / name).is_dir() for name in names)
    if not divided and set(names) != {"train"}:
        raise DataError(
            f"{root} has no sub-folders {', '.join(dict.fromkeys(names))}; data.splits = {expressions}; use "
            "percents of one folder, as ('train[:80%]', 'train[80%:]'), or make these sub-folders"
        )
    class_names = _class_names(root / names[0] if divided else root)
    splits = []
    for expression in expressions:
        name, start, stop = _parse(expression, root)
        base = root / name if divided else root
        extra = sorted(set(_class_names(base)) - set(class_names))
        if extra:
            raise DataError(
                f"{base} has classes that train has not; {', '.join(extra)}; add them to train or remove them"
            )
        paths, labels = [], []
        for label, class_name in enumerate(class_names):
            files = _slice(image_files(base / class_name), start, stop)
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


def image_files(folder: Path) -> list[Path]:
    """The images at any depth below `folder`, by path; hidden ones are left out, and there are none without it."""
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
