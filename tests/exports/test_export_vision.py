"""Transformers of images leave as Keras layers that answer what the run does, for images of any size."""

import subprocess
import sys

import jax
import numpy as np
import pytest
from conftest import graded
from small_vision import array
from test_export import SIZES, config_of, noise, probabilities_of
from test_main import ENVIRONMENT

from tltrain.errors import WeightsError
from tltrain.experiment import finished
from tltrain.exports import keras_model
from tltrain.exports.formats import FORMATS
from tltrain.models import zoo
from tltrain.training.tasks import choose

SMALL = {"hidden_size": 32, "num_layers": 2, "num_heads": 4, "intermediate_size": 48, "grid": 4}
# a backbone made small, the pooling of the run and the size of its images, to which positions are resized
CASES = {
    "vit": ("vit_base_16", {}, "mean", (96, 48)),
    "deit3": ("deit3_small_16", {}, "cls", (64, 64)),
    "dinov2": ("dinov2_registers_small", {"registers": 2, "gated": True}, "cls", (42, 70)),
    "clip": ("clip_base_16", {}, "cls", (48, 96)),
    "siglip": ("siglip_base_16", {}, "map", (96, 64)),
}


def untrained(folder, case):
    """What a finished run would be with variables under which attention is far from even."""
    name, special, pooling, size = CASES[case]
    changes = {"model.backbone": name, "model.pool": pooling, "data.image_size": size}
    config = zoo.resolved(config_of(folder, **changes))
    task = choose.of_finished(config, "classification", ("dark", "light", "other"))
    model = zoo.create(config, task.num_outputs)
    model = model.clone(backbone=model.backbone.clone(**SMALL, **special))
    variables = jax.tree_util.tree_map_with_path(
        lambda path, leaf: array(".".join(part.key for part in path).replace("kernel", "weight"), leaf.shape),
        zoo.shapes(model),
    )
    return finished.Finished(folder, config, task, model, variables, "probe", 5, {}, {"splits": {}})


# all but StableHLO are made from what is built for Keras
GRID = [(name, case) for name in FORMATS for case in CASES if case == "dinov2" or name in ("keras", "stablehlo")]
IMAGES = [noise(2, *size, 3) // factor for factor, size in enumerate(SIZES, 1)]  # the later the darker


@pytest.mark.parametrize(("name", "case"), graded(GRID, [("keras", "dinov2")]))
def test_an_export_gives_the_probabilities_of_the_run_for_batches_of_any_size(name, case, tmp_path):
    run = untrained(tmp_path, case)
    FORMATS[name].write(run, tmp_path / FORMATS[name].file)
    function = FORMATS[name].load(tmp_path / FORMATS[name].file)
    found = np.concatenate([function({"images": images}) for images in IMAGES])
    expected = np.concatenate([probabilities_of(run, images) for images in IMAGES])
    assert np.std(expected, 0).max() > 0.01
    np.testing.assert_allclose(found, expected, atol=5e-6)


@pytest.mark.parametrize("case", ["dinov2", "siglip"])
def test_layers_are_called_as_on_the_hub_and_all_trainable(case, tmp_path):
    run = untrained(tmp_path, case)
    model = keras_model.build(run)
    params = run.variables["params"]["backbone"]
    names = {run.model.backbone.hub_name(stage, layer) for stage, layers in params.items() for layer in layers}
    layers = {layer.name: layer for layer in model.layers if layer.weights}
    assert layers.keys() == {name.replace(".", "_") for name in names} | {"predictions"}
    assert len(model.trainable_weights) == len(model.weights) == len(jax.tree.leaves(run.variables["params"]))
    assert all(type(layer).__module__.startswith("keras.") for layer in model.layers)


def test_weights_that_do_not_fit_are_named(tmp_path):
    run = untrained(tmp_path, "vit")
    other = run.model.clone(backbone=run.model.backbone.clone(registers=1))
    message = "'vit_base_16' is not the network that Keras builds; at embeddings_register_tokens"
    with pytest.raises(WeightsError, match=message):
        keras_model.build(run._replace(model=other))


WITHOUT_TLTRAIN = """
import sys
sys.modules["tltrain"] = None
import keras, numpy as np
model = keras.saving.load_model(sys.argv[1])
images = np.load(sys.argv[2])
np.save(sys.argv[3], keras.ops.convert_to_numpy(model(images, training=False)))
factors = model.get_layer("encoder_layer_0_layer_scale1")
before = factors.get_weights()[0]
model.compile(keras.optimizers.SGD(1e-2), "sparse_categorical_crossentropy", run_eagerly=True)
model.fit(images, np.arange(len(images)) % 2, verbose=0)
assert np.abs(factors.get_weights()[0] - before).max() > 0
"""


@pytest.mark.full
@pytest.mark.parametrize("backend", ["tensorflow", "jax"])
def test_a_keras_file_opens_without_tltrain_and_trains_on(backend, tmp_path):
    run = untrained(tmp_path, "dinov2")
    FORMATS["keras"].write(run, tmp_path / "model.keras")
    np.save(tmp_path / "images.npy", IMAGES[0])
    line = [sys.executable, "-c", WITHOUT_TLTRAIN, "model.keras", "images.npy", "found.npy"]
    environment = ENVIRONMENT | {"KERAS_BACKEND": backend}
    done = subprocess.run(line, env=environment, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    np.testing.assert_allclose(np.load(tmp_path / "found.npy"), probabilities_of(run, IMAGES[0]), atol=5e-6)
