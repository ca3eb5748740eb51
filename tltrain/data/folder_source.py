"""A folder of files -> splits, and what of it is no example."""

import collections
import hashlib
import os
import stat
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from tltrain.data import content
from tltrain.data.expressions import ROLES, parse
from tltrain.data.expressions import resolved as _resolved
from tltrain.data.files import kind_of, read_file, read_first
from tltrain.data.kinds.kind import Kind
from tltrain.data.names import Blobs, Strings
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
    found = {base: _classes(base, root, left_out) for base in dict.fromkeys(bases)}
    files = list(dict.fromkeys(path for classes in found.values() for paths in classes.values() for path in paths))
    contents = dict(zip(files, content.of_files(files, str(root.absolute())), strict=True))
    class_names = tuple(sorted(found[bases[0]]))
    splits = []
    for expression, base, (_, start, stop) in zip(expressions, bases, parsed, strict=True):
        if extra := sorted(set(found[base]) - set(class_names)):
            raise DataError(
                f"{base} has classes that train has not; {', '.join(extra)}; add them to train or remove them"
            )
        paths, labels = [], []
        for label, name in enumerate(class_names):
            examples = [path for path in found[base].get(name, []) if kind.is_example(path, contents[path].kind)]
            chosen = _slice(examples, start, stop)
            paths += chosen
            labels += [label] * len(chosen)
        splits.append(_split(expression, root, paths, labels, contents, kind))
    for path, what in contents.items():
        if not kind.is_example(path, what.kind):
            left_out[f"{path.suffix.lower() or what.kind} files"].append(_name(path, root))
    roles = dict(zip(("train", "val", "test"), splits, strict=False))
    sub_folders = tuple(base.name for base in found if base != root)
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


def _classes(base, root, left_out):
    """`{class name: files}` of the class folders in `base`."""
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
    return _walk(folders, root, left_out)


def _walk(folders: dict[str, Path], root: Path, left_out: LeftOut) -> dict[str, list[Path]]:
    """The files at any depth below each of `folders`, by path.

    No folder is entered twice, nor one that `root` lies in, and links to folders come after all that is no link, so
    they take nothing from another name.
    """
    files: dict[str, list[Path]] = {name: [] for name in folders}
    above = {parent for folder in folders.values() for parent in folder.parents} | set(root.resolve().parents)
    visited = {(status.st_dev, status.st_ino) for status in map(Path.stat, above)}
    due, links = ([entry for entry in folders.items() if entry[1].is_symlink() == link] for link in (False, True))
    while due or links:
        name, current = due.pop() if due else links.pop(0)
        try:
            status = current.stat()
            entries = list(current.iterdir())
        except OSError:
            left_out["folders that cannot be read"].append(f"{_name(current, root)}/")
            continue
        if (status.st_dev, status.st_ino) in visited:
            left_out["links to a folder that is there already"].append(f"{_name(current, root)}/")
            continue
        visited.add((status.st_dev, status.st_ino))
        for path in entries:
            if path.name.startswith("."):
                left_out["hidden files or folders"].append(_name(path, root))
                continue
            try:
                mode = path.stat().st_mode
            except OSError:
                left_out["links to nothing"].append(_name(path, root))
                continue
            if stat.S_ISDIR(mode):
                (links if path.is_symlink() else due).append((name, path))
            elif stat.S_ISREG(mode):
                files[name].append(path)
            else:
                left_out["pipes, sockets or devices"].append(_name(path, root))
    return {name: sorted(found) for name, found in files.items()}


def examples_below(folder: Path, kind: Kind) -> tuple[list[Path], LeftOut]:
    """The examples of `kind` at any depth below `folder`, by path, and what else lies there."""
    left_out: LeftOut = collections.defaultdict(list)
    files = _walk({"": folder}, folder, left_out)[""]
    examples = []
    for path in files:
        if kind.is_example(path, what := kind_of(read_first(path))):
            examples.append(path)
        else:
            left_out[f"{path.suffix.lower() or what} files"].append(_name(path, folder))
    return examples, left_out


def _slice(files, start, stop):
    """The files whose rank in an order by hash of the name lies in `[start, stop)` percent: one order for all seeds."""
    ranked = sorted(files, key=lambda path: hashlib.sha256(path.name.encode("utf-8", "surrogateescape")).digest())
    return ranked[round(len(ranked) * start / 100) : round(len(ranked) * stop / 100)]


def _split(expression: str, root: Path, paths: Sequence[Path], labels: Sequence[int], contents, kind: Kind) -> Split:
    ids = Strings(_name(path, root) for path in paths)
    digests = Blobs(contents[path].sha256 for path in paths)
    fingerprint = hashlib.sha256(b"".join(digests)).hexdigest()
    read, targets = (lambda i: read_file(root / ids[i])), np.asarray(labels, np.int32)
    return Split(expression, ids, targets, read, kind, fingerprint, lambda: dict(zip(ids, digests, strict=True)))
