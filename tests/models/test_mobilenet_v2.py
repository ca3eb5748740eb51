"""MobileNetV2 is Keras' MobileNetV2: live comparison at random weights and random BatchNorm statistics."""

import functools
import itertools

import jax
import keras
import numpy as np
import pytest
from conftest import QUICKLY, graded
from references import assert_close, assign, load

from tltrain.models import zoo
from tltrain.models.classifier import Classifier, run_frozen

ALPHAS = (0.35, 0.5, 0.75, 1.0, 1.3, 1.4)
SIZES = [(96, 96), (97, 97), (160, 160), (192, 192), (224, 224), (225, 225), (96, 160)]


def name_of(alpha):
    return "mobilenet_v2" if alpha == 1.0 else f"mobilenet_v2_{alpha}"


def keras_model(alpha, size, **options):
    model = keras.applications.MobileNetV2(weights=None, alpha=alpha, input_shape=(*size, 3), **options)
    assign(model)
    return model


# all sizes of one width, of the others the one that is odd
COMPARED = [(alpha, size) for alpha, size in itertools.product(ALPHAS, SIZES) if alpha == 1.0 or size == (97, 97)]


@pytest.mark.parametrize(("alpha", "size"), graded(COMPARED, [(0.35, (97, 97))]), ids=str)
def test_middle_block_pooled_features_and_logits_equal_keras(alpha, size, tmp_path):
    reference = keras_model(alpha, size, classifier_activation=None)
    reference.save(tmp_path / "top.h5")
    wanted = [reference.get_layer("block_8_add"), reference.layers[-2], reference.layers[-1]]
    reference = keras.Model(reference.input, [layer.output for layer in wanted])
    backbone = zoo.BACKBONES[name_of(alpha)]()
    loaded = load(tmp_path / "top.h5", backbone).variables
    model = Classifier(backbone, 1000, 0.0)
    variables = {name: {"backbone": tree} for name, tree in loaded.items()}
    variables["params"]["head"] = dict(zip(("kernel", "bias"), wanted[-1].get_weights(), strict=True))
    middle = backbone.stages.index("block_8") + 1

    @functools.partial(jax.jit, compiler_options=QUICKLY)
    def run(images):
        block = model.apply(variables, images, 0, middle, method="run")
        pooled = model.apply(variables, block, middle, len(backbone.stages), method="run").mean((1, 2))
        return block, pooled, model.apply(variables, pooled, len(backbone.stages))

    images = np.random.default_rng(1).integers(0, 256, (2, *size, 3)).astype(np.uint8)
    scaled = keras.applications.mobilenet_v2.preprocess_input(images.astype(np.float32))
    for ours, theirs in zip(run(images), reference(scaled, training=False), strict=True):
        assert_close(ours, theirs)


@pytest.mark.parametrize("cut", graded([7, 14, 19], [14]))
def test_frozen_prefix_in_chunks_equals_the_plain_forward_pass(cut):
    model = Classifier(zoo.BACKBONES["mobilenet_v2_0.35"](), 3, 0.0)
    variables = zoo.init(model, 0, None)
    images = np.random.default_rng(0).integers(0, 256, (12, 96, 96, 3)).astype(np.uint8)
    chunked = jax.jit(lambda x: run_frozen(model, variables, x, 0, cut))(images)
    plain = jax.jit(lambda x: model.apply(variables, x, 0, cut, method="run"))(images)
    assert_close(chunked, plain.mean((1, 2)) if cut == 19 else plain)


def test_stage_and_layer_names_are_those_of_keras():
    backbone = zoo.BACKBONES["mobilenet_v2"]()
    reference = keras.applications.MobileNetV2(weights=None, include_top=False)
    weighted = [layer.name for layer in reference.layers if layer.weights]
    assert [layer.name for layer in backbone.keras_layers()] == weighted
    blocks = [f"block_{i}" for i in range(1, 17)]
    assert backbone.stages == ("Conv1", "expanded_conv", *blocks, "Conv_1")
