"""Exact evaluation: every readable example of a split counts once, for any batch size and number of devices."""

import dataclasses
import functools
from collections.abc import Callable, Iterator, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from tltrain.cache import forward
from tltrain.cache.inputs import SplitInputs, batch_shapes
from tltrain.data import packing, pipeline
from tltrain.data.split import Split
from tltrain.models import zoo
from tltrain.models.classifier import Shapes
from tltrain.runtime import console, hosts, pace, parallel
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

    def of_counted(self, array: np.ndarray) -> np.ndarray:
        """The rows of `array` `[N, ...]` that count; itself where all do."""
        return array if self.counted.all() else array[self.counted]


def prepare(setup: Setup, inputs: SplitInputs) -> None:
    """Compiles what `over` is going to run for `inputs`, if this process has not done so."""
    for shapes in inputs.shapes(None):
        forward.compiled(forward.program(setup, inputs.start, setup.num_stages, shapes))
        _head_step_of(setup, packing.num_rows(shapes))


def evaluated(setup: Setup, variables: dict, inputs: SplitInputs) -> Iterator[pipeline.Batch]:
    """Batches that hold every example of `inputs` once, with pooled features in place of theirs, on the devices."""
    batches = inputs.batches(None, 0)
    return forward.activations(setup, inputs.start, setup.num_stages, variables, batches)


def _head_step_of(setup, num_rows):
    features = jax.ShapeDtypeStruct((num_rows, zoo.num_features(setup.model)), jnp.float32)
    batch = Shapes.of(batch_shapes(setup, features))
    return _head_step(setup.model, setup.task, batch, setup.local_mesh, setup.config.parallel)


@functools.cache
def _head_step(model, task, batch, mesh, mode):
    head = {"params": {"head": zoo.shapes(model)["params"]["head"]}}
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
    `[N, C]`, pooled features are written to it. None where `stop()` became true. Each process does its part:
    all get the scores of the whole split, the writer alone the rest of it.
    """
    mesh = setup.local_mesh
    head = parallel.replicate({"params": {"head": variables["params"]["head"]}}, mesh)
    logits = np.zeros((len(examples.ids), setup.model.num_outputs), np.float32)
    counted, total, stopped = np.zeros(len(logits), bool), metrics.Total(), False
    batches, done = evaluated(setup, variables, inputs), 0
    with (
        pace.at(pace.STEADY, f"{title} from {inputs.start}"),
        console.progress(title, examples.num_examples) as update,
    ):
        for batch in parallel.prefetch(batches, mesh, setup.config.parallel):
            head_step = _head_step_of(setup, len(batch["index"]))
            sums, of_rows = jax.device_get(head_step(head, batch))
            total.add(sums)
            mask = np.asarray(batch["mask"])
            index = np.asarray(batch["index"])[mask]
            logits[index], counted[index] = of_rows[mask], True
            if features is not None:
                features[index] = np.asarray(batch["inputs"])[mask]
            done += len(index)
            update(done)
            if stopped := stop():
                break
    own = {"stopped": stopped, "total": dataclasses.asdict(total)}
    rows = {} if hosts.is_writer() else {"counted": np.flatnonzero(counted), "logits": logits[counted]}
    parts = hosts.collect(title, own | rows)

    def of_all():
        if any(part["stopped"] for part in parts):
            return None
        for part in parts[1:]:
            logits[part["counted"]], counted[part["counted"]] = part["logits"], True
        whole = metrics.Total.sum(metrics.Total(**part["total"]) for part in parts)
        return of_logits(setup.task, whole, logits, counted, examples.labels).scores

    scores = hosts.on_writer(of_all)
    return None if scores is None else Evaluation(scores, logits, counted)


def of_logits(
    task: Task, total: metrics.Total, logits: np.ndarray, counted: np.ndarray, labels: np.ndarray
) -> Evaluation:
    """That of a split: the `total` over its examples, the `logits` of those `counted`, the `labels` `[N, ...]`."""
    assert total.count == counted.sum(), "every example is counted exactly once"
    found = Evaluation(total.summary(task.metric), logits, counted)
    found.scores.update(task.summary(found.of_counted(logits), found.of_counted(labels)))
    return found


def in_detail(task: Task, splits: Mapping[str, Split], evaluations: dict[str, Evaluation]) -> dict[str, dict[str, Any]]:
    """The scores of each split, and what the task says of it beside: see `Task.detail`."""
    made: dict[str, dict[str, Any]] = {}
    for name, found in evaluations.items():
        labels, logits = map(found.of_counted, (splits[name].labels, found.logits))
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
