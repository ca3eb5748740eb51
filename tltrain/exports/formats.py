"""The file formats a finished run can be exported to: how each is written, loaded again and used.

All but StableHLO derive from one Keras model. StableHLO is readable by every JAX of the next six months at least (the
guarantee of `jax.export`), the others as long as their runtimes read them.
"""

import contextlib
import json
import os
import warnings
import zipfile
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from tltrain.data.kinds.kind import Argument
from tltrain.data.tensorflow import import_tensorflow
from tltrain.experiment.finished import Finished
from tltrain.exports import keras_model
from tltrain.models import convolution
from tltrain.runtime import console

PLATFORMS = ("cpu", "cuda", "tpu")  # on which one StableHLO file runs
# a batch as `Kind.raw` gives it, by the names of `Kind.signature` in their order, to `Task.activation`, float32 [B, K]
Function = Callable[[dict[str, np.ndarray]], np.ndarray]


class Format(NamedTuple):
    """One format.

    `file` is the name of the file or folder it makes, `extra` the extra of pip that brings `packages`. `write(run,
    path)` makes it, `load(path)` gives back what it computes. `usage` is how a program uses it, see `use`,
    `class_names` where they are in it. It is compared on `max_examples` examples: fewer where each size is compiled.
    """

    file: str
    extra: str
    packages: tuple[str, ...]
    write: Callable[[Finished, Path], None]
    load: Callable[[Path], Function]
    usage: str
    class_names: str
    max_examples: int = 64

    def use(self, path: str, names: Sequence[str], output: str) -> str:
        """How a program uses the file at `path`, made of a run that takes arguments of `names` and answers `output`.

        In `usage` they stand as `{values}`, `{keywords}` or `{dict}`, or as `{inputs}`: of several the dict.
        """
        by_name = f"{{{', '.join(f'{name!r}: {name}' for name in names)}}}"
        return self.usage.format(
            path=repr(path),
            values=", ".join(names),
            keywords=", ".join(f"{name}={name}" for name in names),
            dict=by_name,
            inputs=by_name if len(names) > 1 else names[0],
            output=repr(output),
        )


def _write_keras(run, path):
    keras_model.build(run).save(path)
    with zipfile.ZipFile(path, "a") as archive:
        archive.writestr("class_names.json", json.dumps(run.class_names))


def _load_keras(path):
    model = keras_model.import_keras().saving.load_model(path)
    return lambda batch: np.asarray(_answers(model, batch))


def _answers(model, batch):
    """Those of a Keras model, which takes a dict of several arguments, but one as it is."""
    return model(batch if len(batch) > 1 else next(iter(batch.values())), training=False)


def _write_saved_model(run, path):
    keras, tf = keras_model.import_keras(), import_tensorflow()
    model, archive = keras_model.build(run), keras.export.ExportArchive()
    arguments = [tf.TensorSpec(keras_model.sizes(axes), dtype, name) for name, dtype, axes in run.kind.signature()]

    def serve(*values):
        batch = dict(zip((argument.name for argument in arguments), values, strict=True))
        return {run.task.output: _answers(model, batch)}

    archive.add_endpoint("serve", serve, arguments)
    if run.class_names:
        archive.add_endpoint("class_names", lambda: {"class_names": tf.constant(run.class_names)}, [])
    archive.write_out(str(path), verbose=False)


def _load_saved_model(path):
    model = import_tensorflow().saved_model.load(str(path))
    return lambda batch: next(iter(model.serve(*batch.values()).values())).numpy()


def _write_tflite(run, path):
    folder = path.with_suffix(".saved_model")
    _write_saved_model(run, folder)
    converter = import_tensorflow().lite.TFLiteConverter.from_saved_model(str(folder), signature_keys=["serve"])
    with _silent_stderr():
        path.write_bytes(converter.convert())
    with zipfile.ZipFile(path, "a") as archive:  # where TensorFlow Lite keeps the files of a model
        archive.writestr("labels.txt", "".join(f"{console.printable(name)}\n" for name in run.class_names))


def _load_tflite(path):
    from ai_edge_litert.interpreter import Interpreter

    serve = Interpreter(str(path)).get_signature_runner("serve")

    def run(batch):
        with _silent_stderr():
            return next(iter(serve(**batch).values()))

    return run


@contextlib.contextmanager
def _silent_stderr() -> Iterator[None]:
    """Within the block nothing reaches stderr: what the C++ of TensorFlow Lite says there, no setting turns off."""
    saved = os.dup(2)
    try:
        with Path(os.devnull).open("w") as null:
            os.dup2(null.fileno(), 2)
            yield
    finally:
        os.dup2(saved, 2)
        os.close(saved)


def _write_onnx(run, path):
    keras, model = keras_model.import_keras(), keras_model.build(run)
    arguments = keras.tree.map_structure(lambda x: keras.InputSpec(x.dtype, x.shape, name=x.name), model.input)
    with warnings.catch_warnings():  # of Keras and tf2onnx about names of NumPy
        warnings.simplefilter("ignore")
        model.export(path, format="onnx", verbose=False, input_signature=[arguments])
    import onnx

    stored = onnx.load(path)
    _name_values(stored.graph, run.kind.signature(), run.task.output)
    onnx.helper.set_model_props(stored, {"class_names": json.dumps(run.class_names)})
    onnx.save(stored, path)


def _name_values(graph: Any, arguments: Sequence[Argument], answers: str) -> None:
    """Calls the output of an ONNX graph `answers`, and the dimensions that are open by what they are."""
    (output,) = graph.output
    for node in graph.node:
        node.output[:] = [answers if name == output.name else name for name in node.output]
    output.name = answers
    axes_of = {argument.name: argument.axes for argument in arguments} | {answers: ("batch",)}
    for value in (*graph.input, output):
        for dimension, axis in zip(value.type.tensor_type.shape.dim, axes_of[value.name], strict=False):
            if isinstance(axis, str):
                dimension.dim_param = axis


def _load_onnx(path):
    import onnxruntime

    session = onnxruntime.InferenceSession(path)
    return lambda batch: session.run(None, batch)[0]


def _write_stablehlo(run, path):
    def answers(*raw):
        with jax.default_matmul_precision("highest"):  # an accelerator's default would blur grey levels
            rows = run.kind.rows_of(jnp, *(x.astype(jnp.float32) if x.dtype == jnp.uint8 else x for x in raw))
        return run.task.activation(jax.nn, run.model.apply(run.variables, rows))

    scope = jax.export.SymbolicScope()
    arguments = [
        jax.ShapeDtypeStruct(jax.export.symbolic_shape(", ".join(map(str, axes)), scope=scope), np.dtype(dtype))
        for _, dtype, axes in run.kind.signature()
    ]
    with convolution.portable():
        exported = jax.export.export(jax.jit(answers), platforms=PLATFORMS)(*arguments)
    path.write_bytes(exported.serialize())


def _load_stablehlo(path):
    run = jax.jit(jax.export.deserialize(path.read_bytes()).call)
    return lambda batch: np.asarray(run(*batch.values()))


FORMATS = {
    "keras": Format(
        "model.keras",
        "export",
        ("keras",),
        _write_keras,
        _load_keras,
        "model = keras.saving.load_model({path}); model({inputs})",
        "class_names.json in the file, which is a zip",
    ),
    "savedmodel": Format(
        "saved_model",
        "export",
        ("keras",),
        _write_saved_model,
        _load_saved_model,
        "model = tf.saved_model.load({path}); model.serve({values})[{output}]",
        "model.class_names()['class_names']",
    ),
    "stablehlo": Format(
        "model.stablehlo",
        "export",
        (),
        _write_stablehlo,
        _load_stablehlo,
        "model = jax.export.deserialize(Path({path}).read_bytes()); model.call({values})",
        "class_names.json beside it",
        max_examples=12,
    ),
    "onnx": Format(
        "model.onnx",
        "onnx",
        ("keras", "tf2onnx", "onnx", "onnxruntime"),
        _write_onnx,
        _load_onnx,
        "model = onnxruntime.InferenceSession({path}); model.run(None, {dict})[0]",
        "model.get_modelmeta().custom_metadata_map['class_names'], JSON",
    ),
    "tflite": Format(
        "model.tflite",
        "tflite",
        ("keras", "ai_edge_litert"),
        _write_tflite,
        _load_tflite,
        "model = Interpreter({path}).get_signature_runner('serve'); model({keywords})[{output}]",
        "labels.txt in the file, which is a zip too",
    ),
}
