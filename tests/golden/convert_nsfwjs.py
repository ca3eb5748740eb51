"""A network of the npm package nsfwjs, which TensorFlow.js runs, as a weight file of Keras: its official layout.

python tests/golden/convert_nsfwjs.py package/dist/models/inception_v3 weights.h5
Layers and weights carry the names of Keras 2. What is quantized to 8 bits is multiplied by its scale, and its minimum
added, as TensorFlow.js does. Scripts hold the model and, in base64, its bytes; they are read, and not run.
"""

import base64
import json
import re
import sys
from pathlib import Path

import h5py
import numpy as np

_TO_JSON = ((r"([{,])(\w+):", r'\1"\2":'), (r"([:,\[]-?)\.(\d)", r"\g<1>0.\2"), ("!0", "true"), ("!1", "false"))


def read(folder):
    """The config of Keras' model, and `{"layer/weight": float32 array}` in its order, of what is in `folder`."""
    script = (folder / "model.min.js").read_text()
    script = script[script.index("{modelTopology:") :]
    for pattern, replacement in _TO_JSON:
        script = re.sub(pattern, replacement, script)
    model, _ = json.JSONDecoder().raw_decode(script)
    arrays = {}
    for group in model["weightsManifest"]:
        data, at = b"".join(_bytes(folder / f"{path}.min.js") for path in group["paths"]), 0
        for weight in group["weights"]:
            how, count = weight["quantization"], int(np.prod(weight["shape"]))
            levels = np.frombuffer(data, how["dtype"], count, at)
            at += levels.nbytes
            value = levels.astype(np.float32) * np.float32(how["scale"]) + np.float32(how["min"])
            arrays[weight["name"]] = value.reshape(weight["shape"])
        assert at == len(data)
    return model["modelTopology"]["model_config"]["config"], arrays


def _bytes(script):
    (encoded,) = re.findall(r'"([A-Za-z0-9+/=]{1000,})"', script.read_text())
    return base64.b64decode(encoded)


def write(config, arrays, path):
    """The layers of a model by `read` in their order, a group each, as Keras 2 saved weights."""
    with h5py.File(path, "w") as file:
        names = [layer["name"] for layer in config["layers"]]
        file.attrs["layer_names"] = [name.encode() for name in names]
        for layer in names:
            group = file.create_group(layer)
            found = {f"{name}:0": array for name, array in arrays.items() if name.startswith(f"{layer}/")}
            group.attrs["weight_names"] = [name.encode() for name in found]
            for name, array in found.items():
                group[name] = array


if __name__ == "__main__":
    write(*read(Path(sys.argv[1])), Path(sys.argv[2]))
