"""A `.npz` of Flax, as AugReg and big_vision publish them -> backbone variables; faults as of safetensors.

It is a zip with a `.npy` an array: small headers are read first, within bounds, and compared with the backbone's own
table before an array is unpacked. Nothing pickled is read.
"""

import math
import os
import re
import zipfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
from numpy.lib import format as npy

from tltrain.errors import WeightsError, foreign_errors
from tltrain.models.backbone import Backbone
from tltrain.models.vision_transformer import VisionTransformer
from tltrain.weights import hub_layout, hub_match, variables, zip_file
from tltrain.weights.hub_layout import Leaf, Place
from tltrain.weights.hub_match import Declared, Format
from tltrain.weights.variables import Loaded

MAX_ARRAYS = 5_000
_SUFFIX = ".npy"
_PREFIXES = ("params/", "opt/target/")  # of variables alone, and of what an optimizer of old kept
_DTYPES = ("float32", "float16", "bfloat16", "float64")
_HEADS = re.compile(r"MultiHeadDotProductAttention_\d+/(query|key|value|out)/(kernel|bias)$")
_POSITIONS = re.compile(f"({'|'.join(_PREFIXES)})?pos_embedding")


def is_npz(start: bytes) -> bool:
    """Whether a zip with these first bytes begins with an array: a file is what it is, not what it is called."""
    length = int.from_bytes(start[26:28], "little")
    return start[30 : 30 + length].endswith(_SUFFIX.encode())


def load(path: str | os.PathLike, backbone: Backbone, shapes: dict, sha256: str = "") -> Loaded:
    """Fills every leaf of a backbone exactly once from a `.npz` of Flax; arguments and errors as of safetensors."""
    path = Path(path)
    if not (isinstance(backbone, VisionTransformer) and backbone.flax_layouts):
        raise WeightsError(
            f"{path} is an .npz of Flax, of which {type(backbone).__name__} cannot be read; give a model.safetensors "
            "of the same network"
        )
    leaves = hub_layout.leaves(backbone, shapes)
    max_bytes = variables.max_bytes(leaf.shape for leaf in leaves)
    found = variables.admit(path, max_bytes, sha256)
    stored = Format(backbone.flax_layouts, _PREFIXES, _DTYPES, _shapes(backbone))
    with (
        foreign_errors(WeightsError, f"cannot read {path} as .npz", "fetch or save the file again"),
        zip_file.opened(path) as archive,
    ):
        members = _members(archive, max_bytes)
        declared = {name: _declared(archive, member) for name, member in members.items()}
        chosen, ignored = hub_match.match(path, backbone, leaves, declared, stored)
        arrays = {leaf: _read(archive, members[place.name], leaf) for leaf, place in chosen.items()}
    return variables.filled(path, arrays, found, ignored)


def _members(archive: zipfile.ZipFile, max_bytes: int) -> dict[str, zipfile.ZipInfo]:
    """Members of a zip by the names of their arrays."""
    infos = archive.infolist()
    if len(infos) > MAX_ARRAYS:
        raise ValueError(f"it has {len(infos)} arrays, at most {MAX_ARRAYS} are read")
    members = {info.filename.removesuffix(_SUFFIX): info for info in infos}
    if len(members) < len(infos):
        raise ValueError("it has two arrays of one name")
    zip_file.check(infos, max_bytes)
    return members


def _declared(archive: zipfile.ZipFile, info: zipfile.ZipInfo) -> Declared:
    """What the header of an array says; raises ValueError where there is none, or other data than it says."""
    with archive.open(info) as member:
        version = npy.read_magic(member)
        if version > (2, 0):  # with names of fields beyond Latin-1
            raise ValueError(f"{info.filename} is in version {version} of .npy, read are (1, 0) and (2, 0)")
        read = npy.read_array_header_1_0 if version == (1, 0) else npy.read_array_header_2_0
        shape, _, dtype = read(member)
        length = member.tell()
    if min(shape, default=1) < 0 or length + math.prod(shape) * dtype.itemsize != info.file_size:
        raise ValueError(f"{info.filename} has {info.file_size - length} bytes of {shape} {dtype.name}")
    return Declared("bfloat16" if dtype == np.dtype("V2") else dtype.name, shape)


def _shapes(backbone: VisionTransformer) -> Callable[[Leaf, Place], tuple[int, ...]]:
    """The shapes of leaves in files: ours, but heads are an axis of their own, before the features of each.

    Positions of big_vision are those of patches alone.
    """
    heads, num_placed = backbone.num_heads, len(backbone.tokens) if backbone.placed_tokens else 0

    def shape(leaf: Leaf, place: Place) -> tuple[int, ...]:
        first, *others = leaf.shape
        if _POSITIONS.fullmatch(place.name):
            return (first, others[0] - num_placed, *others[1:])
        part = _HEADS.search(place.name)
        if part is None or part[0].endswith("out/bias"):
            return leaf.shape
        if part[1] == "out":
            return (heads, first // heads, *others)
        return (*leaf.shape[:-1], heads, leaf.shape[-1] // heads)

    return shape


def _read(archive: zipfile.ZipFile, info: zipfile.ZipInfo, leaf: Leaf) -> np.ndarray:
    with archive.open(info) as member:
        array = variables.float32(npy.read_array(member, allow_pickle=False))
    if array.size < math.prod(leaf.shape):  # a class token without a position
        array = np.pad(array, ((0, 0), (leaf.shape[1] - array.shape[1], 0), (0, 0)))
    return array.reshape(leaf.shape)
