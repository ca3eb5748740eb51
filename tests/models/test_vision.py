"""Transformers of images are those of transformers and timm, at each stage and for images of other sizes."""

import functools
import json
from pathlib import Path

import jax
import numpy as np
import pytest
from conftest import QUICKLY
from references import assert_close
from safetensors.numpy import save_file
from small_vision import CONFIGS, EVERY, TIMM, array, images, sizes

from tltrain import config as config_lib
from tltrain.models import vit, zoo
from tltrain.models.image_backbone import NORMALIZED
from tltrain.weights import reader

jit = functools.partial(jax.jit, compiler_options=QUICKLY)
PIXELS = {"clip": "clip", "siglip": "tf", "vit": "tf", "dinov2": "torch", "dinov2_registers": "torch"}
NETWORKS = [("transformers", family) for family in CONFIGS] + [("timm", name) for name in TIMM]
SMALL = {"patch_size": 16, "hidden_size": 32, "num_layers": 3, "num_heads": 4, "intermediate_size": 48, "grid": 4}


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


# as google/siglip-base-patch16-224 and openai/clip-vit-base-patch32 have them: what is left out is the base size
TOWERS = {
    "siglip": ({"model_type": "siglip", "vision_config": {"model_type": "siglip_vision_model"}}, 92_884_224),
    "clip": ({"model_type": "clip", "vision_config": {"patch_size": 32}}, 87_456_000),
}


@pytest.mark.parametrize("family", TOWERS)
def test_a_tower_of_images_has_the_base_sizes_where_its_config_says_none(family, tmp_path):
    said, count = TOWERS[family]
    write(tmp_path, "transformers", family)
    (tmp_path / "config.json").write_text(json.dumps(said))
    config = config_lib.default()
    config.model.update(backbone=family, weights=str(tmp_path))
    backbone = zoo.create(zoo.resolved(config), 2).backbone
    shapes = jax.eval_shape(backbone.init, jax.random.key(0), backbone.example())
    assert sum(leaf.size for leaf in jax.tree.leaves(shapes["params"])) == count
