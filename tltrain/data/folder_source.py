"""A folder of files -> splits, and what of it is no example."""

import collections
import hashlib
import os
import stat
from pathlib import Path

import numpy as np

from tltrain.data import content
from tltrain.data.expressions import ROLES, parse
from tltrain.data.expressions import resolved as _resolved
from tltrain.data.files import kind_of, read_file, read_first
from tltrain.data.kinds.kind import Kind
from tltrain.data.names import Below, Strings, in_order
from tltrain.data.split import Data, Split
from tltrain.errors import DataError, foreign_errors

LeftOut = dict[str, list[str]]  # names by reason


def resolved(root: Path, expressions: tuple[str, ...]) -> tuple[str, ...]:
    """`expressions`, or where they are the default and `root` is divided already, its own folders as they stand.

    Raises:
        DataError: `root` is no folder, or its sub-folders cannot be told from classes.
    """
    return _resolved(expressions, _roles(root).keys())


def load(root: Path, expressions: tuple[str, ...], kind: Kind) -> Data:
    """The splits that `expressions` name below `root`, in order by `train`, `val`, `test`; class names from the first.

    `root` has a sub-folder a class, or one a split with these in each (`Training`, `validation`, ... are known by their
    names). Examples of `kind` are found at any depth, in the order of their paths; which of them a
    percentage takes follows from their names alone.

    Raises:
        DataError: a folder is not there, an expression cannot be read, or a split has a class that the first has not.
    """
    left_out: LeftOut = collections.defaultdict(list)
    parsed = [parse(expression, root) for expression in expressions]
    bases = _bases(root, [name for name, _, _ in parsed], expressions, left_out)
    files, places = Strings(), {}
    for base in dict.fromkeys(bases):
        places[base] = _classes(base, root, left_out, files)
    paths = Below(root, files)
    contents = content.of_files(paths, str(root.absolute()))
    are = np.fromiter((kind.is_example(path, what.kind) for path, what in zip(paths, contents, strict=True)), bool)
    class_names = tuple(sorted(places[bases[0]]))
    splits = []
    for expression, base, (_, start, stop) in zip(expressions, bases, parsed, strict=True):
        if extra := sorted(set(places[base]) - set(class_names)):
            raise DataError(
                f"{base} has classes that train has not; {', '.join(extra)}; add them to train or remove them"
            )
        chosen = [np.zeros(0, np.int64)]
        for name in class_names:
            rows = np.asarray(places[base].get(name, range(0)), np.int64)
            chosen.append(_slice(rows[are[rows]], files, start, stop))
        labels = np.repeat(np.arange(-1, len(class_names), dtype=np.int32), list(map(len, chosen)))
        splits.append(_split(expression, paths, np.concatenate(chosen), labels, contents, kind))
    for name, what in {files[i]: contents[i].kind for i in np.flatnonzero(~are)}.items():
        left_out[f"{Path(name).suffix.lower() or what} files"].append(name)
    roles = dict(zip(("train", "val", "test"), splits, strict=False))
    sub_folders = tuple(base.name for base in places if base != root)
    named = {reason: tuple(names) for reason, names in left_out.items()}
    return Data(roles, class_names, left_out=named, sub_folders=sub_folders)


def _name(path, root):
    return path.relative_to(root).as_posix()


def _folders(base):
    try:
        return sorted((path for path in base.iterdir() if path.is_dir()), key=lambda path: path.name)
    except OSError as error:
        raise DataError(f"cannot read {base}; {error.strerror}; give the path of a folder you may read") from error


def _is_class(folder):
    return not folder.name.startswith((".", "__"))


def _roles(root):
    """`{"train": folder, ...}` of the sub-folders of `root` that are splits by their names and hold class folders."""
    with foreign_errors(DataError, f"cannot read {root}", "set data.source to a folder that can be read"):
        if not root.is_dir():
            raise DataError(
                f"no folder at {root}; named by data.source; give the path of a folder with a sub-folder a class"
            )
        named = [folder for folder in _folders(root) if _is_class(folder)]
    splits = [folder for folder in named if folder.name.lower() in ROLES]
    roles: dict[str, Path] = {}
    for folder in splits:
        if not any(map(_is_class, _folders(folder))):
            continue
        role = ROLES[folder.name.lower()]
        if role in roles:
            raise DataError(f"{roles[role]} and {folder} are both a split {role!r}; rename or move one")
        roles[role] = folder
    if len(splits) > 1 and len(splits) == len(named) and "train" not in roles:
        names = ", ".join(folder.name for folder in splits)
        raise DataError(
            f"{names} in {root} are names of splits, not classes; none of them is a train with a sub-folder a class in "
            "it; put one folder a class in each, or rename them"
        )
    return roles if "train" in roles else {}


def _bases(root, names, expressions, left_out):
    """The folder of class folders for each name of a split."""
    roles = _roles(root)
    bases = [roles.get(ROLES.get(name.lower(), name), root / name) for name in names]
    divided = bool(roles) or (set(names) != {"train"} and all(base.is_dir() for base in bases))
    if not divided and set(names) != {"train"}:
        raise DataError(
            f"{root} has no sub-folders {', '.join(dict.fromkeys(names))}; data.splits = {expressions}; use "
            "percents of one folder, as ('train[:80%]', 'train[80%:]'), or make these sub-folders"
        )
    if not divided:
        return [root] * len(names)
    if absent := [name for name, base in zip(names, bases, strict=True) if not base.is_dir()]:
        raise DataError(
            f"{root} has no folder for the split {', '.join(absent)}; its splits are {', '.join(roles)}; "
            "change data.splits"
        )
    for folder in _folders(root):
        if folder not in bases:
            left_out["folders beside the splits"].append(f"{folder.name}/")
    return bases


def _classes(base, root, left_out, files):
    """`{class name: positions}` of the class folders in `base`, whose files are added to `files`."""
    folders = {}
    for path in sorted(base.iterdir()):
        if not path.is_dir():
            left_out["files beside the classes"].append(_name(path, root))
        elif not _is_class(path):
            count = sum(len(names) for _, _, names in os.walk(path))
            left_out["folders whose name begins with . or __"].append(
                f"{_name(path, root)}/ with {count} file{'s'[: count != 1]}"
            )
        else:
            folders[path.name] = path
    found, positions = _walk(folders, root, left_out), {}
    for name in folders:
        first = len(files)
        files.extend(in_order(found.pop(name), _parts))
        positions[name] = range(first, len(files))
    return positions


def _parts(name):
    """By which names are in the order of their paths, part by part."""
    return name.replace("/", "\0")


def _walk(folders: dict[str, Path], root: Path, left_out: LeftOut) -> dict[str, Strings]:
    """The names from `root` of the files at any depth below each of `folders`, in no order.

    No folder is entered twice, nor one that `root` lies in, and links to folders come after all that is no link, so
    they take nothing from another name.
    """
    files = {name: Strings() for name in folders}
    above = {parent for folder in folders.values() for parent in folder.parents} | set(root.resolve().parents)
    visited = {(status.st_dev, status.st_ino) for status in map(Path.stat, above)}
    due, links = ([entry for entry in folders.items() if entry[1].is_symlink() == link] for link in (False, True))
    while due or links:
        name, current = due.pop() if due else links.pop(0)
        try:
            status = current.stat()
            with os.scandir(current) as listed:
                entries = [entry.name for entry in listed]
        except OSError:
            left_out["folders that cannot be read"].append(f"{_name(current, root)}/")
            continue
        if (status.st_dev, status.st_ino) in visited:
            left_out["links to a folder that is there already"].append(f"{_name(current, root)}/")
            continue
        visited.add((status.st_dev, status.st_ino))
        prefix = "" if current == root else f"{_name(current, root)}/"
        for entry in entries:
            if entry.startswith("."):
                left_out["hidden files or folders"].append(f"{prefix}{entry}")
                continue
            path = current / entry
            try:
                mode = path.stat().st_mode
            except OSError:
                left_out["links to nothing"].append(f"{prefix}{entry}")
                continue
            if stat.S_ISDIR(mode):
                (links if path.is_symlink() else due).append((name, path))
            elif stat.S_ISREG(mode):
                files[name].extend([f"{prefix}{entry}"])
            else:
                left_out["pipes, sockets or devices"].append(f"{prefix}{entry}")
    return files


def examples_below(folder: Path, kind: Kind) -> tuple[list[Path], LeftOut]:
    """The examples of `kind` at any depth below `folder`, by path, and what else lies there."""
    left_out: LeftOut = collections.defaultdict(list)
    files = Strings(in_order(_walk({"": folder}, folder, left_out)[""], _parts))
    examples = []
    for path in Below(folder, files):
        if kind.is_example(path, what := kind_of(read_first(path))):
            examples.append(path)
        else:
            left_out[f"{path.suffix.lower() or what} files"].append(_name(path, folder))
    return examples, left_out


def _slice(rows: np.ndarray, files: Strings, start: int, stop: int) -> np.ndarray:
    """The `rows` whose rank in an order by hash of the file's name lies in `[start, stop)` percent.

    One order for all seeds.
    """
    digests = np.zeros(len(rows), "V32")
    for i, row in enumerate(rows):
        digests[i] = hashlib.sha256(files[row].rpartition("/")[2].encode("utf-8", "surrogateescape")).digest()
    ranked = rows[np.argsort(digests, kind="stable")]
    return ranked[round(len(rows) * start / 100) : round(len(rows) * stop / 100)]


def _split(
    expression: str, paths: Below, rows: np.ndarray, labels: np.ndarray, contents: content.Contents, kind: Kind
) -> Split:
    root, ids, sha256 = paths.root, Strings(map(paths.names.__getitem__, rows)), contents.sha256[rows]
    fingerprint = hashlib.sha256(sha256.tobytes()).hexdigest()

    def read(i: int) -> bytes:
        return read_file(root / ids[i])

    return Split(expression, ids, labels, read, kind, fingerprint, lambda: dict(zip(ids, sha256.tolist(), strict=True)))
