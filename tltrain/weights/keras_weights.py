"""Keras weight files -> backbone variables; all faults of a file are named at once, and none of it is loaded then.

What is read is decided by the backbone's own table of names and shapes, never by the file. What a file cannot be
trusted in by its form is refused by `keras_file`, what no trained network has by its values by `variables`.
"""

import os
from collections.abc import Sequence
from pathlib import Path

import h5py
import numpy as np

from tltrain.errors import WeightsError, foreign_errors
from tltrain.models.backbone import KerasLayer
from tltrain.weights import keras_file, keras_layout, variables
from tltrain.weights.keras_layout import Leaf, Match
from tltrain.weights.variables import Loaded


def load(path: str | os.PathLike, layers: Sequence[KerasLayer], shapes: dict, sha256: str = "") -> Loaded:
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
    max_bytes = variables.max_bytes(leaf.keras_shape for leaf in leaves)
    found = variables.admit(path, max_bytes, sha256)
    with (
        foreign_errors(WeightsError, f"cannot read {path} as a Keras weight file", "fetch or save the file again"),
        keras_file.opened(path, max_bytes) as file,
    ):
        match = _match(file, layers, leaves, path, max_bytes)
        if match.faults:
            raise variables.unfit(path, len(leaves), match.faults)
        arrays = {leaf: _read(dataset, leaf) for leaf, dataset in match.chosen.items()}
    return variables.filled(path, arrays, found, match.ignored)


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
        match = keras_layout.match(layers, leaves, keras_layout.named_layers(in_order, layers))
        return match._replace(ignored=sorted({group.rpartition("/")[2] for group in match.ignored}))
    models = list(keras_layout.stored_layers(found))
    whole = [model for model in models if sum(len(layer.arrays) for layer in model) >= len(leaves)]
    matches = [keras_layout.match(layers, leaves, model) for model in whole or [max(models, key=len)]]
    fits = [match for match in matches if not match.faults]
    if any(match.chosen != fits[0].chosen for match in fits):
        raise WeightsError(f"{path} holds several models that fit the backbone; save the one you mean alone")
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
    array = variables.float32(dataset[()])
    return array.transpose(np.argsort(leaf.transpose)) if leaf.transpose else array
