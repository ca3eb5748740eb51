"""A `model.safetensors` of the Hub -> backbone variables; all faults are named at once, and none is loaded then.

The library proves that a header is sound: no array beyond the file, none over another, no gap. Its memory follows the
header, so a large one is refused before; the header is compared with the backbone's own table before a byte of an
array is read.
"""

import os
import re
from pathlib import Path
from typing import Any, NamedTuple

import ml_dtypes  # noqa: F401 - NumPy knows bfloat16 by it
import numpy as np
from safetensors import safe_open

from tltrain import hub
from tltrain.errors import WeightsError, foreign_errors
from tltrain.models.backbone import Backbone, Layout
from tltrain.weights import hub_layout, variables
from tltrain.weights.hub_layout import Leaf, Place
from tltrain.weights.variables import Loaded

_DTYPES = ("F32", "F16", "BF16", "F64")


class _Declared(NamedTuple):
    """What a header says of an array."""

    dtype: str
    shape: tuple[int, ...]


def load(path: str | os.PathLike, backbone: Backbone, shapes: dict, sha256: str = "") -> Loaded:
    """Fills every leaf of a backbone exactly once from a safetensors file; arguments but `backbone` as of Keras' files.

    Raises:
        WeightsError: the file is another one, is damaged or of another network; or leaves are missing, misshapen,
            unexpected or ambiguous, all of them named at once; or they hold what no trained network does.
    """
    path = Path(path)
    leaves = hub_layout.leaves(backbone, shapes)
    found = variables.admit(path, variables.max_bytes(leaf.shape for leaf in leaves), sha256)
    with foreign_errors(WeightsError, f"cannot read {path} as safetensors", "fetch or save the file again"):
        hub.header_of(path)  # too long a one ends here: the library takes memory by it
        with safe_open(path, framework="numpy") as file:
            declared = {name: _declared(file.get_slice(name)) for name in file.keys()}  # noqa: SIM118
            layout, prefix = _layout(path, backbone, leaves, declared)
            faults, chosen = _match(leaves, declared, layout, prefix)
            ignored, unexpected = _rest(backbone, set(declared) - {place.name for place in chosen.values()}, prefix)
            if faults := faults + unexpected:
                raise variables.unfit(path, len(leaves), faults)
            arrays = {leaf: _read(file, place, leaf) for leaf, place in chosen.items()}
    return variables.filled(path, arrays, found, ignored)


def _declared(array: Any) -> _Declared:
    return _Declared(array.get_dtype(), tuple(array.get_shape()))


def _layout(path, backbone, leaves, declared):
    """The layout of most names, and what stands before them; raises where no array of the backbone is in the file."""
    counts = {
        (layout, prefix): sum(any(prefix + place.name in declared for place in leaf.places(layout)) for leaf in leaves)
        for layout in backbone.hub_layouts
        for prefix in ("", *backbone.hub_prefixes)
    }
    if not any(counts.values()):
        raise WeightsError(
            f"{path} is of another network; none of the {len(leaves)} arrays of the backbone is in it, but "
            f"{variables.some(sorted(map(_shown, declared)), 3) or 'nothing'}; set model.backbone to its network"
        )
    return max(counts, key=lambda found: counts[found])


def _match(
    leaves: list[Leaf], declared: dict[str, _Declared], layout: Layout, prefix: str
) -> tuple[list[str], dict[Leaf, Place]]:
    faults: list[str] = []
    chosen: dict[Leaf, Place] = {}
    for leaf in leaves:
        places = [place._replace(name=prefix + place.name) for place in leaf.places(layout)]
        found = [place for place in places if place.name in declared]
        if len(found) > 1:
            faults.append(f"ambiguous {leaf.label} ({', '.join(place.name for place in found)})")
        elif not found:
            faults.append(f"missing {places[0].name}")
        else:
            name, third = found[0]
            rows, *others = leaf.hub_shape
            expected = (rows if third is None else 3 * rows, *others)
            dtype, shape = declared[name]
            if shape != expected:
                faults.append(f"misshapen {name}: {_shown(str(shape))}, expected {expected}")
            elif dtype not in _DTYPES:
                faults.append(f"misshapen {name}: dtype {dtype}, expected {' or '.join(_DTYPES)}")
        if found:
            chosen[leaf] = found[0]
    return faults, chosen


def _rest(backbone, names, prefix):
    """The groups of `names` that are known and not used, without buffers of positions; and what is unexpected."""
    ignored, unexpected = set(), []
    for name in sorted(names):
        stripped = name.removeprefix(prefix)
        if not any(re.fullmatch(pattern, stripped) for pattern in backbone.hub_unused):
            unexpected.append(f"unexpected {_shown(name)}")
        elif not stripped.endswith("position_ids"):
            ignored.add(stripped.partition(".")[0])
    return sorted(ignored), unexpected


def _read(file: Any, place: Place, leaf: Leaf) -> np.ndarray:
    rows = leaf.hub_shape[0]
    array = file.get_slice(place.name)
    array = array[:] if place.third is None else array[place.third * rows : (place.third + 1) * rows]
    return variables.float32(array).transpose(leaf.axes)


def _shown(name):
    """A name of the file in a message: printable, and not long."""
    text = "".join(c if c.isprintable() else ascii(c)[1:-1] for c in name[:80])
    return text + ("..." if len(name) > 80 else "")
