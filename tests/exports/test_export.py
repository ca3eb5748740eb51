"""An export is the run: each format is loaded again and compared, on images of many sizes."""

import functools
import io
import itertools
import json
import subprocess
import sys
import zipfile

import jax
import numpy as np
import pytest
from conftest import graded
from PIL import Image
from references import variables_of
from test_main import ENVIRONMENT

from tltrain.config import default
from tltrain.data.kinds.image_decoding import load_image
from tltrain.data.kinds.image_resizing import resize
from tltrain.errors import ConfigError, TerminatedError, WeightsError
from tltrain.experiment import finished, train
from tltrain.exports import keras_model, proven
from tltrain.exports.formats import FORMATS
from tltrain.models import convolution, zoo
from tltrain.models.classifier import run_frozen
from tltrain.models.image_backbone import scaled
from tltrain.runtime.process import Process
from tltrain.training import steps
from tltrain.training.tasks import choose
from tltrain.weights import keras_weights

SIZES = [(40, 48), (32, 32), (97, 61), (200, 333)]


def noise(*shape):
    return np.random.default_rng(len(shape)).integers(0, 256, shape).astype(np.uint8)


def encoded(image):
    file = io.BytesIO()
    Image.fromarray(image).save(file, "PNG")
    return file.getvalue()


def config_of(source, **changes):
    config = default()
    config.data.source = f"folder:{source}"
    config.data.splits = ("train[:50%]", "train[50%:]")
    config.data.image_size = (32, 32)
    config.model.backbone = "mobilenet_v2_0.35"
    config.model.weights = "random"
    config.batch_size = 4
    config.update_from_flattened_dict(changes)
    return config


def untrained(source, num_classes, **changes):
    """What a finished run of `config_of` would be with its initial variables."""
    config = config_of(source, **changes)
    task = choose.of_finished(config, "classification", ("dark", "light", "other")[:num_classes])
    model = zoo.create(config, task.num_outputs)
    return finished.Finished(source, config, task, model, zoo.init(model, 0, None), "probe", 19, {}, {"splits": {}})


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A finished run on photos of several sizes, a grey one and one with transparency among them."""
    folder = tmp_path_factory.mktemp("run")
    for label, factor in (("light", 1), ("dark", 3)):
        (folder / "photos" / label).mkdir(parents=True)
        shapes = [(40, 48, 3), (40, 48, 3), (97, 61, 3), (200, 130, 4), (40, 48), (40, 48)]
        for i, shape in enumerate(shapes):
            Image.fromarray(noise(*shape) // factor).save(folder / "photos" / label / f"{label}_{i}.png")
    features = {"features.dir": str(folder / "features"), "log.tensorboard": False}
    train.run(config_of(folder / "photos", **features), folder / "run")
    return finished.load(folder / "run")


@functools.cache
def evaluation(model, task):
    """`steps.eval_step` after all stages."""
    num_stages = len(model.backbone.stages)

    @jax.jit
    def run(variables, batch):
        features = run_frozen(model, variables, batch["inputs"], 0, num_stages)
        return steps.eval_step(variables, batch | {"inputs": features}, model=model, task=task)

    return run


def probabilities_of(run, images):
    """By evaluation, float64 `[B, num_classes]`."""
    pixels = [load_image(encoded(image), run.config.data.image_size, run.config.data.resize) for image in images]
    batch = {"inputs": np.stack(pixels), "label": np.zeros(len(pixels), int), "mask": np.ones(len(pixels), bool)}
    logits = np.asarray(evaluation(run.model, run.task)(run.variables, batch)[1], np.float64)
    exponents = np.exp(np.hstack([np.zeros_like(logits), logits]) if logits.shape[1] == 1 else logits)
    return exponents / exponents.sum(1, keepdims=True)


def class_names_in(name, path):
    if name == "keras":
        return json.loads(zipfile.ZipFile(path).read("class_names.json"))
    if name == "tflite":
        return zipfile.ZipFile(path).read("labels.txt").decode().split()
    if name == "onnx":
        import onnxruntime

        return json.loads(onnxruntime.InferenceSession(path).get_modelmeta().custom_metadata_map["class_names"])
    if name == "savedmodel":
        import tensorflow as tf

        return [text.decode() for text in tf.saved_model.load(str(path)).class_names()["class_names"].numpy()]
    return json.loads((path.parent / "class_names.json").read_text())


@pytest.mark.optimized
@pytest.mark.parametrize("name", graded(FORMATS, ["keras", "stablehlo"]))
def test_an_export_gives_the_probabilities_of_the_run_for_batches_of_any_size(name, run, tmp_path, capfd):
    proven.export(run, [name], tmp_path, Process())
    path = tmp_path / FORMATS[name].file
    assert sorted(p.name for p in tmp_path.iterdir()) == sorted(["class_names.json", path.name])
    function = FORMATS[name].load(path)
    found = [function({"images": noise(2, *size, 3)}) for size in SIZES]
    expected = [probabilities_of(run, noise(2, *size, 3)) for size in SIZES]
    assert np.std(np.concatenate(expected)[:, 0]) > 0.01
    np.testing.assert_allclose(np.concatenate(found), np.concatenate(expected), atol=2e-5)
    assert class_names_in(name, path) == ["dark", "light"]
    printed = capfd.readouterr()
    assert f"{name}: {path}" in printed.out and "the same answer for 100.0 %" in printed.out and not printed.err


WITHOUT_TLTRAIN = """
import sys
sys.modules["tltrain"] = None
import keras, numpy as np
model = keras.saving.load_model(sys.argv[1])
images = np.load(sys.argv[2])
np.save(sys.argv[3], model(images, training=False))
before = model.get_layer("block_13_expand").get_weights()[0]
assert all(layer.trainable for layer in model.layers) and "block_16_project" in [l.name for l in model.layers]
model.compile(keras.optimizers.SGD(1e-2), "sparse_categorical_crossentropy", run_eagerly=True)
model.fit(images, np.arange(len(images)) % 2, verbose=0)
assert np.abs(model.get_layer("block_13_expand").get_weights()[0] - before).max() > 0
"""


def test_a_keras_file_opens_without_tltrain_and_trains_on(run, tmp_path):
    FORMATS["keras"].write(run, tmp_path / "model.keras")
    np.save(tmp_path / "images.npy", noise(2, 50, 40, 3))
    line = [sys.executable, "-c", WITHOUT_TLTRAIN, "model.keras", "images.npy", "found.npy"]
    done = subprocess.run(line, env=ENVIRONMENT, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    expected = probabilities_of(run, noise(2, 50, 40, 3))
    np.testing.assert_allclose(np.load(tmp_path / "found.npy"), expected, atol=2e-5)


def test_the_keras_model_follows_the_config(images):
    changes = {"data.resize": "crop", "data.pixels": "unit", "model.batch_norm_momentum": 0.5}
    run = untrained(images, 3, **changes)
    model = keras_model.build(run)
    found = np.concatenate([model(noise(2, *size, 3)).numpy() for size in SIZES])
    expected = np.concatenate([probabilities_of(run, noise(2, *size, 3)) for size in SIZES])
    assert found.shape == (2 * len(SIZES), 3) and np.std(expected[:, 0]) > 0.01
    np.testing.assert_allclose(found, expected, atol=2e-5)
    assert {layer.momentum for layer in model.layers if hasattr(layer, "momentum")} == {0.5}


@pytest.mark.parametrize("pixels", ["tf", "tf_128", "caffe", "torch", "unit"])
def test_every_pixel_scaling_can_be_stored_in_a_keras_file(pixels, tmp_path):
    keras = keras_model.import_keras()
    images = keras.Input((4, 5, 3))
    keras.Model(images, scaled(images, pixels)).save(tmp_path / "scaled.keras")
    values = noise(2, 4, 5, 3).astype(np.float32)
    found = keras.saving.load_model(tmp_path / "scaled.keras")(values)
    np.testing.assert_allclose(found, scaled(values, pixels), rtol=1e-6, atol=1e-6)


def test_the_weights_of_the_keras_model_read_back_are_those_of_the_run(run, tmp_path):
    keras_model.build(run).save_weights(tmp_path / "model.weights.h5")
    FORMATS["keras"].write(run, tmp_path / "model.keras")
    backbone = {name: tree["backbone"] for name, tree in run.variables.items()}
    for name in ("model.weights.h5", "model.keras"):
        loaded = keras_weights.load(tmp_path / name, run.model.backbone.keras_layers(), backbone).variables
        jax.tree.map(np.testing.assert_array_equal, loaded, backbone)


@pytest.mark.full
def test_a_bfloat16_run_is_exported_in_float32(images, tmp_path):
    run = untrained(images, 2, **{"model.dtype": "bfloat16"})
    proven.export(run, ["stablehlo"], tmp_path, Process())
    found = FORMATS["stablehlo"].load(tmp_path / "model.stablehlo")({"images": noise(2, 40, 48, 3)})
    np.testing.assert_allclose(found, probabilities_of(untrained(images, 2), noise(2, 40, 48, 3)), atol=2e-5)


def test_a_stablehlo_program_runs_on_every_platform_and_is_made_of_convolutions(images, tmp_path):
    run = untrained(images, 2)
    FORMATS["stablehlo"].write(run, tmp_path / "model.stablehlo")
    exported = jax.export.deserialize((tmp_path / "model.stablehlo").read_bytes())
    assert exported.platforms == ("cpu", "cuda", "tpu")
    kernels = [layer for layer in run.model.backbone.keras_layers() if "Conv2D" in layer.class_name]
    with convolution.portable():
        program = str(jax.make_jaxpr(run.model.apply)(run.variables, noise(2, 32, 32, 3)))
    assert program.count("conv_general_dilated[") == len(kernels)
    assert "conv_general_dilated[" not in str(jax.make_jaxpr(run.model.apply)(run.variables, noise(2, 32, 32, 3)))


RESIZES = [*itertools.product([(32, 32), (224, 224), (75, 75)], ["stretch", "crop"]), ((96, 160), "stretch")]


@pytest.mark.optimized
@pytest.mark.parametrize(("size", "mode"), RESIZES, ids=str)
def test_the_resize_is_that_of_training_to_the_bit(size, mode):
    for shape in [(375, 500), (500, 359), (301, 200), (96, 96), (40, 48), (7, 50), (1, 1), (900, 640)]:
        image = noise(*shape, 3)
        found = resize(np, image[None].astype(np.float32), size, mode)[0]
        np.testing.assert_array_equal(found, load_image(encoded(image), size, mode))


def test_a_crop_to_no_square_differs_by_rare_grey_levels():
    image = noise(300, 331, 3)
    found = resize(np, image[None].astype(np.float32), (96, 160), "crop")[0]
    difference = np.abs(found - load_image(encoded(image), (96, 160), "crop"))
    assert difference.max() <= 1 and (difference > 0).mean() < 0.01


def altered(run):
    """One BatchNorm bias of many is another."""
    norm = run.variables["params"]["backbone"]["block_16"]["project_BN"]
    changed = norm | {"bias": np.asarray(norm["bias"]) + np.eye(1, len(norm["bias"]))[0].astype(np.float32)}
    params = run.variables["params"]
    stage = params["backbone"]["block_16"] | {"project_BN": changed}
    params = params | {"backbone": params["backbone"] | {"block_16": stage}}
    return run._replace(variables=run.variables | {"params": params})


def test_an_export_with_an_altered_weight_is_refused_and_removed(images, tmp_path, monkeypatch):
    right = FORMATS["stablehlo"]
    wrong = right._replace(write=lambda run, path: right.write(altered(run), path))
    monkeypatch.setitem(FORMATS, "stablehlo", wrong)
    with pytest.raises(WeightsError, match="the stablehlo export is not the run; answers differ by"):
        proven.export(untrained(images, 2), ["stablehlo"], tmp_path, Process())
    assert not list(tmp_path.iterdir())


def test_a_stopped_export_leaves_nothing(images, tmp_path):
    with pytest.raises(TerminatedError):
        proven.export(untrained(images, 2), ["stablehlo"], tmp_path, Process(asked=lambda: True))
    assert not list(tmp_path.iterdir())


EXPORTED = ["vgg16", "inception_v3", "inception_resnet_v2", "xception", "nasnet_mobile", "efficientnet_b0"]
EXPORTED += ["efficientnet_v2_s", "mobilenet_v3_small", "convnext_tiny"]


@pytest.mark.full
@pytest.mark.parametrize("name", EXPORTED)
def test_every_family_is_exported_as_its_network_of_keras(name, tmp_path):
    config = default()
    config.update_from_flattened_dict({"model.backbone": name, "model.weights": "random", "batch_size": 2})
    config = zoo.resolved(config)
    config.data.image_size = (zoo.BACKBONES[name]().min_size,) * 2
    model = zoo.create(config, 3)
    variables = {kind: {"backbone": tree} for kind, tree in variables_of(model.backbone).items()}
    variables["params"]["head"] = zoo.init(model, 0, None)["params"]["head"]
    pixels = noise(1, *config.data.image_size, 3)
    task = choose.of_finished(config, "classification", ("a", "b", "c"))
    batch = {"inputs": pixels, "label": np.zeros(1, int), "mask": np.ones(1, bool)}
    logits = evaluation(model, task)(variables, batch)[1]
    variables["params"]["head"]["kernel"] /= np.abs(logits).max()  # else one class has all the probability
    run = finished.Finished(tmp_path, config, task, model, variables, "probe", 0, {}, {"splits": {}})
    theirs = np.asarray(keras_model.build(run)(pixels, training=False))
    assert 0.02 < theirs.min() < theirs.max() < 0.98
    np.testing.assert_allclose(theirs, probabilities_of(run, pixels), atol=1e-4)


def test_a_network_that_keras_does_not_build_is_named(tiny, tmp_path):
    model = zoo.create(tiny, 1)
    task = choose.of_finished(tiny, "classification", ("a", "b"))
    run = finished.Finished(tmp_path, tiny, task, model, zoo.init(model, 0, None), "probe", 5, {}, {"splits": {}})
    with pytest.raises(WeightsError, match="'tiny' is not the network that Keras builds; at its name"):
        keras_model.build(run)


@pytest.mark.parametrize("name", ["onnxruntime", "tf2onnx", "keras"])
def test_a_missing_package_is_named_with_the_extra_that_has_it(name, monkeypatch, tmp_path):
    monkeypatch.setitem(sys.modules, name, None)
    with pytest.raises(ConfigError, match=rf"onnx needs {name}; not installed; pip install 'tltrain\[onnx\]'"):
        proven.check(["onnx"], tmp_path)


def test_nothing_is_overwritten(tmp_path):
    (tmp_path / "saved_model").mkdir()
    proven.check(["keras"], tmp_path)
    with pytest.raises(ConfigError, match="saved_model is there already"):
        proven.check(["keras", "savedmodel"], tmp_path)


def test_only_keras_files_are_made_by_another_backend(tmp_path, monkeypatch):
    monkeypatch.setenv("KERAS_BACKEND", "jax")
    proven.check(["keras", "stablehlo"], tmp_path)
    with pytest.raises(ConfigError, match="onnx is made by TensorFlow; KERAS_BACKEND is 'jax'"):
        proven.check(["onnx"], tmp_path)


def command(*arguments):
    line = [sys.executable, "-m", "tltrain.export", *map(str, arguments)]
    return subprocess.run(line, env=ENVIRONMENT, capture_output=True, text=True, check=False)


def test_an_unknown_format_gets_one_line(tmp_path):
    done = command("--workdir", tmp_path, "--format", "keras,h5")
    line = "tltrain: no format 'h5'; given by --format; choose from keras, savedmodel, stablehlo, onnx, tflite\n"
    assert (done.returncode, done.stderr) == (2, line)


@pytest.mark.shared_data
def test_a_run_of_cats_and_dogs_is_exported_to_keras(shared_data, tmp_path):
    config = default()
    config.data.update(data_dir=str(shared_data / "tfds"), splits=("train[:1%]", "train[99%:]"), image_size=(96, 96))
    config.model.weights = str(shared_data / "weights" / "mobilenet_v2_1.0_no_top_keras_layout.h5")
    config.features.dir = str(tmp_path / "features")
    config.probe.epochs = 1
    train.run(config, tmp_path / "run")
    done = command("--workdir", tmp_path / "run", "--format", "keras", "--output", tmp_path / "export")
    assert (done.returncode, done.stderr) == (0, ""), done.stderr
    assert "on 20 images of val the same answer for 100.0 %" in done.stdout
    assert (tmp_path / "export" / "model.keras").stat().st_size > 2**23
