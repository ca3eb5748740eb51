"""Weights of the Hub, by safetensors or KerasHub: read whole, or refused with every fault named; none is believed."""

import hashlib
import json
import os
import random
import resource
import time

import h5py
import keras_hub
import ml_dtypes
import numpy as np
import pytest
import small_bert
from references import shapes_of, variables_of
from safetensors.numpy import save
from small_bert import BERT, same, shapes, write
from test_weights import SMALL, write_small

from tltrain.errors import WeightsError
from tltrain.experiment import train
from tltrain.models import efficientnet, zoo
from tltrain.weights import reader
from tltrain.weights.variables import nest

WORDS = "embeddings.word_embeddings.weight"
QUERY = "encoder.layer.0.attention.self.query.weight"
NORM = "encoder.layer.1.output.LayerNorm"


def load(path, pooler=False, sha256=""):
    return reader.load(path, BERT, shapes(pooler), sha256)


def as_of_old(arrays):
    """In the names that TensorFlow's checkpoints were converted to at first, with the heads of pretraining."""
    parts = {"LayerNorm.weight": "LayerNorm.gamma", "LayerNorm.bias": "LayerNorm.beta"}
    for new, old in parts.items():
        arrays = {name.replace(new, old): array for name, array in arrays.items()}
    arrays = {f"bert.{name}": array for name, array in arrays.items()}
    return arrays | {"cls.predictions.bias": np.zeros(50, "f4"), "cls.seq_relationship.weight": np.zeros((2, 8), "f4")}


LAYOUTS = {
    "new": (dict, ("pooler",)),
    "without_pooler": (lambda arrays: {k: v for k, v in arrays.items() if "pooler" not in k}, ()),
    "old": (as_of_old, ("cls", "pooler")),
}


@pytest.mark.parametrize("layout", LAYOUTS)
def test_every_layout_gives_every_array_and_says_what_is_not_used(layout, tmp_path):
    change, ignored = LAYOUTS[layout]
    loaded = load(write(tmp_path / "model.safetensors", change(small_bert.arrays())))
    assert same(loaded.variables, small_bert.variables())
    assert (loaded.num_arrays, loaded.ignored) == (37, ignored)


def test_the_pooler_is_filled_where_the_backbone_has_one(tmp_path):
    loaded = load(write(tmp_path / "model.safetensors"), pooler=True)
    assert same(loaded.variables, small_bert.variables(pooler=True)) and loaded.ignored == ()


STATISTICS = {"weight": "scale", "bias": "bias", "running_mean": "mean", "running_var": "var"}
LITE = {
    "conv_stem": ("stem/conv", (32, 3, 3, 3)),
    "bn1": ("stem/bn", (32,)),
    "blocks.0.0.conv_dw": ("block1a/dwconv", (32, 1, 3, 3)),
    "blocks.0.0.bn1": ("block1a/bn", (32,)),
    "blocks.0.0.conv_pw": ("block1a/project_conv", (16, 32, 1, 1)),
    "blocks.0.0.bn2": ("block1a/project_bn", (16,)),
    "conv_head": ("top/conv", (1280, 16, 1, 1)),
    "bn2": ("top/bn", (1280,)),
}


def test_a_file_of_timm_gives_statistics_of_batchnorm_and_nothing_is_said_of_its_counters(tmp_path):
    arrays, wanted, rng = {"classifier.bias": np.zeros(1000, "f4")}, {}, np.random.default_rng(0)
    for name, (path, shape) in LITE.items():
        for kind, leaf in STATISTICS.items() if len(shape) == 1 else {"weight": "kernel"}.items():
            value = arrays[f"{name}.{kind}"] = rng.uniform(0.5, 1.5, shape).astype("f4")
            collection = "batch_stats" if kind.startswith("running") else "params"
            wanted[(collection, *path.split("/"), leaf)] = value.transpose(2, 3, 1, 0) if len(shape) == 4 else value
        arrays |= {f"{name}.num_batches_tracked": np.array(7)} if len(shape) == 1 else {}
    backbone = efficientnet.EfficientNetLite(groups=efficientnet.GROUPS[:1])
    loaded = reader.load(write(tmp_path / "m.safetensors", arrays), backbone, shapes_of(backbone))
    assert same(loaded.variables, nest(wanted))
    assert (loaded.num_arrays, loaded.ignored) == (20, ("classifier",))
    for array, message in {"bn1.running_var": "missing bn1.running_var", "bn1.bias": "missing bn1.bias"}.items():
        rest = {name: value for name, value in arrays.items() if name != array}
        with pytest.raises(WeightsError, match=message):
            reader.load(write(tmp_path / "m.safetensors", rest), backbone, shapes_of(backbone))


@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "float64"])
def test_every_float_dtype_becomes_float32(dtype, tmp_path):
    arrays = small_bert.arrays()
    arrays[WORDS] = arrays[WORDS].astype(ml_dtypes.bfloat16 if dtype == "bfloat16" else dtype)
    found = load(write(tmp_path / "m.safetensors", arrays)).variables["params"]["embeddings"]["word_embeddings"]
    assert found["embedding"].dtype == np.float32
    np.testing.assert_array_equal(found["embedding"], arrays[WORDS].astype(np.float32))


def changed(**options):
    """Arrays by name in the place of those of a sound file; None takes one away."""

    def change(arrays):
        return {
            k: v for k, v in (arrays | {k.replace("__", "."): v for k, v in options.items()}).items() if v is not None
        }

    return change


def but(name, change):
    return lambda arrays: arrays | {name: change(arrays[name].copy())}


def with_value(value, at):
    def change(array):
        array.flat[at] = value
        return array

    return change


def three(arrays):
    arrays = arrays | {QUERY: np.zeros((8, 9), "f4"), "classifier.weight": np.zeros((2, 8), "f4")}
    del arrays[WORDS]
    return arrays


FAULTS = {
    "missing": (changed(**{QUERY: None}), f"missing {QUERY}"),
    "misshapen": (but(QUERY, lambda a: np.zeros((8, 9), "f4")), rf"misshapen {QUERY}: \(8, 9\), expected \(8, 8\)"),
    "not_transposed": (
        but("encoder.layer.0.output.dense.weight", lambda a: np.ascontiguousarray(a.T)),
        r"misshapen encoder.layer.0.output.dense.weight: \(12, 8\), expected \(8, 12\)",
    ),
    "integers": (but(QUERY, lambda a: a.astype("i4")), f"misshapen {QUERY}: dtype I32, expected F32 or F16 or BF16"),
    "unexpected": (changed(classifier__weight=np.zeros((2, 8), "f4")), "unexpected classifier.weight"),
    "another_layer": (
        changed(**{"encoder.layer.2.output.dense.bias": np.zeros(8, "f4")}),
        "unexpected encoder.layer.2",
    ),
    "both_names": (changed(**{f"{NORM}.gamma": np.ones(8, "f4")}), rf"ambiguous {NORM}.weight \(.*weight, .*gamma\)"),
    "half_a_prefix": (
        lambda arrays: {f"bert.{k}" if k != QUERY else k: v for k, v in arrays.items()},
        f"missing bert.{QUERY}, unexpected {QUERY}",
    ),
    "all_at_once": (three, f"missing {WORDS}, misshapen {QUERY}.*, unexpected classifier.weight; check model.backbone"),
    "another_network": (lambda _: {"conv1.weight": np.ones(3, "f4")}, "of another network; none of the 37 .*conv1"),
    "nothing": (lambda _: {}, "of another network; none of the 37 arrays .* but nothing"),
    "nan": (but(QUERY, with_value(np.nan, 5)), f"NaN or infinite {QUERY}"),
    "overflow": (but(QUERY, lambda a: np.full((8, 8), 1e300)), f"NaN or infinite {QUERY}"),
    "all_zero": (but(QUERY, lambda a: 0 * a), f"all-zero {QUERY}"),
    "large": (but(WORDS, with_value(1e6, 5)), rf"{WORDS} of 1e\+06 or more"),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_a_file_that_does_not_fit_is_refused_by_name(fault, tmp_path):
    change, message = FAULTS[fault]
    with pytest.raises(WeightsError, match=message) as caught:
        load(write(tmp_path / "model.safetensors", change(small_bert.arrays())))
    assert str(caught.value).isprintable()


def test_an_embedding_of_a_padding_word_may_be_zero(tmp_path):
    assert load(write(tmp_path / "m.safetensors", but(WORDS, with_value(0, slice(0, 8)))(small_bert.arrays())))


def of_header(header, data=b"", size=None):
    header = header if isinstance(header, bytes) else json.dumps(header).encode()
    return (len(header) if size is None else size).to_bytes(8, "little") + header + data


def array(shape, start, stop, dtype="F32"):
    return {"dtype": dtype, "shape": shape, "data_offsets": [start, stop]}


SOUND = save(small_bert.arrays())
HOSTILE = {
    "empty": (b"", "cannot read"),
    "text": (b"no safetensors at all", "cannot read|at most"),
    "pickle": (b"\x80\x04\x95\x10\0\0\0\0\0\0\0}\x94", "cannot read|at most"),
    "half": (SOUND[: len(SOUND) // 2], "file not fully covered"),
    "longer": (SOUND + bytes(8), "file not fully covered"),
    "no_json": (of_header(b"{no json"), "invalid JSON"),
    "deep_json": (of_header(b"{" * 100_000), "invalid JSON"),
    "header_beyond_the_file": (of_header({}, size=2**20), "invalid header length|header"),
    "header_of_exabytes": (of_header({}, size=2**62), "its header has 4611686018427387904 bytes, at most"),
    "header_of_megabytes": (
        of_header({f"{i:09}": array([0], 0, 0) for i in range(30_000)}),
        "its header has .* at most",
    ),
    "metadata_bomb": (of_header({"__metadata__": {"a": "x" * 2**21}}), "its header has .* bytes, at most"),
    "overlap": (of_header({"a": array([2], 0, 8), "b": array([2], 4, 12)}, bytes(12)), "invalid offset for tensor `b`"),
    "same_bytes": (of_header({"a": array([2], 0, 8), "b": array([2], 0, 8)}, bytes(8)), "invalid offset"),
    "gap": (of_header({"a": array([2], 0, 8), "b": array([2], 12, 20)}, bytes(20)), "invalid offset"),
    "terabytes": (of_header({WORDS: array([2**40], 0, 2**42)}, bytes(8)), "file not fully covered"),
    "terabytes_in_8_bytes": (of_header({WORDS: array([2**40], 0, 8)}, bytes(8)), "invalid shape, data type, or offset"),
    "overflowing_shape": (of_header({WORDS: array([2**62, 4], 0, 0)}), "overflow"),
    "negative_shape": (of_header({WORDS: array([-2], 0, 8)}, bytes(8)), "invalid JSON"),
    "many_axes": (of_header({WORDS: array([1] * 9999, 0, 4)}, bytes(4)), r"misshapen .*\(1, 1, .*\.\.\., expected"),
    "no_elements": (of_header({WORDS: array([0, 10**18], 0, 0)}), "misshapen embeddings.word_embeddings.weight"),
    "escape": (of_header({"\x1b[2J": array([1], 0, 4), WORDS: array([1], 4, 8)}, bytes(8)), r"unexpected \\x1b\[2J"),
    "unknown_dtype": (of_header({WORDS: array([50, 8], 0, 400, "F8_E5M2")}, bytes(400)), "dtype F8_E5M2"),
}


@pytest.mark.parametrize("attack", HOSTILE)
def test_a_hostile_file_is_refused_in_a_line_before_it_does_harm(attack, tmp_path):
    content, message = HOSTILE[attack]
    path = tmp_path / "model.safetensors"
    path.write_bytes(content)
    started, peak = time.process_time(), resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with pytest.raises(WeightsError, match=message) as caught:
        load(path)
    assert str(path) in str(caught.value) and str(caught.value).isprintable()
    assert time.process_time() - started < 1
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - peak < 100e3  # kB


def test_a_file_beyond_the_size_of_the_backbone_and_what_is_no_file_are_refused(tmp_path):
    os.truncate(write(tmp_path / "large.safetensors"), 10**9)
    (tmp_path / "folder").mkdir()
    for name, message in {"large.safetensors": "1000000000 bytes, at most", "folder": "no weight file"}.items():
        with pytest.raises(WeightsError, match=message):
            load(tmp_path / name)


def test_a_damaged_byte_is_refused_in_one_line_or_changes_a_value_and_never_with_a_pin(tmp_path):
    pin, rng = hashlib.sha256(SOUND).hexdigest(), random.Random(0)
    for at in rng.sample(range(len(SOUND)), 100) + rng.sample(range(2000), 100):
        damaged = bytearray(SOUND)
        damaged[at] ^= rng.randrange(1, 256)
        (tmp_path / "m.safetensors").write_bytes(damaged)
        try:
            assert load(tmp_path / "m.safetensors").num_arrays == 37
        except WeightsError as error:
            assert str(error).isprintable()
        with pytest.raises(WeightsError, match="is not the file that is pinned"):
            load(tmp_path / "m.safetensors", sha256=pin)
    (tmp_path / "m.safetensors").write_bytes(SOUND)
    assert load(tmp_path / "m.safetensors", sha256=pin.upper()).sha256 == pin


def keras_hub_model(task=False, **sizes):
    """KerasHub's own model with weights that are all unlike, in `variables`."""
    sizes = {"vocabulary_size": 50, "num_layers": 2, "hidden_dim": 8, "intermediate_dim": 12} | sizes
    model = keras_hub.models.BertBackbone(num_heads=2, max_sequence_length=16, **sizes)
    rng = np.random.default_rng(0)
    for variable in model.weights:
        variable.assign(rng.normal(0.5, 1, variable.shape))
    return keras_hub.models.BertTextClassifier(model, num_classes=3) if task else model


def leaf_of(path):
    """The leaf of a variable of KerasHub by its path in the model, which files do not hold."""
    *layers, array = path.split("/")[-4 if "self_attention_layer/" in path else -3 :]
    if layers[-1] in ("token_embedding", "position_embedding", "segment_embedding"):
        name = {"token": "word", "position": "position", "segment": "token_type"}[layers[-1].split("_")[0]]
        return "embeddings", f"{name}_embeddings", "embedding"
    array = {"gamma": "scale", "beta": "bias"}.get(array, array)
    if layers[-1] in ("embeddings_layer_norm", "pooled_dense"):
        return ("embeddings", "LayerNorm", array) if "norm" in layers[-1] else ("pooler", "dense", array)
    name = {
        "attention_output": "attention.output.dense",
        "self_attention_layer_norm": "attention.output.LayerNorm",
        "feedforward_intermediate_dense": "intermediate.dense",
        "feedforward_output_dense": "output.dense",
        "feedforward_layer_norm": "output.LayerNorm",
    }.get(layers[-1], f"attention.self.{layers[-1]}")
    return f"layer_{layers[0].rpartition('_')[2]}", name, array


@pytest.mark.filterwarnings("ignore::UserWarning")
@pytest.mark.parametrize(
    ("task", "file"), [(False, "model.weights.h5"), (False, "bert.keras"), (True, "model.weights.h5")]
)
@pytest.mark.parametrize("pooler", [False, True])
def test_a_file_of_keras_hub_gives_every_variable_of_its_model(task, file, pooler, tmp_path):
    model = keras_hub_model(task)
    (model.save if file.endswith(".keras") else model.save_weights)(tmp_path / file)
    loaded = load(tmp_path / file, pooler)
    backbone = model.backbone if task else model
    expected = [v for v in backbone.weights if pooler or "pooled" not in v.path]
    assert loaded.num_arrays == len(expected) == 37 + 2 * pooler
    for variable in expected:
        stage, layer, leaf = leaf_of(variable.path)
        ours = loaded.variables["params"][stage][layer][leaf]
        np.testing.assert_array_equal(ours, np.asarray(variable).reshape(ours.shape))
    assert loaded.ignored == ("layers/dense",) * task + ("pooler",) * (not pooler)


def replaced(name, value):
    def change(file):
        del file[name]
        file[name] = value

    return change


ENCODER = "layers/transformer_encoder_1"
KERAS_HUB_FAULTS = {
    "missing": (
        lambda f: f.pop(f"{ENCODER}/_feedforward_output_dense"),
        r"missing .*encoder_1.*\(encoder.layer.1.output",
    ),
    "heads": (
        replaced(f"{ENCODER}/_self_attention_layer/key_dense/vars/0", np.zeros((8, 3, 4), "f4")),
        r"misshapen .*key_dense/vars/0: \(8, 3, 4\), expected \(8, 8\)",
    ),
    "integers": (replaced("layers/reversible_embedding/vars/0", np.zeros((50, 8), "i4")), "dtype int32"),
    "unexpected": (lambda f: f.create_dataset("layers/transformer_encoder_2/vars/0", (2,)), "unexpected .*encoder_2"),
    "linked": (lambda f: f.update({"layers/x": h5py.ExternalLink("/etc/x", "/")}), "a link to another place"),
    "resizable": (
        lambda f: [
            f.pop("layers/embedding/vars/0"),
            f.create_dataset("layers/embedding/vars/0", (2, 8), maxshape=(None, 8)),
        ],
        "token_type_embeddings.weight: maximal shape",
    ),
    "nan": (replaced("layers/embedding/vars/0", np.full((2, 8), np.nan, "f4")), "NaN or infinite .*token_type"),
    "no_backbone": (lambda f: f.pop("layers/reversible_embedding"), "holds no backbones of KerasHub's BERT"),
}


@pytest.mark.parametrize("fault", KERAS_HUB_FAULTS)
def test_a_file_of_keras_hub_that_does_not_fit_is_refused_by_name(fault, tmp_path):
    change, message = KERAS_HUB_FAULTS[fault]
    keras_hub_model().save_weights(tmp_path / "model.weights.h5")
    with h5py.File(tmp_path / "model.weights.h5", "r+") as file:
        change(file)
    with pytest.raises(WeightsError, match=message):
        load(tmp_path / "model.weights.h5")


def test_a_file_of_another_library_than_the_backbones_is_one_line(tmp_path):
    write(tmp_path / "bert.h5")  # what it is, not what it is called
    with pytest.raises(WeightsError, match="is a safetensors file, and weights of MobileNetV2 are read from Keras'"):
        reader.load(tmp_path / "bert.h5", SMALL, variables_of(SMALL))
    write_small(tmp_path / "images.safetensors")
    with pytest.raises(WeightsError, match="holds no backbones of KerasHub's BERT, where one is read"):
        load(tmp_path / "images.safetensors")


def test_a_run_says_what_fills_the_backbone_and_that_random_weights_fill_nothing(tiny, tmp_path, capsys):
    tiny.model.weights = f"random:{write_small(tmp_path / 'small.h5')}"
    model = zoo.create(tiny, 1)
    assert train.initial_variables(tiny, model)[1] == {"source": tiny.model.weights}
    assert "Weights: random; nothing is pretrained" in capsys.readouterr().out
    tiny.model.weights = tiny.model.weights.removeprefix("random:")
    train.initial_variables(tiny, model)
    assert "small.h5 (not verified" in capsys.readouterr().out
