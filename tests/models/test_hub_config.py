"""What the small files beside weights say: what cannot be is one line, and what is left out has its default."""

import json

import jax
import numpy as np
import pytest
from small_vision import CONFIGS, images
from test_vision import opened, write

from tltrain import config as config_lib
from tltrain.errors import TltrainError, WeightsError
from tltrain.models import zoo
from tltrain.weights import reader

HALVES = {"image_mean": [0.5] * 3, "image_std": [0.5] * 3}
PATCHES = (
    r"data.image_size = \(70, 75\), allowed with dinov2: \(70, 70\), or multiples of 14 pixels, the side of a patch"
)
# a folder of a family, what is changed in its preprocessor_config.json, a file that is not there, what a config says
REFUSED = {
    "pixels of another network": (
        ("dinov2", HALVES, None, {"model.backbone": "dinov2_small"}),
        r"preprocessor_config.json says images of \(70, 70\) pixels with mean \(0.5, .* and deviation \(0.5, .*, "
        r"DINOv2 of this name was trained on \(224, 224\) with mean and deviation \(\(0.485, .*; take the model",
    ),
    "unknown pixels": (
        ("vit", {"image_mean": [0.1, 0.2, 0.3]}, None, {}),
        r"says a mean of \(0.1, 0.2, 0.3\) .*; known: tf",
    ),
    "no normalisation": (
        ("vit", {"do_normalize": False}, None, {}),
        r"says a mean of \(0.0, 0.0, 0.0\) and a deviation of \(1.0, 1.0, 1.0\), by which no known network",
    ),
    "pixels twice as large": (("vit", {"rescale_factor": 2 / 255}, None, {}), r"says a mean of \(0.25, 0.25, 0.25\)"),
    "sides that are no numbers": (
        ("vit", {"size": ["64", 64]}, None, {}),
        r"cannot read .*preprocessor_config.json; size = \['64', 64\], allowed: an integer from 1 to 4096; fetch",
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
    "sizes of Keras": (
        ("vit", {}, None, {"model.weights": "imagenet"}),
        "model.weights = 'imagenet', allowed with vit: a path",
    ),
    "weights of Keras": (
        ("vit", {}, None, {"model.backbone": "vit_tiny_16", "model.weights": "imagenet"}),
        "model.weights = 'imagenet', allowed with vit_tiny_16: 'pretrained', which are those of the Hub",
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
        reader.path_of(config.model.weights, zoo.create(zoo.resolved(config), 2).backbone)
    assert str(caught.value).isprintable()


# a family, what is changed in its config.json
NO_SIZES = {
    "num_hidden_layers = -1": ("vit", {"num_hidden_layers": -1}),
    "num_hidden_layers = 1000000": ("clip", {"vision_config": {"num_hidden_layers": 1_000_000}}),
    "hidden_size = '32'": ("siglip", {"hidden_size": "32"}),
    "num_attention_heads = 4.0": ("vit", {"num_attention_heads": 4.0}),
    "patch_size = True": ("vit", {"patch_size": True}),
    "image_size = -64": ("vit", {"image_size": -64}),
    "layer_norm_eps = nan": ("vit", {"layer_norm_eps": float("nan")}),
    "num_register_tokens = '2'": ("dinov2_registers", {"num_register_tokens": "2"}),
    "mlp_ratio = None": ("dinov2", {"mlp_ratio": None}),
}


@pytest.mark.parametrize("message", NO_SIZES)
def test_what_is_no_size_in_a_config_is_named(message, tmp_path):
    family, changes = NO_SIZES[message]
    (write(tmp_path, "transformers", family) / "config.json").write_text(json.dumps(CONFIGS[family] | changes))
    with pytest.raises(WeightsError, match=rf"cannot read .*config.json; {message}, allowed: an? .*; fetch it again"):
        opened(tmp_path, family.partition("_")[0])


def test_a_part_of_a_patch_has_no_position(tmp_path):
    """As in google/siglip-so400m-patch14-384, whose images have 27.4 patches a side."""
    said = json.dumps(CONFIGS["siglip"] | {"image_size": 70})
    (write(tmp_path, "transformers", "siglip", size=70) / "config.json").write_text(said)
    backbone, variables = opened(tmp_path, "siglip")
    assert (backbone.grid, backbone.input_size) == (4, (70, 70))
    x = images((70, 70))
    found, whole = (backbone.apply(variables, x) for x in (x, x[:, :64, :64]))
    np.testing.assert_array_equal(found, whole)


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
