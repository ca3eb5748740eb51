"""Transformers of images are those of KerasHub at every stage, whatever the weights, layer scales and positions are."""

import functools
import re
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import keras
import keras_hub
import numpy as np
import pytest
from conftest import QUICKLY, graded
from flax.traverse_util import unflatten_dict
from references import assert_close
from small_vision import images

from tltrain.models import clip, dinov2, siglip, vit
from tltrain.models.transformer import Names
from tltrain.models.vision_transformer import VisionTransformer

jit = functools.partial(jax.jit, compiler_options=QUICKLY)
hub = keras_hub.models


class Pair(NamedTuple):
    """A network of ours, but for its grid, and the same of KerasHub for images of a shape `(H, W, 3)`."""

    ours: VisionTransformer
    theirs: Callable[[tuple[int, int, int]], Any]
    names: Names  # what KerasHub calls the layers
    stages: Callable[[Any], list[list[Any]]]  # its layers, by the stages of ours


def _names(patches, positions, attention, norms, dense):
    heads = (f"{attention}/{name}" for name in ("query", "key", "value", "attention_output"))
    return Names(patches, positions, *heads, *norms, *dense)


def _stages(first, layers, *others):
    return [first, *([layer] for layer in (*layers, *others))]


OURS = {"hidden_size": 32, "num_layers": 3, "num_heads": 4, "intermediate_size": 48}
THEIRS = {"hidden_dim": 32, "num_layers": 3, "num_heads": 4}
LEARNED = ("patch_embedding", "position_embedding")
DENSE = ("mlp/fc1", "mlp/fc2")
DINOV2 = _names("patch_embeddings/projection", "position_embeddings", "attention/attention", ("norm1", "norm2"), DENSE)


def _dinov2(names, patch_size, width, theirs, ours):
    return Pair(
        dinov2.DINOv2(**OURS, patch_size=patch_size, **ours),
        lambda shape: hub.DINOV2Backbone(
            patch_size,
            intermediate_dim=width,
            use_mask_token=False,
            image_shape=shape,
            position_embedding_shape=shape,
            **THEIRS,
            **theirs,
        ),
        names,
        lambda network: _stages([network.embeddings], network.encoder.layers, network.layernorm),
    )


PAIRS = {
    "vit": Pair(
        vit.ViT(**OURS, patch_size=8),
        lambda shape: hub.ViTBackbone(shape, 8, mlp_dim=48, **THEIRS),
        _names(*LEARNED, "mha", ("ln_1", "ln_2"), ("mlp/dense_1", "mlp/dense_2")),
        lambda network: _stages(network.layers[1:2], network.layers[2].encoder_layers, network.layers[2].layer_norm),
    ),
    "dinov2": _dinov2(DINOV2, 14, 48, {}, {}),
    "dinov2_registers": _dinov2(
        *(DINOV2, 4, 48),
        {"num_register_tokens": 2, "antialias_in_interpolation": True},
        {"registers": 2, "antialias": True},
    ),
    "dinov2_gated": _dinov2(  # of the width KerasHub takes two thirds
        *(DINOV2._replace(up="mlp/weights_in", down="mlp/weights_out"), 4, 72),
        {"use_swiglu_ffn": True},
        {"gated": True},
    ),
    "clip": Pair(
        clip.CLIP(**OURS, patch_size=16),
        lambda shape: hub.CLIPVisionEncoder(16, intermediate_dim=48, image_shape=shape, **THEIRS),
        _names(*LEARNED, "attention", ("layer_norm_1", "layer_norm_2"), ("dense_1", "dense_2")),
        lambda network: _stages(
            [network.embedding, network.pre_layer_norm], network.encoder_layers, network.layer_norm
        ),
    ),
    "siglip": Pair(
        siglip.SigLIP(**OURS, patch_size=4),
        lambda shape: hub.SigLIPVisionEncoder(4, intermediate_dim=48, image_shape=shape, **THEIRS),
        _names(*LEARNED, "self_attn", ("layer_norm1", "layer_norm2"), DENSE),
        lambda network: _stages([network.embedding], network.encoder_layers, network.post_layer_norm, network.head),
    ),
}
# what KerasHub calls layers that are in no `Names`, and arrays
LAYERS = {"class_token": "cls_token", "attention/attention_output": "attention.out_proj"}
LEAVES = {
    "kernel": "kernel",
    "bias": "bias",
    "gamma": "scale",
    "beta": "bias",
    "lambda1": "gamma",
    "embeddings": "value",
}
FOLLOWING = ("position_ids", "interpolated_position_embeddings")  # from the size, from positions


def network_of(pair, grid):
    """That of KerasHub for images of `grid` patches a side; each weight is random.

    Tokens are small, for an epsilon to show beside their variance.
    """
    side = grid * pair.ours.patch_size
    network = pair.theirs((side, side, 3))
    rng = np.random.default_rng(grid)
    (embeddings, *_), *_ = pair.stages(network)
    small = {weight.path for weight in embeddings.weights}
    for weight in network.weights:
        if weight.name == "position_ids":  # in CLIP all are 0 until a file is read: each token has the first position
            weight.assign(np.arange(weight.shape[1])[None])
        else:
            value = rng.normal(weight.name in ("gamma", "lambda1"), 0.2, weight.shape)
            weight.assign(value * (0.02 if weight.path in small else 1))
    if isinstance(network, hub.DINOV2Backbone):
        embeddings.interpolated_position_embeddings.assign(embeddings.position_embeddings)
    return network


def copied(pair, network, grid):
    """Our backbone, and its variables: the weights of `network`, each of which has its place there."""
    backbone = pair.ours.clone(grid=grid)
    called = LAYERS | dict(zip(pair.names, backbone.names, strict=True))
    arrays = {}
    for stage, parts in zip(backbone.stages, pair.stages(network), strict=True):
        norm = backbone.norm_of_embeddings if stage == "embeddings" else backbone.last_norm
        for part in parts:
            for weight in part.weights:
                layer, _, leaf = weight.path.partition(f"{part.name}/")[2].rpartition("/")
                if leaf in FOLLOWING:
                    continue
                if leaf not in LEAVES:  # learned as it is; without a name Keras numbers it
                    layer, leaf = re.sub(r"^variable.*", "probe", leaf), "embeddings"
                layer = called.get(layer, layer.replace("/", ".")) or norm
                arrays[stage, layer, LEAVES[leaf]] = np.asarray(weight)
    shapes = jax.eval_shape(backbone.init, jax.random.key(0), backbone.example())["params"]
    params = jax.tree.map(lambda leaf, array: array.reshape(leaf.shape), shapes, unflatten_dict(arrays))
    return backbone, {"params": params}


def assert_same(backbone, variables, stages, x):
    """After every stage, and pooled; gives what the `stages` of KerasHub end in.

    What is pooled comes from `backbone` as it is, of whose last layer all tokens are compared.
    """
    whole = backbone if backbone.pooling == "map" else backbone.clone(pooling="mean")

    @jit
    def run(variables, x):
        found = [x]
        for i in range(len(whole.stages)):
            found.append(whole.apply(variables, found[-1], start=i, stop=i + 1))
        return found[1:], backbone.pool(backbone.apply(variables, x))

    found, pooled = run(variables, x)
    for state, layers in zip(found, stages, strict=True):
        for layer in layers:
            x = layer(x)
        assert_close(state if x.ndim == 3 else state[:, 0], x, 1e-5)
    assert_close(pooled, x[:, 0] if x.ndim == 3 else x, 1e-5)
    return x


# KerasHub resizes positions in DINOv2 alone, see below: images of another size are those of another network
@pytest.mark.parametrize("grid", graded([3, 5], [3]))
@pytest.mark.parametrize("name", PAIRS)
def test_every_stage_and_pooled_features_are_those_of_keras_hub(name, grid):
    pair = PAIRS[name]
    network = network_of(pair, grid)
    x = images((grid * pair.ours.patch_size,) * 2)
    end = assert_same(*copied(pair, network, grid), pair.stages(network), x)
    assert_close(end, network(keras.tree.map_structure(lambda _: x, network.input)), 1e-5)


# without antialias KerasHub has Keys' cubic of -0.5, as with it; transformers have that of -0.75, and so have we
def test_positions_of_another_grid_are_those_of_keras_hub():
    pair = PAIRS["dinov2_registers"]
    network = network_of(pair, 5)
    size, kept = (28, 12), {}  # 7 by 3 patches, which the layers of KerasHub take and its network does not
    network.embeddings.save_own_variables(kept)
    embeddings = type(network.embeddings).from_config(network.embeddings.get_config() | {"image_shape": size})
    embeddings.build((None, *size, 3))
    embeddings.load_own_variables(kept)
    embeddings.patch_embeddings.set_weights(network.embeddings.patch_embeddings.get_weights())
    _, *others = pair.stages(network)
    assert_same(*copied(pair, network, 5), [[embeddings], *others], images(size))
