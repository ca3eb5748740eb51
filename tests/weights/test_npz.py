"""A `.npz` of Flax gives what a `model.safetensors` of the same numbers does; what does not fit or harms is refused."""

import functools
import io
import re
import resource
import time
import zipfile

import jax
import ml_dtypes
import numpy as np
import pytest
from safetensors.numpy import save_file
from small_bert import BERT, same
from small_bert import shapes as bert_shapes
from small_vision import array

from tltrain.errors import WeightsError
from tltrain.models import dinov2, mobilenet_v2, vit
from tltrain.weights import reader

SIZES = {"patch_size": 16, "hidden_size": 32, "num_layers": 2, "num_heads": 4, "intermediate_size": 48, "grid": 4}
SMALL = vit.ViT(**SIZES)
LAYER = {
    "layernorm_before": (32,),
    "attention.attention.query": (32, 32),
    "attention.attention.key": (32, 32),
    "attention.attention.value": (32, 32),
    "attention.output.dense": (32, 32),
    "layernorm_after": (32,),
    "intermediate.dense": (48, 32),
    "output.dense": (32, 48),
}


def of_the_hub():
    """Arrays of a file of transformers; the class token has no position, as in big_vision."""
    sizes = {"embeddings.cls_token": (1, 1, 32), "embeddings.position_embeddings": (1, 17, 32)}
    modules = {"embeddings.patch_embeddings.projection": (32, 3, 16, 16), "layernorm": (32,)}
    modules |= {f"encoder.layer.{i}.{name}": shape for i in range(2) for name, shape in LAYER.items()}
    sizes |= {f"{name}.weight": shape for name, shape in modules.items()}
    sizes |= {f"{name}.bias": shape[:1] for name, shape in modules.items()}
    arrays = {name: array(name, shape) for name, shape in sizes.items()}
    arrays["embeddings.position_embeddings"][:, 0] = 0
    return arrays


def of_flax(attention="1", after="2", mlp="3", positions="Transformer/posembed_input/pos_embedding"):
    """The same as AugReg stores it, or with other numbers of modules as big_vision does."""
    theirs = of_the_hub()
    arrays = {"cls": theirs["embeddings.cls_token"], positions: theirs["embeddings.position_embeddings"]}

    def put(ours, name, kernel="kernel", heads=()):
        weight, bias = theirs[f"{ours}.weight"].T, theirs[f"{ours}.bias"]
        weight = weight.transpose(1, 0, 2, 3) if weight.ndim == 4 else weight  # of [width, height, in, out]
        arrays[f"{name}/{kernel}"] = weight.reshape(heads or weight.shape)
        arrays[f"{name}/bias"] = bias.reshape(heads[1:] if heads[:1] == (32,) else bias.shape)

    put("embeddings.patch_embeddings.projection", "embedding")
    put("layernorm", "Transformer/encoder_norm", "scale")
    for i in range(2):
        layer, block = f"encoder.layer.{i}", f"Transformer/encoderblock_{i}"
        put(f"{layer}.layernorm_before", f"{block}/LayerNorm_0", "scale")
        for part in ("query", "key", "value"):
            name = f"{block}/MultiHeadDotProductAttention_{attention}/{part}"
            put(f"{layer}.attention.attention.{part}", name, heads=(32, 4, 8))
        name = f"{block}/MultiHeadDotProductAttention_{attention}/out"
        put(f"{layer}.attention.output.dense", name, heads=(4, 8, 32))
        put(f"{layer}.layernorm_after", f"{block}/LayerNorm_{after}", "scale")
        put(f"{layer}.intermediate.dense", f"{block}/MlpBlock_{mlp}/Dense_0")
        put(f"{layer}.output.dense", f"{block}/MlpBlock_{mlp}/Dense_1")
    return arrays


def of_big_vision():
    arrays = of_flax("0", "1", "0", "pos_embedding")
    arrays["pos_embedding"] = arrays["pos_embedding"][:, 1:]
    return {f"params/{name}": array for name, array in arrays.items()}


@functools.cache
def shapes(backbone):
    return {"params": {}} | jax.eval_shape(backbone.init, jax.random.key(0), backbone.example())


def load(path, backbone=SMALL, sha256=""):
    return reader.load(path, backbone, shapes(backbone), sha256)


def write(path, arrays, save=np.savez):
    with path.open("wb") as file:  # under any name
        save(file, **arrays)
    return path


HEAD = {"head/kernel": np.zeros((32, 5), "f4"), "head/bias": np.zeros(5, "f4"), "pre_logits/bias": np.ones(32, "f4")}
LAYOUTS = {
    "augreg": (lambda: of_flax() | HEAD, ("head", "pre_logits")),
    "optimizer": (
        lambda: {f"opt/target/{name}": array for name, array in (of_flax() | HEAD).items()},
        ("head", "pre_logits"),
    ),
    "big_vision": (lambda: of_big_vision() | {"params/head/bias": np.ones(5, "f4")}, ("head",)),
}


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("save", [np.savez, np.savez_compressed])
def test_every_layout_gives_what_safetensors_do_and_says_what_is_not_used(layout, save, tmp_path):
    make, ignored = LAYOUTS[layout]
    save_file(of_the_hub(), tmp_path / "model.safetensors")
    loaded = load(write(tmp_path / "mine", make(), save))
    expected = load(tmp_path / "model.safetensors")
    assert same(loaded.variables, expected.variables) and loaded.num_arrays == expected.num_arrays == 38
    assert loaded.ignored == ignored


@pytest.mark.parametrize("dtype", ["f2", "f8", ">f4", "bfloat16"])
def test_every_float_dtype_and_order_becomes_float32(dtype, tmp_path):
    arrays = of_flax()
    kernel = arrays["embedding/kernel"].astype(ml_dtypes.bfloat16 if dtype == "bfloat16" else dtype)
    arrays["embedding/kernel"] = np.asfortranarray(kernel)
    found = load(write(tmp_path / "m.npz", arrays)).variables["params"]["embeddings"]["patch_embeddings.projection"]
    assert found["kernel"].dtype == np.float32
    np.testing.assert_array_equal(found["kernel"], kernel.astype(np.float32))


QUERY = "Transformer/encoderblock_1/MultiHeadDotProductAttention_1/query/kernel"
OTHER = "Transformer/encoderblock_2/LayerNorm_0/bias"
FAULTS = {
    "missing": ({QUERY: None}, f"missing {QUERY}"),
    "misshapen": ({"cls": np.ones(32, "f4")}, r"misshapen cls: \(32,\), expected \(1, 1, 32\)"),
    "heads": ({QUERY: np.ones((32, 8, 4), "f4")}, rf"misshapen {QUERY}: \(32, 8, 4\), expected \(32, 4, 8\)"),
    "integers": ({"cls": np.ones((1, 1, 32), "i4")}, "misshapen cls: dtype int32, expected float32 or float16 or bf"),
    "records": ({"cls": np.zeros((1, 1, 32), "i1,i1")}, "misshapen cls: dtype void16"),
    "unexpected": ({OTHER: np.ones(32, "f4")}, f"unexpected {OTHER}"),
    "nan": (
        {QUERY: np.full((32, 4, 8), np.nan, "f4")},
        "NaN or infinite encoder.layer.1.attention.attention.query.wei",
    ),
    "zero": ({QUERY: np.zeros((32, 4, 8), "f4")}, "all-zero encoder.layer.1.attention.attention.query.weight"),
    "all_at_once": (
        {QUERY: None, "cls": np.ones(32, "f4"), OTHER: np.ones(32, "f4")},
        rf"misshapen cls.*missing {QUERY}, unexpected {OTHER}; check model.backbone",
    ),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_a_file_that_does_not_fit_is_refused_by_name(fault, tmp_path):
    changes, message = FAULTS[fault]
    arrays = {name: array for name, array in (of_flax() | changes).items() if array is not None}
    with pytest.raises(WeightsError, match=message) as caught:
        load(write(tmp_path / "m.npz", arrays))
    assert str(caught.value).isprintable()


def test_a_file_for_another_network_is_one_line(tmp_path):
    path = write(tmp_path / "m.npz", of_flax())
    for backbone, message in {
        dinov2.DINOv2(): "m.npz is an .npz of Flax, of which DINOv2 cannot be read; give a model.safetensors",
        mobilenet_v2.MobileNetV2(
            alpha=0.35, groups=((16, 1, 1, 1),)
        ): "m.npz is an .npz of Flax, and weights of MobileNetV2 are read from Keras'",
    }.items():
        with pytest.raises(WeightsError, match=message):
            load(path, backbone)
    with pytest.raises(WeightsError, match=r"m.npz is an .npz of Flax, of which Bert cannot be read"):
        reader.load(path, BERT, bert_shapes())
    with pytest.raises(WeightsError, match=r"of another network; none of the 38 arrays .* but conv/kernel"):
        load(write(tmp_path / "other.npz", {"conv/kernel": np.ones(3, "f4")}))


def header(shape="(1, 1, 32)", descr="'<f4'", version=b"\x01\x00"):
    text = f"{{'descr': {descr}, 'fortran_order': False, 'shape': {shape}}}\n".encode()
    return b"\x93NUMPY" + version + len(text).to_bytes(2 if version[0] == 1 else 4, "little") + text


def zipped(content, name="cls.npy", compression=zipfile.ZIP_STORED, **members):
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", compression) as archive:
        for key, value in {name: content, **members}.items():
            archive.writestr(key, value)
    return buffer.getvalue()


def of_size(size):
    """A file whose list of contents says that its array has `size` bytes."""
    content = bytearray(zipped(header(f"({(size - 74) // 4},)") + bytes(128), compression=zipfile.ZIP_DEFLATED))
    at = content.rindex(b"PK\x01\x02") + 24
    content[at : at + 4] = size.to_bytes(4, "little")
    return bytes(content)


SOUND = header() + bytes(128)
PICKLE = b"cos\nsystem\n(S'touch harmed'\ntR."
HOSTILE = {
    "pickle": (zipped(header("(1,)", "'|O'") + PICKLE), r"cls.npy has 31 bytes of \(1,\) object"),
    "pickle_of_its_size": (zipped(header("(1, 1, 32)", "'|O'") + PICKLE.ljust(256)), "misshapen cls: dtype object"),
    "no_array": (zipped(b"no array at all"), "magic string"),
    "no_literal": (
        zipped(header("__import__('os').system('touch harmed')") + bytes(128)),
        "malformed node",
    ),
    "terabytes_in_128_bytes": (
        zipped(header(f"({2**40},)") + bytes(128)),
        r"cls.npy has 128 bytes of \(1099511627776,\)",
    ),
    "negative": (zipped(header("(-1, -32)") + bytes(128)), r"has 128 bytes of \(-1, -32\)"),
    "no_shape": (zipped(header("('a',)") + bytes(128)), "shape is not valid"),
    "longer": (zipped(SOUND + b"x"), "cls.npy has 129 bytes of"),
    "header_of_megabytes": (
        zipped(header("(" + "1," * 500_000 + ")", version=b"\x02\x00")),
        "Header info length|large",
    ),
    "deep_header": (zipped(header("(" * 4000)), "cannot read"),
    "version": (zipped(header(version=b"\x03\x00") + bytes(128)), r"in version \(3, 0\) of .npy, read are"),
    "bomb": (of_size(2**31), "cls.npy has 2147483648 bytes, at most"),
    "a_lie": (of_size(10_000), "cannot read"),
    "many": (zipped(SOUND, **{f"{i:0200}.npy": b"" for i in range(4900)}), "its list of contents has"),
    "more": (zipped(SOUND, **{f"{i}.npy": b"" for i in range(5000)}), "it has 5001 arrays, at most 5000 are read"),
    "twice": (zipped(SOUND, cls=b""), "two arrays of one name"),
    "method": (zipped(SOUND, compression=zipfile.ZIP_LZMA), "cls.npy is compressed by method 14, allowed: stored"),
    "cut": (zipped(SOUND)[:-30], "not a zip file"),
    "escape": (zipped(SOUND, **{"\x1b[2J.npy": SOUND}), r"missing embedding/kernel.*unexpected \\x1b\[2J"),
}


@pytest.mark.parametrize("attack", HOSTILE)
def test_a_hostile_file_is_refused_in_a_line_before_it_does_harm(attack, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    content, message = HOSTILE[attack]
    (tmp_path / "m.npz").write_bytes(content)
    started, peak = time.process_time(), resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with pytest.raises(WeightsError, match=message) as caught:
        load(tmp_path / "m.npz")
    assert re.search("m.npz", str(caught.value)) and str(caught.value).isprintable()
    assert not (tmp_path / "harmed").exists() and time.process_time() - started < 2
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - peak < 100e3  # kB


def test_a_damaged_byte_is_refused_in_one_line_and_never_read_with_a_pin(tmp_path):
    content = write(tmp_path / "m.npz", of_flax()).read_bytes()
    loaded = load(tmp_path / "m.npz")
    assert load(tmp_path / "m.npz", sha256=loaded.sha256).sha256 == loaded.sha256
    rng = np.random.default_rng(0)
    for at in [*rng.integers(0, len(content), 60), *rng.integers(len(content) - 5000, len(content), 60)]:
        damaged = bytearray(content)
        damaged[at] ^= 1 << rng.integers(8)
        (tmp_path / "d.npz").write_bytes(damaged)
        try:
            assert same(load(tmp_path / "d.npz").variables, loaded.variables)  # a byte that is not looked at
        except WeightsError as error:
            assert str(error).isprintable()
        with pytest.raises(WeightsError, match="is not the file that is pinned"):
            load(tmp_path / "d.npz", sha256=loaded.sha256)
