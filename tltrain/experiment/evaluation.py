"""Exact evaluation: every readable example of a split counts once, for any batch size and number of devices."""

import functools
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh
from ml_collections import ConfigDict

from tltrain.cache import forward
from tltrain.cache.inputs import SplitInputs, batch_shapes
from tltrain.data import pipeline
from tltrain.data.split import Data, Split
from tltrain.models import zoo
from tltrain.models.classifier import Classifier
from tltrain.runtime import console, parallel
from tltrain.training import metrics, scores, steps

NUM_LIKELIEST = 10  # classes of an example whose probabilities are kept where there are very many


class Evaluation(NamedTuple):
    """A split under one set of variables.

    `scores` are `loss` in nats, `accuracy` and, for two classes, `auc`; `logits` float32 `[N, D]` are those of every
    example where `counted` bool `[N]`: its image could be read.
    """

    scores: dict[str, float]
    logits: np.ndarray
    counted: np.ndarray

    @property
    def predicted(self) -> np.ndarray:
        """The most probable class, int `[N]`."""
        return self.logits.argmax(1) if self.logits.shape[1] > 1 else (self.logits[:, 0] > 0).astype(int)


def prepare(model: Classifier, inputs: SplitInputs, config: ConfigDict, mesh: Mesh) -> None:
    """Compiles what `over` is going to run for `inputs`, if this process has not done so."""
    forward.compiled(program(model, inputs, config, mesh))
    _head_step(model, config.batch_size, mesh, config.parallel)


def program(model: Classifier, inputs: SplitInputs, config: ConfigDict, mesh: Mesh) -> forward.Program:
    """The stages from the start of `inputs` to pooled features."""
    shape = (config.batch_size, *inputs.row.shape)
    return forward.Program(model, inputs.start, len(model.backbone.stages), shape, inputs.row.dtype, mesh)


@functools.cache
def _head_step(model, batch_size, mesh, mode):
    head = {"params": {"head": zoo.shapes(model)["params"]["head"]}}
    features = jax.ShapeDtypeStruct(head["params"]["head"]["kernel"].shape[:1], jnp.float32)
    step = functools.partial(steps.eval_step, model=model)
    return parallel.compile_step(step, head, batch_shapes(features, batch_size), mesh, mode, per_example=True)


def over(
    model: Classifier,
    variables: dict,
    inputs: SplitInputs,
    examples: Split,
    title: str,
    mesh: Mesh,
    config: ConfigDict,
    stop: Callable[[], bool],
    features: np.ndarray | None = None,
) -> Evaluation | None:
    """Evaluates `variables` of `model` on `examples`, which `inputs` are of; `title` stands beside the progress.

    The logits of an image are the same from its pixels as from stored activations. Where `features` is given, float32
    `[N, C]`, pooled features are written to it. None where `stop()` became true.
    """
    head_step = _head_step(model, config.batch_size, mesh, config.parallel)
    head = parallel.replicate({"params": {"head": variables["params"]["head"]}}, mesh)
    logits = np.zeros((len(examples.ids), model.num_outputs), np.float32)
    counted, total = np.zeros(len(logits), bool), metrics.Total()
    batches = forward.activations(program(model, inputs, config, mesh), variables, inputs.batches(None, 0))
    with console.progress(title, pipeline.num_batches(examples.num_examples, config.batch_size)) as update:
        for done, batch in enumerate(parallel.prefetch(batches, mesh, config.parallel), 1):
            sums, of_rows = jax.device_get(head_step(head, batch))
            total.add(sums)
            mask = np.asarray(batch["mask"])
            index = np.asarray(batch["index"])[mask]
            logits[index], counted[index] = of_rows[mask], True
            if features is not None:
                features[index] = np.asarray(batch["inputs"])[mask]
            update(done)
            if stop():
                return None
    return of_logits(total, logits, counted, examples.labels)


def of_logits(total: metrics.Total, logits: np.ndarray, counted: np.ndarray, labels: np.ndarray) -> Evaluation:
    """That of a split: the `total` over its examples, the `logits` of those `counted`, the `labels` int32 `[N]`."""
    assert total.count == counted.sum(), "every example is counted exactly once"
    measured = total.summary()
    if logits.shape[1] <= 2:
        measured["auc"] = metrics.auc(metrics.binary_score(logits[counted]), labels[counted] == 1)
    return Evaluation(measured, logits, counted)


def in_detail(data: Data, evaluations: dict[str, Evaluation]) -> dict[str, dict[str, Any]]:
    """The scores of each split with the `baseline`, how accurate the most frequent `answer` always given is.

    Where there are at most `scores.MOST_SHOWN` classes also `confusion`, counts with the true class first.
    """
    made: dict[str, dict[str, Any]] = {}
    num_classes = len(data.class_names)
    for name, found in evaluations.items():
        labels, predicted = data.splits[name].labels[found.counted], found.predicted[found.counted]
        largest, share = scores.baseline(labels)
        made[name] = found.scores | {"baseline": {"answer": data.class_names[largest], "accuracy": share}}
        if num_classes <= scores.MOST_SHOWN:
            made[name]["confusion"] = scores.confusion(labels, predicted, num_classes).tolist()
    return made


def predictions(data: Data, evaluations: dict[str, Evaluation]) -> Iterator[dict[str, Any]]:
    """The lines of `predictions.jsonl`: every example that was counted, by split, in the order of the split.

    Each has `split`, `id`, `label`, `probabilities` `[num_classes]` and `loss` in nats. Where there are more than
    `scores.MOST_SHOWN` classes it has the `NUM_LIKELIEST` alone, most probable first, and which they are: `classes`.
    """
    for name, found in evaluations.items():
        split = data.splits[name]
        for i in np.flatnonzero(found.counted):
            label, probabilities = int(split.labels[i]), metrics.probabilities(found.logits[i : i + 1])[0]
            loss = -np.log(max(probabilities[label], np.finfo(np.float64).tiny))
            line = {"split": name, "id": split.ids[i], "label": label}
            if len(probabilities) > scores.MOST_SHOWN:
                classes = np.argsort(-probabilities, kind="stable")[:NUM_LIKELIEST]
                line["classes"], probabilities = classes.tolist(), probabilities[classes]
            line["probabilities"] = [float(f"{p:.6g}") for p in probabilities]
            yield line | {"loss": float(f"{loss:.6g}")}
