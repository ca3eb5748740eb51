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
from tltrain.errors import TltrainError
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


HALVES = {"image_mean": [0.5] * 3, "image_std": [0.5] * 3}
PATCHES = r"data.image_size = \(70, 75\), allowed with dinov2: multiples of 14 pixels, the side of a patch"
# a folder of a family, what is changed in its preprocessor_config.json, a file that is not there, what a config says
REFUSED = {
    "pixels of another network": (
        ("dinov2", HALVES, None, {"model.backbone": "dinov2_small"}),
        r"preprocessor_config.json says images of \(70, 70\) pixels with mean \(0.5, .* and deviation \(0.5, .*, "
        r"dinov2_small was trained on \(224, 224\) with mean and deviation \(\(0.485, .*; take the backbone these",
    ),
    "unknown pixels": (
        ("vit", {"image_mean": [0.1, 0.2, 0.3]}, None, {}),
        r"says a mean of \(0.1, 0.2, 0.3\) .*; known: tf",
    ),
    "no pixels": (
        ("vit", {}, "preprocessor_config.json", {}),
        "no preprocessor_config.json beside the weights; .*scaling",
    ),
    "no sizes": (
        ("vit", {}, "config.json", {}),
        "no config.json beside the weights; .*, or name a backbone with sizes",
    ),
    "another family": (
        ("dinov2", {}, None, {"model.backbone": "vit"}),
        "config.json is of a 'dinov2'; allowed with this model.backbone: vit; take another",
    ),
    "half a patch": (("dinov2", {}, None, {"data.image_size": (70, 75)}), PATCHES),
    "pooling of another family": (
        ("vit", {}, None, {"model.pool": "map"}),
        "model.pool = 'map', allowed with vit: 'cls' or 'mean'",
    ),
    "pooling of a map": (
        ("vit", {}, None, {"model.backbone": "resnet50", "model.weights": "imagenet", "model.pool": "cls"}),
        "model.pool = 'cls', allowed with resnet50: 'auto'",
    ),
    "sizes of no weights": (
        ("vit", {}, None, {"model.weights": "random"}),
        "model.weights = 'random', allowed with vit: a path",
    ),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_a_network_of_images_cannot_be_is_one_line(case, tmp_path):
    (name, changes, absent, settings), message = REFUSED[case]
    write(tmp_path, "transformers", name, **changes)
    if absent:
        (tmp_path / absent).unlink()
    config = config_lib.default()
    config.update_from_flattened_dict({"model.backbone": name, "model.weights": str(tmp_path)} | settings)
    with pytest.raises(TltrainError, match=message) as caught:
        zoo.resolved(config)
    assert str(caught.value).isprintable()
