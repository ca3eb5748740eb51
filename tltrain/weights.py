"""Keras weight files -> backbone variables, by h5py alone; which array of Keras is which of ours, both ways.

A foreign file is never trusted: what is read is decided by the backbone's own table of names and shapes, and link
classes, dtypes and shapes are checked before a byte of an array is read (an HDF5 file can point at other files and
declare terabytes).
"""

import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import h5py
import numpy as np

from tltrain import keras_layout
from tltrain.download import digest
from tltrain.errors import WeightsError
from tltrain.keras_layout import Leaf, Match
from tltrain.models.backbone import KerasLayer

MAX_GROUPS = 20_000
MAX_DEPTH = 8


@dataclass(frozen=True)
class Loaded:
    """What was read: `variables` `{"params": ..., "batch_stats": ...}`, and what to tell the user about it."""

    variables: dict
    sha256: str
    num_arrays: int
    ignored: tuple[str, ...]


def load(path: str | os.PathLike, layers: list[KerasLayer], shapes: dict) -> Loaded:
    """Fills every leaf of a backbone exactly once from a Keras file.

    Args:
        path: the official weight layout, a whole Keras 2 or 3 `.h5` model that contains the backbone (nested or flat),
            or a Keras 3 `.weights.h5`.
        layers: the backbone's layers, in the order of `model.layers` in Keras.
        shapes: its variables as a tree of things with a `shape`: `{"params": {stage: {layer: {leaf: ...}}}, ...}`.

    Raises:
        WeightsError: the file is not readable HDF5, or leaves are missing, misshapen, unexpected or ambiguous: all
            of them are named at once, and nothing is loaded.
    """
    path = Path(path)
    sha256 = digest(path, "sha256")
    leaves = keras_layout.leaves(layers, shapes)
    try:
        with h5py.File(path, "r") as file:
            match = _match(file, layers, leaves, path)
            if match.faults:
                raise WeightsError(
                    f"{path} does not fit the backbone ({len(leaves)} arrays); {_some(match.faults)}; "
                    "check model.backbone against the model the file was saved from"
                )
            arrays = {leaf.path: _read(dataset, leaf) for leaf, dataset in match.chosen.items()}
    except (OSError, KeyError, ValueError, RuntimeError) as error:
        raise WeightsError(f"cannot read {path} as a Keras HDF5 file; {error}; fetch or save the file again") from error
    broken = ["/".join(leaf) for leaf, array in arrays.items() if not np.isfinite(array).all()]
    if broken:
        raise WeightsError(f"{path} holds NaN or infinite weights; in {_some(broken)}; fetch the file again")
    return Loaded(nest(arrays), sha256, len(arrays), tuple(match.ignored))


def _match(file, layers, leaves, path) -> Match:
    found = dict(_safe_datasets(file))
    if not any("/vars/" in f"/{name}" for name in found):
        in_order = found if all(layer.name for layer in layers) else _by_graph(file, found)
        match = keras_layout.match(layers, leaves, keras_layout.named_layers(in_order))
        return match._replace(ignored=sorted({group.rpartition("/")[2] for group in match.ignored}))
    matches = [keras_layout.match(layers, leaves, model) for model in keras_layout.stored_layers(found)]
    fits = [match for match in matches if not match.faults]
    if len(fits) > 1:
        raise WeightsError(f"{path} holds {len(fits)} models that fit the backbone; save the one you mean alone")
    match = fits[0] if fits else min(matches, key=lambda match: len(match.faults))
    used = {dataset.name.lstrip("/") for dataset in match.chosen.values()}
    groups = {name.partition("/vars/")[0] for name in used}
    others = {name.partition("/vars/")[0] for name in found}
    return match._replace(ignored=sorted(others - groups))


def _by_graph(file: h5py.File, found: dict[str, h5py.Dataset]) -> dict[str, h5py.Dataset]:
    """`found` in the order of `model.layers`, as attributes of the file say it."""
    root = "model_weights/" if "model_weights" in file else ""
    groups = {name[:i] for name in found for i, letter in enumerate(name) if letter == "/"}  # proven to be no links
    order = []
    for layer in _strings(file[root or "/"], "layer_names"):
        if f"{root}{layer}" in groups:
            weights = _strings(file[f"{root}{layer}"], "weight_names")
            order += [f"{root}{layer}/{weight}" for weight in weights]
    return {name: found[name] for name in order if name in found}


def _strings(group, name) -> list[str]:
    """An attribute that is a list of strings, which Keras divides into parts where it is long."""
    parts = [name] if name in group.attrs else [f"{name}{i}" for i in range(len(group.attrs))]
    values = [np.atleast_1d(group.attrs[part]) for part in parts if part in group.attrs]
    if not values:
        raise ValueError(f"it has no attribute {name!r}, by which layers without a name of their own are told apart")
    return [value.decode() if isinstance(value, bytes) else str(value) for part in values for value in part]


def _safe_datasets(file: h5py.File) -> Iterator[tuple[str, h5py.Dataset]]:
    """Every dataset below `file` that stores its own bytes, by name, through hard links only."""
    stack, visited = [("", file, 0)], 0
    while stack:
        prefix, group, depth = stack.pop()
        visited += 1
        if depth > MAX_DEPTH or visited > MAX_GROUPS:
            raise ValueError(f"more than {MAX_DEPTH} levels or {MAX_GROUPS} groups")
        for key in group:
            name = f"{prefix}/{key}" if prefix else key
            if name in ("optimizer_weights", "optimizer"):
                continue
            if not isinstance(group.get(key, getlink=True), h5py.HardLink):
                raise ValueError(f"{name!r} is a link to another place, which is not followed")
            item = group[key]
            if isinstance(item, h5py.Group):
                stack.append((name, item, depth + 1))
            elif isinstance(item, h5py.Dataset):
                if item.external or item.is_virtual:
                    raise ValueError(f"{name!r} keeps its data in another file, which is not followed")
                yield name, item


def _read(dataset: h5py.Dataset, leaf: Leaf) -> np.ndarray:
    array = np.asarray(dataset[()], np.float32)
    return array.transpose(np.argsort(leaf.transpose)) if leaf.transpose else array


def _some(names, limit=40):
    more = f", and {len(names) - limit} more" if len(names) > limit else ""
    return ", ".join(names[:limit]) + more


def nest(arrays: dict[tuple[str, ...], np.ndarray]) -> dict:
    """`{"params": {stage: {layer: {leaf: array}}}, "batch_stats": ...}` of arrays by their path."""
    tree: dict = {"params": {}, "batch_stats": {}}
    for path, array in arrays.items():
        node = tree
        for key in path[:-1]:
            node = node.setdefault(key, {})
        node[path[-1]] = array
    return tree
