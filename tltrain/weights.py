"""Keras weight files -> backbone variables, by h5py alone; which array of Keras is which of ours, both ways.

A foreign file is never trusted: what is read is decided by the backbone's own table of names and shapes, and link
classes, dtypes and shapes are checked before a byte of an array is read (an HDF5 file can point at other files and
declare terabytes).
"""

import collections
import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import h5py
import numpy as np

from tltrain.download import sha256_of
from tltrain.errors import WeightsError
from tltrain.models.backbone import KerasLayer

MAX_GROUPS = 20_000
MAX_DEPTH = 8
_NORM_LEAVES = {
    "gamma": ("params", "scale"),
    "beta": ("params", "bias"),
    "moving_mean": ("batch_stats", "mean"),
    "moving_variance": ("batch_stats", "var"),
}
_SNAKE = {"Conv2D": "conv2d", "DepthwiseConv2D": "depthwise_conv2d", "BatchNormalization": "batch_normalization"}


@dataclass(frozen=True)
class Loaded:
    """What was read: `variables` `{"params": ..., "batch_stats": ...}`, and what to tell the user about it."""

    variables: dict
    sha256: str
    num_arrays: int
    ignored: tuple[str, ...]


@dataclass(frozen=True)
class Leaf:
    """One array of the backbone: its place and shape in our tree and in Keras, whose version 3 has the last name."""

    path: tuple[str, ...]
    shape: tuple[int, ...]
    keras_layer: str
    keras_names: tuple[str, ...]
    transpose: tuple[int, ...] | None

    @property
    def keras_shape(self) -> tuple[int, ...]:
        """The shape in the file."""
        return tuple(self.shape[i] for i in self.transpose) if self.transpose else self.shape


def load(path: str | os.PathLike, layers: list[KerasLayer], shapes: dict) -> Loaded:
    """Fills every leaf of a backbone exactly once from a Keras file.

    Args:
        path: the official weight layout, a whole Keras 2 or 3 `.h5` model that contains the backbone (nested or flat),
            or a Keras 3 `.weights.h5`.
        layers: the backbone's layers, in the order in which Keras makes them.
        shapes: its variables as a tree of things with a `shape`: `{"params": {stage: {layer: {leaf: ...}}}, ...}`.

    Raises:
        WeightsError: the file is not readable HDF5, or leaves are missing, misshapen, unexpected or ambiguous: all
            of them are named at once, and nothing is loaded.
    """
    path = Path(path)
    sha256 = sha256_of(path)
    leaves = expected_leaves(layers, shapes)
    try:
        with h5py.File(path, "r") as file:
            found = dict(_safe_datasets(file))
            if any("/vars/" in f"/{name}" for name in found):
                chosen, ignored = _match_by_order(found, layers, leaves, path)
            else:
                chosen, ignored = _match_by_name(found, layers, leaves, path)
            arrays = {leaf.path: _read(dataset, leaf) for leaf, dataset in chosen.items()}
    except (OSError, KeyError, ValueError, RuntimeError) as error:
        raise WeightsError(f"cannot read {path} as a Keras HDF5 file; {error}; fetch or save the file again") from error
    broken = ["/".join(leaf) for leaf, array in arrays.items() if not np.isfinite(array).all()]
    if broken:
        raise WeightsError(f"{path} holds NaN or infinite weights; in {_some(broken)}; fetch the file again")
    return Loaded(_nest(arrays), sha256, len(arrays), tuple(ignored))


def expected_leaves(layers: list[KerasLayer], shapes: dict) -> list[Leaf]:
    """Every array of a backbone, in the order of Keras; `layers` and `shapes` as for `load`."""
    leaves = []
    for layer in layers:
        wanted: list[tuple[tuple[str, str], tuple[str, ...], tuple[int, ...] | None]]
        if layer.class_name == "BatchNormalization":
            wanted = [((where, leaf), (keras,), None) for keras, (where, leaf) in _NORM_LEAVES.items()]
        elif layer.class_name == "DepthwiseConv2D":
            wanted = [(("params", "kernel"), ("depthwise_kernel", "kernel"), (0, 1, 3, 2))]
        else:
            wanted = [(("params", name), (name,), None) for name in ("kernel", "bias")]
        for (collection, leaf), keras_names, transpose in wanted:
            node = shapes[collection]
            for key in layer.path:
                node = node[key]
            if leaf in node:
                shape = tuple(node[leaf].shape)
                leaves.append(Leaf((collection, *layer.path, leaf), shape, layer.name, keras_names, transpose))
    return leaves


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


def _match_by_name(found, layers, leaves, path):
    """Official layout and whole models: a dataset ends in `layer/weight`, with or without `:0`."""
    by_layer: dict[str, dict[str, list[str]]] = {}
    for name in found:
        layer, weight = f"/{name}".split("/")[-2:]
        by_layer.setdefault(layer, {}).setdefault(weight.split(":")[0], []).append(name)
    wanted = {layer.name for layer in layers}
    chosen, used, faults = {}, set(), []
    for leaf in leaves:
        weights = by_layer.get(leaf.keras_layer, {})
        names = [name for keras in leaf.keras_names for name in weights.get(keras, [])]
        label = f"{leaf.keras_layer}/{leaf.keras_names[0]}"
        used.update(names)
        if not names:
            faults.append(f"missing {label}")
        elif len(names) > 1:
            faults.append(f"ambiguous {label} ({', '.join(names)})")
        else:
            _check(found[names[0]], leaf, label, faults)
            chosen[leaf] = found[names[0]]
    faults += [
        f"unexpected {n}"
        for layer in sorted(wanted)
        for ns in by_layer.get(layer, {}).values()
        for n in ns
        if n not in used
    ]
    _raise(faults, path, len(leaves))
    return chosen, sorted(set(by_layer) - wanted)


def _match_by_order(found, layers, leaves, path):
    """Keras 3 `.weights.h5`: layers are numbered by class in the order of the model, `layers/conv2d_3/vars/0`."""
    containers = sorted({name.split("/vars/")[0].rpartition("/")[0] for name in found if "/vars/" in name})
    results = [_match_container(found, layers, leaves, container) for container in containers]
    fits = [result for result in results if not result[0]]
    if len(fits) > 1:
        raise WeightsError(f"{path} holds {len(fits)} models that fit the backbone; save the one you mean alone")
    faults, chosen = fits[0] if fits else min(results, key=lambda result: len(result[0]))
    _raise(faults, path, len(leaves))
    used = {dataset.name.lstrip("/") for dataset in chosen.values()}
    return chosen, sorted({name.split("/vars/")[0] for name in found if name not in used})


def _match_container(found, layers, leaves, container):
    keys, numbers = {}, collections.Counter()
    for layer in layers:
        kind = _SNAKE[layer.class_name]
        keys[layer.name] = f"{container}/{kind}" + (f"_{numbers[kind]}" if numbers[kind] else "")
        numbers[kind] += 1
    faults, chosen, used = [], {}, collections.Counter()
    for leaf in leaves:
        name = f"{keys[leaf.keras_layer]}/vars/{used[leaf.keras_layer]}"
        used[leaf.keras_layer] += 1
        label = f"{leaf.keras_layer}/{leaf.keras_names[0]} ({name})"
        if name in found:
            _check(found[name], leaf, label, faults)
            chosen[leaf] = found[name]
        else:
            faults.append(f"missing {label}")
    names = {dataset.name.lstrip("/") for dataset in chosen.values()}
    faults += [f"unexpected {n}" for n in found if n not in names and n.split("/vars/")[0] in keys.values()]
    return faults, chosen


def _check(dataset, leaf, label, faults):
    if dataset.shape != leaf.keras_shape:
        faults.append(f"misshapen {label}: {dataset.shape}, expected {leaf.keras_shape}")
    elif dataset.dtype not in (np.float32, np.float16):
        faults.append(f"misshapen {label}: dtype {dataset.dtype}, expected float32 or float16")
    elif dataset.compression not in (None, "gzip"):
        faults.append(f"unexpected {label}: compression {dataset.compression}")


def _raise(faults, path, num_leaves):
    if faults:
        raise WeightsError(
            f"{path} does not fit the backbone ({num_leaves} arrays); {_some(faults)}; "
            "check model.backbone against the model the file was saved from"
        )


def _some(names, limit=40):
    more = f", and {len(names) - limit} more" if len(names) > limit else ""
    return ", ".join(names[:limit]) + more


def _nest(arrays: dict) -> dict:
    tree: dict = {"params": {}, "batch_stats": {}}
    for path, array in arrays.items():
        node = tree
        for key in path[:-1]:
            node = node.setdefault(key, {})
        node[path[-1]] = array
    return tree
