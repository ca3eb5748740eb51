"""Runs of texts leave as Keras layers that answer what the run does, whatever stands beside a text and behind it."""

import math
import subprocess
import sys

import jax
import numpy as np
import pytest
from conftest import IMAGES, TINY_BERT, graded, tiny_text_config, write_tiny_bert
from small_text import array
from test_export import class_names_in
from test_main import ENVIRONMENT

from tltrain import export
from tltrain.data import packing
from tltrain.data.kinds.text import Text
from tltrain.data.tensorflow import import_tensorflow
from tltrain.errors import WeightsError
from tltrain.experiment import finished
from tltrain.exports import keras_model, keras_transformer, proven
from tltrain.exports.formats import FORMATS
from tltrain.models import bert, zoo
from tltrain.models.classifier import run_frozen
from tltrain.runtime.process import Process
from tltrain.training.tasks import choose

DISTILBERT = {"model_type": "distilbert", "dim": 16, "n_layers": 2, "n_heads": 2, "hidden_dim": 24}
# family, pooling, task, classes
CASES = {
    "pooler": ({}, "pooler", "classification", ("bad", "good")),
    "cls": ({"hidden_act": "relu", "layer_norm_eps": 1e-3}, "cls", "multi_label", ("bad", "good", "odd")),
    "mean": ({"hidden_act": "gelu_new", "type_vocab_size": 3}, "mean", "regression", ()),
    "distilled-cls": (DISTILBERT, "cls", "classification", ("bad", "good", "odd")),
    "distilled-mean": (DISTILBERT, "mean", "classification", ("bad", "good")),
}
LENGTHS = (1, 2, 5, 0, TINY_BERT["max_position_embeddings"], 9)  # one without tokens


def untrained(folder, case="pooler", **changes):
    """What a finished run would be with variables under which attention is far from even."""
    family, pooling, task, names = CASES[case]
    config = tiny_text_config(folder, folder / "features")
    write_tiny_bert(folder / "bert", **family)
    config.update_from_flattened_dict(changes)
    config = zoo.resolved(config)
    config.model.pool = pooling
    task = choose.of_finished(config, task, names)
    model = zoo.create(config, task.num_outputs)
    variables = jax.tree_util.tree_map_with_path(
        lambda path, leaf: array(".".join(part.key for part in path).replace("scale", "weight"), leaf.shape),
        zoo.shapes(model),
    )
    return finished.Finished(folder, config, task, model, variables, "probe", 5, {}, {"splits": {}})


def rows_of(run, lengths=LENGTHS):
    rng = np.random.default_rng(0)
    rows = []
    for n in lengths:
        ids = rng.integers(0, run.model.backbone.vocab_size, n)
        rows.append({"ids": ids.astype(np.int32), "types": (np.arange(n) > n // 2).astype(np.int32)})
    return rows


def answers_of(run, rows):
    """By evaluation."""
    num_stages = len(run.model.backbone.stages)
    features = run_frozen(run.model, run.variables, packing.batch_of(rows), 0, num_stages)
    return np.asarray(run.task.activation(jax.nn, run.model.apply(run.variables, features, num_stages)))


def padded(rows, width):
    """As an export takes them; what stands in padding is not looked at."""
    ids = np.full((len(rows), width), 7, np.int32)
    mask, types = np.zeros_like(ids), np.ones_like(ids)
    for i, row in enumerate(rows):
        n = len(row["ids"])
        ids[i, :n], mask[i, :n], types[i, :n] = row["ids"], 1, row["types"]
    return {"input_ids": ids, "attention_mask": mask, "token_type_ids": types}


GRID = [(name, case) for name in FORMATS for case in CASES]


@pytest.mark.parametrize(("name", "case"), graded(GRID, [("keras", "pooler")]))
def test_an_export_gives_the_answers_of_the_run_for_rows_of_any_length(name, case, tmp_path):
    run = untrained(tmp_path, case)
    rows = rows_of(run)
    expected = answers_of(run, rows)
    FORMATS[name].write(run, tmp_path / FORMATS[name].file)
    function = FORMATS[name].load(tmp_path / FORMATS[name].file)
    assert np.isfinite(expected).all() and np.std(expected, 0).max() > 0.05
    for chosen, width in ((slice(None), 32), (slice(None), 50), (slice(0, 1), 1), (slice(1, 3), 5)):
        found = function(padded(rows[chosen], width))
        np.testing.assert_allclose(found, expected[chosen], rtol=1e-5, atol=5e-6, err_msg=f"{width} tokens wide")


@pytest.mark.full
@pytest.mark.parametrize("name", FORMATS)
def test_what_a_program_needs_is_in_the_file_and_beside_it(name, tmp_path, capfd):
    run = untrained(tmp_path, **{"model.dtype": "bfloat16", "data.text": ("text", "label")})
    proven.export(run, [name], tmp_path / "export", Process())
    path = tmp_path / "export" / FORMATS[name].file
    beside = {"class_names.json", "tokenizer.json", path.name}
    assert {p.name for p in path.parent.iterdir()} == beside and class_names_in(name, path) == ["bad", "good"]
    printed = capfd.readouterr()
    assert "on 10 texts of val the same answer for 100.0 %" in printed.out and not printed.err
    assert float(printed.out.partition("answers differ by at most ")[2].split()[0]) < 1e-5


@pytest.mark.full
def test_a_saved_model_has_each_array_once(tmp_path):
    FORMATS["savedmodel"].write(run := untrained(tmp_path), tmp_path / "saved_model")
    stored = import_tensorflow().train.load_checkpoint(tmp_path / "saved_model" / "variables" / "variables")
    shapes = [shape for name, shape in stored.get_variable_to_shape_map().items() if name.endswith("VARIABLE_VALUE")]
    assert sorted(map(math.prod, shapes)) == sorted(leaf.size for leaf in jax.tree.leaves(run.variables))


def test_inputs_and_open_dimensions_of_onnx_have_the_names_of_the_signature(tmp_path):
    import onnxruntime

    FORMATS["onnx"].write(run := untrained(tmp_path, "distilled-cls"), tmp_path / "model.onnx")
    session = onnxruntime.InferenceSession(tmp_path / "model.onnx")
    found = [(value.name, value.type, value.shape) for value in session.get_inputs()]
    assert found == [(name, "tensor(int32)", ["batch", "length"]) for name, *_ in run.kind.signature()]
    assert [(value.name, value.shape) for value in session.get_outputs()] == [("probabilities", ["batch", 3])]
    rows = rows_of(run)
    np.testing.assert_allclose(session.run(None, padded(rows, 40))[0], answers_of(run, rows), atol=5e-6)


@pytest.mark.parametrize("case", ["pooler", "distilled-mean"])
def test_layers_are_called_as_on_the_hub_and_all_trainable(case, tmp_path):
    run = untrained(tmp_path, case)
    keras = keras_model.import_keras()
    keras.config.set_dtype_policy("mixed_bfloat16")  # as a user's keras.json may
    model = keras_model.build(run)
    params = run.variables["params"]["backbone"]
    names = {run.model.backbone.hub_name(stage, layer) for stage, layers in params.items() for layer in layers}
    layers = {layer.name: layer for layer in model.layers if layer.weights}
    assert layers.keys() == {name.replace(".", "_") for name in names} | {"predictions"}
    assert {layer.compute_dtype for layer in layers.values()} == {"float32"}
    leaves = jax.tree.leaves(run.variables["params"])
    assert len(model.trainable_weights) == len(model.weights) == len(leaves)
    assert all(type(layer).__module__.startswith("keras.") for layer in model.layers)


@pytest.mark.parametrize(
    ("changes", "place"),
    [({"num_types": 0}, "embeddings_token_type_embeddings"), ({"num_positions": 9}, "embeddings_position_embeddings/")],
    ids=str,
)
def test_weights_that_do_not_fit_are_named(changes, place, tmp_path):
    run = untrained(tmp_path)
    other = run.model.clone(backbone=run.model.backbone.clone(**changes))
    with pytest.raises(WeightsError, match=f"'bert' is not the network that Keras builds; at {place}"):
        keras_model.build(run._replace(model=other))


@pytest.mark.parametrize("name", bert.ACTIVATIONS)
def test_activations_are_those_of_the_run(name):
    x = np.linspace(-8, 8, 999, dtype=np.float32)
    found = keras_transformer.ACTIVATIONS[name](keras_model.import_keras().ops, x)
    np.testing.assert_allclose(found, bert.ACTIVATIONS[name](x), rtol=0, atol=2e-6)


def test_help_has_a_use_for_the_arguments_of_every_kind():
    kinds = (IMAGES, Text("{}", 8, 1))
    assert {kind.name: tuple(argument.name for argument in kind.signature()) for kind in kinds} == export.ARGUMENTS


WITHOUT_TLTRAIN = """
import sys
sys.modules["tltrain"] = sys.modules["keras_hub"] = None
import keras, numpy as np
model = keras.saving.load_model(sys.argv[1])
tokens = dict(np.load(sys.argv[2]))
np.save(sys.argv[3], keras.ops.convert_to_numpy(model(tokens, training=False)))
query = model.get_layer("encoder_layer_0_attention_self_query")
before = query.get_weights()[0]
model.compile(keras.optimizers.SGD(1e-2), "sparse_categorical_crossentropy")
model.fit(tokens, np.arange(len(tokens["input_ids"])) % 2, verbose=0)
assert np.abs(query.get_weights()[0] - before).max() > 0
"""


@pytest.mark.full
@pytest.mark.parametrize("backend", ["tensorflow", "jax"])
def test_a_keras_file_opens_without_tltrain_and_trains_on(backend, tmp_path):
    run = untrained(tmp_path)
    rows = rows_of(run)
    FORMATS["keras"].write(run, tmp_path / "model.keras")
    np.savez(tmp_path / "tokens.npz", **padded(rows, 40))
    line = [sys.executable, "-c", WITHOUT_TLTRAIN, "model.keras", "tokens.npz", "found.npy"]
    environment = ENVIRONMENT | {"KERAS_BACKEND": backend}
    done = subprocess.run(line, env=environment, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    np.testing.assert_allclose(np.load(tmp_path / "found.npy"), answers_of(run, rows), atol=5e-6)
