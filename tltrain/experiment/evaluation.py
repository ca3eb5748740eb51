"""Exact evaluation: every readable example of a split counts once, for any batch size and number of devices."""

import functools
from collections.abc import Callable, Iterator, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from tltrain.cache import forward
from tltrain.cache.inputs import SplitInputs, batch_shapes
from tltrain.data import pipeline
from tltrain.data.split import Split
from tltrain.models import zoo
from tltrain.models.classifier import Shapes
from tltrain.runtime import console, parallel
from tltrain.training import metrics, steps
from tltrain.training.setup import Setup
from tltrain.training.tasks.task import Task


class Evaluation(NamedTuple):
    """A split under one set of variables.

    `scores` are `loss` and the others of the task by name; `logits` float32 `[N, D]` are those of every example
    where `counted` bool `[N]`: it could be read.
    """

    scores: dict[str, float]
    logits: np.ndarray
    counted: np.ndarray


def prepare(setup: Setup, inputs: SplitInputs) -> None:
    """Compiles what `over` is going to run for `inputs`, if this process has not done so."""
    forward.compiled(program(setup, inputs))
    _head_step_of(setup)


def program(setup: Setup, inputs: SplitInputs) -> forward.Program:
    """The stages from the start of `inputs` to pooled features."""
    return forward.program(setup, inputs.start, len(setup.model.backbone.stages), inputs.row)


def _head_step_of(setup):
    features = jax.ShapeDtypeStruct(_head_shapes(setup.model)["kernel"].shape[:1], jnp.float32)
    batch = Shapes.of(batch_shapes(setup, features))
    return _head_step(setup.model, setup.task, batch, setup.mesh, setup.config.parallel)


def _head_shapes(model):
    return zoo.shapes(model)["params"]["head"]


@functools.cache
def _head_step(model, task, batch, mesh, mode):
    head = {"params": {"head": _head_shapes(model)}}
    step = functools.partial(steps.eval_step, model=model, task=task)
    return parallel.compile_step(step, head, batch.tree, mesh, mode, per_example=True)


def over(
    setup: Setup,
    variables: dict,
    inputs: SplitInputs,
    examples: Split,
    title: str,
    stop: Callable[[], bool],
    features: np.ndarray | None = None,
) -> Evaluation | None:
    """Evaluates `variables` on `examples`, which `inputs` are of; `title` stands beside the progress.

    The logits of an example are the same from its bytes as from stored activations. Where `features` is given, float32
    `[N, C]`, pooled features are written to it. None where `stop()` became true.
    """
    head_step, mesh, batch_size = _head_step_of(setup), setup.mesh, setup.config.batch_size
    head = parallel.replicate({"params": {"head": variables["params"]["head"]}}, mesh)
    logits = np.zeros((len(examples.ids), setup.model.num_outputs), np.float32)
    counted, total = np.zeros(len(logits), bool), metrics.Total()
    batches = forward.activations(program(setup, inputs), variables, inputs.batches(None, 0))
    with console.progress(title, pipeline.num_batches(examples.num_examples, batch_size)) as update:
        for done, batch in enumerate(parallel.prefetch(batches, mesh, setup.config.parallel), 1):
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
    return of_logits(setup.task, total, logits, counted, examples.labels)


def of_logits(
    task: Task, total: metrics.Total, logits: np.ndarray, counted: np.ndarray, labels: np.ndarray
) -> Evaluation:
    """That of a split: the `total` over its examples, the `logits` of those `counted`, the `labels` `[N, ...]`."""
    assert total.count == counted.sum(), "every example is counted exactly once"
    measured = total.summary(task.metric) | task.summary(logits[counted], labels[counted])
    return Evaluation(measured, logits, counted)


def in_detail(task: Task, splits: Mapping[str, Split], evaluations: dict[str, Evaluation]) -> dict[str, dict[str, Any]]:
    """The scores of each split, and what the task says of it beside: see `Task.detail`."""
    made: dict[str, dict[str, Any]] = {}
    for name, found in evaluations.items():
        labels, logits = (array[found.counted] for array in (splits[name].labels, found.logits))
        made[name] = found.scores | task.detail(logits, labels)
    return made


def predictions(
    task: Task, splits: Mapping[str, Split], evaluations: dict[str, Evaluation]
) -> Iterator[dict[str, Any]]:
    """The lines of `predictions.jsonl`: every example that was counted, by split, in the order of the split.

    Each has `split`, `id`, and what `Task.line` says.
    """
    for name, found in evaluations.items():
        split = splits[name]
        for i in np.flatnonzero(found.counted):
            yield {"split": name, "id": split.ids[i], **task.line(found.logits[i], split.labels[i])}
