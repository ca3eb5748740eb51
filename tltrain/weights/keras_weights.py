"""Keras weight files -> backbone variables; all faults of a file are named at once, and none of it is loaded then.

What is read is decided by the backbone's own table of names and shapes, never by the file. What a file cannot be
trusted in by its form is refused by `weights_file`, what no trained network has by its values, here.
"""

import math
import os
from dataclasses import dataclass
from pathlib import Path

import h5py
import numpy as np

from tltrain.errors import WeightsError, foreign_errors
from tltrain.models.backbone import KerasLayer
from tltrain.weights import download, keras_file, keras_layout
from tltrain.weights.keras_layout import Leaf, Match

HEAD_BYTES = 2**29  # of what a file may hold beside the backbone; the largest head of keras.applications has 494 MB
MAX_WEIGHT = 1e6  # of a deviation too, whose square is stored


@dataclass(frozen=True)
class Loaded:
    """What was read: `variables` `{"params": ..., "batch_stats": ...}`, and what to tell the user about it."""

    variables: dict
    sha256: str
    num_arrays: int
    ignored: tuple[str, ...]


def load(path: str | os.PathLike, layers: list[KerasLayer], shapes: dict, sha256: str = "") -> Loaded:
    """Fills every leaf of a backbone exactly once from a Keras file.

    Args:
        path: the official weight layout, a whole Keras 2 or 3 `.h5` model that contains the backbone (nested or flat),
            a Keras 3 `.weights.h5`, or a `.keras` file.
        layers: the backbone's layers, in the order of `model.layers` in Keras.
        shapes: its variables as a tree of things with a `shape`: `{"params": {stage: {layer: {leaf: ...}}}, ...}`.
        sha256: what the file has to have, in hex; "" for any.

    Raises:
        WeightsError: the file is another one, is damaged or is not of Keras; or leaves are missing, misshapen,
            unexpected or ambiguous, all of them named at once; or they hold what no trained network does.
    """
    path = Path(path)
    leaves = keras_layout.leaves(layers, shapes)
    max_bytes = 4 * _num_bytes(leaves) + HEAD_BYTES  # Adam keeps two arrays beside each
    if (num_bytes := download.num_bytes(path)) > max_bytes:
        raise WeightsError(
            f"{path} has {num_bytes} bytes, at most {max_bytes} are read for this backbone; "
            "save the backbone alone, without a head and an optimizer"
        )
    found = download.digest(path, "sha256")
    if sha256 and found != sha256.lower():
        raise WeightsError(
            f"{path} is not the file that is pinned; its sha256 is {found}, model.sha256 is {sha256}; "
            "fetch the file again, or pin the one you trust"
        )
    with (
        foreign_errors(WeightsError, f"cannot read {path} as a Keras weight file", "fetch or save the file again"),
        keras_file.opened(path, max_bytes) as file,
    ):
        match = _match(file, layers, leaves, path, max_bytes)
        if match.faults:
            raise WeightsError(
                f"{path} does not fit the backbone ({len(leaves)} arrays); {_some(match.faults)}; "
                "check model.backbone against the model the file was saved from"
            )
        arrays = {leaf: _read(dataset, leaf) for leaf, dataset in match.chosen.items()}
    if faults := [fault for leaf, array in arrays.items() if (fault := _value_fault(leaf, array))]:
        raise WeightsError(f"{path} holds what no trained network does; {_some(faults)}; fetch the file again")
    variables = nest({leaf.path: array for leaf, array in arrays.items()})
    return Loaded(variables, found, len(arrays), tuple(match.ignored))


def _num_bytes(leaves):
    return sum(4 * math.prod(leaf.keras_shape) for leaf in leaves)


def _match(file, layers, leaves, path, max_bytes) -> Match:
    found, faults = keras_file.datasets(file, max_bytes)
    match = _match_by_name(file, layers, leaves, path, found)
    for leaf, dataset in match.chosen.items():
        if not keras_layout.misfits(dataset, leaf):
            faults += keras_file.storage_faults(dataset, leaf.label)
    return match._replace(faults=faults + match.faults)


def _match_by_name(file, layers, leaves, path, found) -> Match:
    if not any("/vars/" in f"/{name}" for name in found):
        in_order = found if all(layer.name for layer in layers) else _by_graph(file, found)
        match = keras_layout.match(layers, leaves, keras_layout.named_layers(in_order))
        return match._replace(ignored=sorted({group.rpartition("/")[2] for group in match.ignored}))
    models = list(keras_layout.stored_layers(found))
    whole = [model for model in models if sum(len(layer.arrays) for layer in model) >= len(leaves)]
    matches = [keras_layout.match(layers, leaves, model) for model in whole or [max(models, key=len)]]
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
    groups = {name[:i] for name in found for i, letter in enumerate(name) if letter == "/"}  # proven to be no links
    root = "model_weights/" if "model_weights" in groups else ""
    order = []
    for layer in keras_file.names_in(file[root or "/"], "layer_names"):
        if f"{root}{layer}" in groups:
            names = keras_file.names_in(file[f"{root}{layer}"], "weight_names")
            order += [f"{root}{layer}/{name}" for name in names]
    return {name: found[name] for name in order if name in found}


def _read(dataset: h5py.Dataset, leaf: Leaf) -> np.ndarray:
    array = dataset[()]
    if array.dtype == "V2":  # bfloat16 in Keras: the upper half of a float32
        array = (array.view("<u2").astype("<u4") << 16).view("<f4")
    with np.errstate(all="ignore"):  # what overflows is infinite then, and refused
        array = np.asarray(array, np.float32)
    return array.transpose(np.argsort(leaf.transpose)) if leaf.transpose else array


def _value_fault(leaf: Leaf, array: np.ndarray) -> str | None:
    is_variance = leaf.path[-1] == "var"
    limit = MAX_WEIGHT**2 if is_variance else MAX_WEIGHT
    if not np.isfinite(array).all():
        return f"NaN or infinite {leaf.label}"
    if is_variance and array.min() < 0:
        return f"negative {leaf.label}"
    if leaf.path[-1].endswith("kernel") and not array.any():
        return f"all-zero {leaf.label}"
    if max(array.max(), -array.min()) >= limit:
        return f"{leaf.label} of {limit:g} or more"
    return None


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
