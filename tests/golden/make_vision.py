"""Writes `vision.npz`: what transformers and timm make of an image, at weights that follow from the names of arrays.

PYTHONPATH=tests python tests/golden/make_vision.py, where transformers, timm and torch are installed.
Of each network: the names and shapes of its file, and every fifth feature after the embeddings, each layer and the last
normalisation, and of what it pools, for a square image and one of another shape.
"""

import json
import tempfile
from pathlib import Path

import numpy as np
import timm.models.vision_transformer as timm_vit
import torch
import transformers
from safetensors import safe_open
from safetensors.numpy import save_file
from small_vision import CONFIGS, CONVNEXT, EVERY, TIMM, array, images, sizes
from timm.models.convnext import ConvNeXt

_MODELS = {
    "vit": transformers.ViTModel,
    "dinov2": transformers.Dinov2Model,
    "dinov2_registers": transformers.Dinov2WithRegistersModel,
    "clip": transformers.CLIPVisionModel,
    "siglip": transformers.SiglipVisionModel,
    "convnext": transformers.ConvNextModel,
}


def of_transformers(family):
    """Its shapes, and `{name: array}` of what it makes of each image."""
    config = transformers.AutoConfig.for_model(**(CONVNEXT if family == "convnext" else CONFIGS[family]))
    config._attn_implementation = "eager"
    with tempfile.TemporaryDirectory() as folder:
        _MODELS[family](config).save_pretrained(folder)
        path = Path(folder) / "model.safetensors"
        with safe_open(path, "np") as file:
            shapes = {name: file.get_slice(name).get_shape() for name in file.keys()}  # noqa: SIM118
        save_file({name: array(name, shape) for name, shape in shapes.items()}, path, {"format": "pt"})
        model = _MODELS[family].from_pretrained(folder, attn_implementation="eager").eval()
    options = {"interpolate_pos_encoding": True} if family in ("vit", "clip", "siglip") else {}
    made = {}
    for size in sizes(family):
        with torch.no_grad():
            found = model(torch.from_numpy(images(size)).permute(0, 3, 1, 2), output_hidden_states=True, **options)
            last = found.last_hidden_state  # which CLIP normalises for its class token alone
            last = model.post_layernorm(last) if family == "clip" else last
        states = [*found.hidden_states[:4], last]
        if family == "convnext":
            states = [state.permute(0, 2, 3, 1) for state in found.hidden_states]
        pooled = last[:, 0] if family == "vit" else found.pooler_output
        made |= {f"{size}/{i}": state.numpy() for i, state in enumerate([*states, pooled])}
    return shapes, made


def convnext_of_timm():
    """Its shapes, and the pooled features of each image."""
    model = ConvNeXt(dims=CONVNEXT["hidden_sizes"], depths=CONVNEXT["depths"], ls_init_value=1.0, num_classes=0).eval()
    state = {key: array(key, tuple(value.shape)) for key, value in model.state_dict().items()}
    model.load_state_dict({key: torch.from_numpy(value) for key, value in state.items()})
    with torch.no_grad():
        made = {f"{s}/5": model(torch.from_numpy(images(s)).permute(0, 3, 1, 2)).numpy() for s in sizes("convnext")}
    return {key: value.shape for key, value in state.items()}, made


def of_timm(name):
    """As `of_transformers`."""
    if name == "convnext":
        return convnext_of_timm()
    model = timm_vit.VisionTransformer(**TIMM[name][0], dynamic_img_size=True).eval()
    state = {key: array(key, tuple(value.shape)) for key, value in model.state_dict().items()}
    model.load_state_dict({key: torch.from_numpy(value) for key, value in state.items()})
    made = {}
    for size in sizes(name):
        with torch.no_grad():
            x = torch.from_numpy(images(size)).permute(0, 3, 1, 2)
            states = [model._pos_embed(model.patch_embed(x))]
            for block in model.blocks:
                states.append(block(states[-1]))
            states += [model.norm(states[-1]), model.forward_head(model.forward_features(x))]
        made |= {f"{size}/{i}": found.numpy() for i, found in enumerate(states)}
    return {key: value.shape for key, value in state.items()}, made


def main():
    """Writes the file."""
    arrays = {}
    for library, names, of in (("transformers", CONFIGS, of_transformers), ("timm", TIMM, of_timm)):
        for name in (*names, "convnext"):
            shapes, made = of(name)
            arrays |= {f"{library}/{name}/{key}": value[..., ::EVERY] for key, value in made.items()}
            arrays[f"{library}/{name}/shapes"] = np.frombuffer(json.dumps(shapes).encode(), np.uint8)
    path = Path(__file__).parent / "vision.npz"
    np.savez_compressed(path, **arrays)
    print(path.name, path.stat().st_size, "bytes")


if __name__ == "__main__":
    main()
