"""Exact evaluation: every readable example of a split counts once, for any batch size and number of devices."""

from collections.abc import Callable
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh
from ml_collections import ConfigDict

from tltrain import console, metrics, parallel
from tltrain.data import pipeline
from tltrain.data.split import Data
from tltrain.inputs import SplitInputs


def over(
    eval_step: Callable[[Any, Any], tuple[metrics.Metrics, jax.Array]],
    variables: dict,
    inputs: SplitInputs,
    data: Data,
    split: str,
    mesh: Mesh,
    config: ConfigDict,
    stop: Callable[[], bool],
) -> dict[str, Any] | None:
    """`loss` in nats, `accuracy`, `confusion` (true class first), `auc` (two classes) of `variables` over `split`.

    `eval_step` is `steps.eval_step`, compiled for the shapes of `inputs`. None where `stop()` became true on the way.
    """
    examples = data.splits[split]
    total = metrics.Total(len(data.class_names))
    scores, counted = np.zeros(examples.num_examples), np.zeros(examples.num_examples, bool)
    variables = parallel.replicate(variables, mesh)
    num_batches = pipeline.num_batches(examples.num_examples, config.batch_size)
    with console.progress(f"evaluating {split}", num_batches) as update:
        for done, batch in enumerate(parallel.prefetch(inputs.batches(None, 0), mesh, config.parallel), 1):
            sums, logits = jax.device_get(eval_step(variables, batch))
            total.add(sums)
            mask = np.asarray(batch["mask"])
            index = np.asarray(batch["index"])[mask]
            scores[index] = metrics.binary_score(logits)[mask]
            counted[index] = True
            update(done)
            if stop():
                return None
    return summary(total, scores, counted, examples.labels)


def summary(total: metrics.Total, scores: np.ndarray, counted: np.ndarray, labels: np.ndarray) -> dict[str, Any]:
    """What `over` returns: of the `total` over a split, and `scores` `[N]` (log odds) where `counted` `[N]`."""
    assert total.count == counted.sum(), "every example is counted exactly once"
    result = total.summary() | {"confusion": total.confusion.tolist()}
    if len(total.confusion) == 2:
        result["auc"] = metrics.auc(scores[counted], labels[counted] == 1)
    return result
