"""Transformers of images are those of transformers and timm, at each stage and for images of other sizes."""

import functools
import json
from pathlib import Path

import jax
import numpy as np
import pytest
from conftest import QUICKLY, graded
from references import assert_close
from safetensors.numpy import save_file
from small_vision import CONFIGS, CONVNEXT, EVERY, TIMM, array, images, sizes

from tltrain import config as config_lib
from tltrain.models import clip, convnext, dinov2, siglip, vit, zoo
from tltrain.models.image_backbone import NORMALIZED
from tltrain.weights import reader

jit = functools.partial(jax.jit, compiler_options=QUICKLY)
PIXELS = {"clip": "clip", "siglip": "tf", "vit": "tf", "dinov2": "torch", "dinov2_registers": "torch"}
NETWORKS = [("transformers", family) for family in CONFIGS] + [("timm", name) for name in TIMM]
SMALL = {"patch_size": 16, "hidden_size": 32, "num_layers": 3, "num_heads": 4, "intermediate_size": 48, "grid": 4}


# where the layers of transformers end whose activations are golden
CONVNEXT_ENDS = ("stem", "stage_0_block_0", "stage_1_block_0", "stage_2_block_1", "stage_3_block_0")


@functools.cache
def golden(library, name):
    with np.load(Path(__file__).parents[1] / "golden" / "vision.npz") as file:
        start = f"{library}/{name}/"
        found = {key.removeprefix(start): file[key] for key in file.files if key.startswith(start)}
    return found, json.loads(found.pop("shapes").tobytes())


def write(folder, library, name, **changes):
    """A folder of weights as of the Hub: arrays, and for networks of transformers what is beside them."""
    arrays = {key: array(key, shape) for key, shape in golden(library, name)[1].items()}
    save_file(arrays, folder / "model.safetensors")
    if library == "transformers":
        (folder / "config.json").write_text(json.dumps(CONFIGS[name]))
        mean, std = NORMALIZED[PIXELS[name]]
        said = {
            "image_mean": mean,
            "image_std": std,
            "size": dict(zip(("height", "width"), sizes(name)[0], strict=True)),
        }
        (folder / "preprocessor_config.json").write_text(json.dumps(said | changes))
    return folder


def opened(folder, backbone, **options):
    """The model and the variables of a config by the door that a run takes."""
    config = config_lib.default()
    config.model.update(backbone=backbone, weights=str(folder), **options)
    config = zoo.resolved(config)
    model = zoo.create(config, 2)
    return model.backbone, filled(model.backbone, folder)


def filled(backbone, folder):
    shapes = {"params": {}} | jax.eval_shape(backbone.init, jax.random.key(0), backbone.example())
    return reader.load(folder / "model.safetensors", backbone, shapes).variables


# parameters of the network without a head or a token that masks, as transformers and timm count
PARAMETERS = {
    "vit_tiny_16": 5_524_416,
    "vit_small_16": 21_665_664,
    "vit_base_16": 85_798_656,
    "vit_base_32": 87_455_232,
    "vit_large_16": 303_301_632,
    "vit_base_16_in21k": 85_798_656,
    "vit_large_16_in21k": 303_301_632,
    "deit_tiny_16": 5_524_416,
    "deit_small_16": 21_665_664,
    "deit_base_16": 85_798_656,
    "deit3_small_16": 21_674_496,
    "deit3_base_16": 85_816_320,
    "deit3_large_16": 303_349_760,
    "dinov2_small": 22_056_192,
    "dinov2_base": 86_579_712,
    "dinov2_large": 304_367_616,
    "dinov2_giant": 1_136_479_232,
    "dinov2_registers_small": 22_057_728,
    "dinov2_registers_base": 86_582_784,
    "dinov2_registers_large": 304_371_712,
    "dinov2_registers_giant": 1_136_485_376,
    "clip_base_32": 87_456_000,
    "clip_base_16": 85_799_424,
    "clip_large_14": 303_179_776,
    "siglip_base_16": 92_884_224,
    "siglip_base_16_256": 92_930_304,
    "siglip_base_16_384": 93_176_064,
    "siglip_large_16_256": 315_956_224,
    "siglip_large_16_384": 316_283_904,
    "siglip_so400m_14": 427_680_704,
    "siglip_so400m_14_384": 428_225_600,
    "siglip2_base_16": 92_884_224,
    "siglip2_large_16_256": 315_956_224,
    "siglip2_so400m_14": 427_680_704,
    "siglip2_so400m_14_384": 428_225_600,
}


def test_every_variant_has_a_count_of_parameters():
    made = {name for family in (vit, dinov2, clip, siglip) for name, make in family.VARIANTS.items() if make().variant}
    assert made == set(PARAMETERS)


@pytest.mark.parametrize("name", graded(PARAMETERS, ["vit_small_16", "dinov2_registers_small", "siglip_base_16"]))
def test_a_variant_has_as_many_parameters_as_its_file(name):
    backbone = zoo.BACKBONES[name]()
    shapes = jax.eval_shape(backbone.init, jax.random.key(0), backbone.example())
    assert sum(leaf.size for leaf in jax.tree.leaves(shapes)) == PARAMETERS[name]
    trained_on = 518 if name.startswith("dinov2") else backbone.input_size[0]
    assert backbone.grid == trained_on // backbone.patch_size


@pytest.mark.parametrize(("library", "name"), NETWORKS)
def test_every_stage_and_pooled_features_are_the_golden_ones(library, name, tmp_path):
    folder = write(tmp_path, library, name)
    if library == "timm":
        backbone = vit.ViT(**SMALL, **TIMM[name][1])
        variables = filled(backbone, folder)
    else:
        backbone, variables = opened(folder, name.partition("_")[0])
    assert backbone.clone(pooling="mean").stages == ("embeddings", "layer_0", "layer_1", "layer_2", backbone.last_norm)
    for size in sizes(name):
        x = images(size)
        for i, stage in enumerate(backbone.stages):
            x = jit(lambda v, x, i=i: backbone.apply(v, x, start=i, stop=i + 1))(variables, x)
            if stage != "head":  # what it pools is compared below
                wanted = golden(library, name)[0][f"{size}/{i}"]
                assert_close(x[..., ::EVERY], wanted[:, : x.shape[1]])
        assert_close(backbone.pool(x)[..., ::EVERY], golden(library, name)[0][f"{size}/5"])


@pytest.mark.parametrize("library", ["transformers", "timm"])
def test_convnext_takes_files_of_the_hub(library, tmp_path):
    arrays = {key: array(key, shape) for key, shape in golden(library, "convnext")[1].items()}
    save_file(arrays, tmp_path / "a.safetensors")
    backbone = convnext.ConvNeXt(depths=tuple(CONVNEXT["depths"]), widths=tuple(CONVNEXT["hidden_sizes"]))
    shapes = jax.eval_shape(backbone.init, jax.random.key(0), backbone.example())
    loaded = reader.load(tmp_path / "a.safetensors", backbone, shapes)
    found = golden(library, "convnext")[0]
    for size in sizes("convnext"):
        x = images(size)
        for i, end in enumerate((*CONVNEXT_ENDS, "head")):
            start = backbone.stages.index(CONVNEXT_ENDS[i - 1]) + 1 if i else 0
            stop = backbone.stages.index(end) + 1
            x = jit(lambda v, x, start=start, stop=stop: backbone.apply(v, x, False, start, stop))(loaded.variables, x)
            if f"{size}/{i}" in found:
                assert_close((backbone.pool(x) if end == "head" else x)[..., ::EVERY], found[f"{size}/{i}"])
