"""The door to weight files: what `model.weights` names, and the reader of what lies there.

A reader is chosen by what a file is, not by what it is called, and by whose weights the backbone takes.
"""

from pathlib import Path

from tltrain import hub, hub_download
from tltrain.errors import WeightsError, foreign_errors
from tltrain.models.backbone import Backbone
from tltrain.weights import download, hub_layout, keras_hub, keras_weights, npz_file, safetensors_file
from tltrain.weights.variables import Loaded

_START = 512  # bytes of a file that tell what it is
_HDF5, _ZIP = b"\x89HDF\r\n\x1a\n", b"PK\x03\x04"


def path_of(source: str, backbone: Backbone) -> Path | None:
    """The weight file that `model.weights` names by `source`, fetched on first use; None for random weights.

    Raises:
        WeightsError: as `download.imagenet` and `hub.files`; or files beside it are of another network.
    """
    if hub.is_random(source):
        return None
    if source == "imagenet":
        return download.imagenet(backbone)
    files = hub.files(source)
    backbone.check_files(files)
    return files.weights


def verified_by(source: str, backbone: Backbone, path: Path, sha256: str) -> str | None:
    """The algorithm by which the file `path`, which `source` named, was compared with what was published or pinned.

    `sha256` is the pin, or "". None: it was compared with nothing.
    """
    if sha256 or hub_download.published_sha256(path):
        return "sha256"
    published = backbone.weight_file if source == "imagenet" else None
    return published.checksum[0] if published else None


def load(path: Path, backbone: Backbone, shapes: dict, sha256: str = "") -> Loaded:
    """Fills every leaf of `backbone` exactly once from the file `path`.

    Args:
        path: a file of Keras or KerasHub (`.h5`, `.keras`), a `model.safetensors`, or a `.npz` of Flax.
        backbone: whose variables are wanted.
        shapes: them, as things with a `shape`: `{"params": {stage: {layer: {leaf: ...}}}, ...}`.
        sha256: what the file has to have, in hex; "" for any.

    Raises:
        WeightsError: it is a file of another library than the backbone's weights, or as the readers.
    """
    download.num_bytes(path)
    with foreign_errors(WeightsError, f"cannot read {path}", "check its permissions"), path.open("rb") as file:
        start = file.read(_START)
    is_npz = start.startswith(_ZIP) and npz_file.is_npz(start)
    is_keras = start.startswith((_HDF5, _ZIP)) and not is_npz
    is_on_hub = bool(hub_layout.leaves(backbone, shapes))
    if is_on_hub and not is_keras:
        return (npz_file if is_npz else safetensors_file).load(path, backbone, shapes, sha256)
    layers = backbone.keras_layers()
    if is_on_hub and not layers:
        return keras_hub.load(path, backbone, shapes, sha256)
    if is_npz or (not is_keras and start[8:9] == b"{"):  # after the length of the header
        raise WeightsError(
            f"{path} is {'an .npz of Flax' if is_npz else 'a safetensors file'}, and weights of "
            f"{type(backbone).__name__} are read from Keras'; set model.weights to a Keras .h5 or .keras, or "
            "model.backbone to the network of the file"
        )
    return keras_weights.load(path, layers, shapes, sha256)
