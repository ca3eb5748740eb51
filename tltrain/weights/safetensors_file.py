"""A `model.safetensors` of the Hub -> backbone variables; all faults are named at once, and none is loaded then.

The library proves that a header is sound: no array beyond the file, none over another, no gap. Its memory follows the
header, so a large one is refused before; the header is compared with the backbone's own table before a byte of an
array is read.
"""

import os
from pathlib import Path
from typing import Any

import ml_dtypes  # noqa: F401 - NumPy knows bfloat16 by it
import numpy as np
from safetensors import safe_open

from tltrain import hub
from tltrain.errors import WeightsError, foreign_errors
from tltrain.models.backbone import Backbone
from tltrain.weights import hub_layout, hub_match, variables
from tltrain.weights.hub_layout import Leaf, Place
from tltrain.weights.hub_match import Declared, Format
from tltrain.weights.variables import Loaded

_DTYPES = ("F32", "F16", "BF16", "F64")


def load(path: str | os.PathLike, backbone: Backbone, shapes: dict, sha256: str = "") -> Loaded:
    """Fills every leaf of a backbone exactly once from a safetensors file; arguments but `backbone` as of Keras' files.

    Raises:
        WeightsError: the file is another one, is damaged or of another network; or leaves are missing, misshapen,
            unexpected or ambiguous, all of them named at once; or they hold what no trained network does.
    """
    path = Path(path)
    leaves = hub_layout.leaves(backbone, shapes)
    found = variables.admit(path, variables.max_bytes(leaf.shape for leaf in leaves), sha256)
    stored = Format(backbone.hub_layouts, backbone.hub_prefixes, _DTYPES, _shape)
    with foreign_errors(WeightsError, f"cannot read {path} as safetensors", "fetch or save the file again"):
        hub.header_of(path)  # too long a one ends here: the library takes memory by it
        with safe_open(path, framework="numpy") as file:
            declared = {name: _declared(file.get_slice(name)) for name in file.keys()}  # noqa: SIM118
            chosen, ignored = hub_match.match(path, backbone, leaves, declared, stored)
            arrays = {leaf: _read(file, place, leaf) for leaf, place in chosen.items()}
    return variables.filled(path, arrays, found, ignored)


def _declared(array: Any) -> Declared:
    return Declared(array.get_dtype(), tuple(array.get_shape()))


def _shape(leaf: Leaf, place: Place) -> tuple[int, ...]:
    rows, *others = leaf.hub_shape
    return (rows if place.third is None else 3 * rows, *others)


def _read(file: Any, place: Place, leaf: Leaf) -> np.ndarray:
    rows = leaf.hub_shape[0]
    array = file.get_slice(place.name)
    array = array[:] if place.third is None else array[place.third * rows : (place.third + 1) * rows]
    return variables.float32(array).transpose(leaf.axes)
