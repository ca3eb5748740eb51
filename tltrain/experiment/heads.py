"""Many heads over the same stored features: their steps are one `vmap` of the steps of one head.

Heads stand in a grid `[seeds, arms]`. Those of a seed see the same batches, so a batch is read once for all of them.
"""

import functools
from collections.abc import Callable, Iterator, Sequence
from types import SimpleNamespace
from typing import Any, NamedTuple

import flax.struct
import jax
import numpy as np
from ml_collections import ConfigDict

from tltrain.cache.inputs import SplitInputs, batch_shapes
from tltrain.errors import TerminatedError
from tltrain.experiment import evaluation
from tltrain.models import freeze
from tltrain.runtime import console, parallel
from tltrain.runtime.process import Process
from tltrain.training import metrics, optim, steps
from tltrain.training.setup import Setup

_IN_FLIGHT = 50  # steps whose results may wait on the device


@flax.struct.dataclass
class Heads:
    """A grid of heads: the state of each (its `params` hold the head alone) and the numbers it is trained by."""

    state: steps.TrainState
    seed: Any
    learning_rate: Any
    weight_decay: Any


class Group(NamedTuple):
    """What all heads of a grid share; the config of `setup` is that of any of them."""

    setup: Setup
    process: Process

    @property
    def plan(self) -> freeze.Plan:
        """That of their probe."""
        return self.setup.plan("probe")


def initial(group: Group, configs: Sequence[Sequence[ConfigDict]], params: Sequence[Any]) -> Heads:
    """The grid at step 0: `configs` `[seeds, arms]`, `params` the initial `params["head"]` of each seed."""
    probe, plan = group.setup.config.probe, group.plan
    tx = optim.make(probe, optim.make_schedule(probe, 1), plan, plan)
    states = [steps.create_state({"backbone": {}, "head": head}, {}, tx, plan, probe.ema) for head in params]
    num_arms = len(configs[0])
    state = jax.tree.map(lambda *leaves: np.stack([np.stack([leaf] * num_arms) for leaf in leaves]), *states)

    def numbers(read, dtype):
        return np.asarray([[read(config) for config in row] for row in configs], dtype)

    return Heads(
        state,
        numbers(lambda c: c.seed, np.int32),
        numbers(lambda c: c.probe.learning_rate, np.float32),
        numbers(lambda c: c.probe.weight_decay, np.float32),
    )


def at(tree: Any, place: tuple[int, int]) -> Any:
    """The leaves of the head at `place` of the grid, on the host."""
    return jax.tree.map(lambda leaf: np.asarray(leaf)[place], tree)


def _train_step(heads, batch, *, group: Group, axis_name: str | None = None):
    """`steps.train_step` of each head; the seeds are the second axis of `batch`."""
    setup, plan = group.setup, group.plan
    recipe = steps.recipe(setup.config, "probe", setup.task, plan, plan.cut)

    def one(head, batch):
        numbers = {"learning_rate": head.learning_rate, "weight_decay": head.weight_decay}
        probe = SimpleNamespace(**setup.config.probe.to_dict() | numbers)
        state, result = steps.train_step(
            head.state,
            batch,
            model=setup.model,
            tx=optim.make(probe, optim.make_schedule(probe, setup.steps_per_epoch), plan, plan),
            recipe=recipe._replace(seed=head.seed),
            axis_name=axis_name,
        )
        return head.replace(state=state), result

    return jax.vmap(jax.vmap(one, (0, None)), (0, 1))(heads, batch)


def _eval_step(heads, batch, *, group: Group, axis_name: str | None = None):
    """`steps.eval_step` of each head: sums `[seeds, arms]`, logits `[B, seeds, arms, D]`."""

    def one(head, batch):
        fixed = {"model": group.setup.model, "task": group.setup.task}
        return steps.eval_step(steps.variables(head.state, group.plan), batch, **fixed, axis_name=axis_name)

    return jax.vmap(jax.vmap(one, (0, None), (0, 1)), (0, 1), (0, 1))(heads, batch)


def compile_train(group: Group, heads: Heads, inputs: Sequence[SplitInputs]) -> Callable[[Heads, Any], Any]:
    """The compiled training step of the grid, for the stored `inputs` of each seed; it consumes the heads."""
    return _compile(group, _train_step, heads, inputs, donate=True)


def compile_eval(group: Group, heads: Heads, inputs: Sequence[SplitInputs]) -> Callable[[Heads, Any], Any]:
    """The compiled evaluation step of the grid, for the stored `inputs` of each seed."""
    return _compile(group, _eval_step, heads, inputs, per_example=True)


def _compile(group, step, heads, inputs, **options):
    shapes = jax.tree.map(
        lambda leaf: jax.ShapeDtypeStruct((leaf.shape[0], len(inputs), *leaf.shape[1:]), leaf.dtype),
        batch_shapes(group.setup, inputs[0].shapes(None)[0]),
    )
    step = functools.partial(step, group=group)
    with group.process.clock("compile"):
        return parallel.compile_step(step, heads, shapes, group.setup.mesh, group.setup.config.parallel, **options)


def train_epoch(
    group: Group, train_step: Callable[[Heads, Any], Any], heads: Heads, inputs: Sequence[SplitInputs], epoch: int
) -> tuple[Heads, list[Any]]:
    """The heads after epoch `epoch`, and what `steps.train_step` told of each step, leaves `[seeds, arms]`."""
    finished: list[Any] = []
    pending: list[Any] = []
    num_epochs, num_steps = group.setup.config.probe.epochs, group.setup.steps_per_epoch
    title = f"{heads.seed.size} probes {epoch + 1}/{num_epochs}"
    with console.progress(title, num_steps) as update, group.process.clock("train"):
        for batch in _batches(group, inputs, epoch):
            heads, result = train_step(heads, batch)
            pending.append(result)
            if len(pending) == _IN_FLIGHT or len(finished) + len(pending) == num_steps:
                finished += jax.device_get(pending)
                pending.clear()
                update(len(finished))
    return heads, finished


def evaluate_over(
    group: Group, eval_step: Callable[[Heads, Any], Any], heads: Heads, inputs: Sequence[SplitInputs], split: str
) -> dict[tuple[int, int], evaluation.Evaluation]:
    """What `evaluation.over` tells of each head, by its place in the grid."""
    labels, grid = group.setup.data.splits[split].labels, heads.seed.shape
    totals = {place: metrics.Total() for place in np.ndindex(grid)}
    logits = np.zeros((len(labels), *grid, group.setup.model.num_outputs), np.float32)
    counted = np.zeros((len(labels), len(inputs)), bool)
    with group.process.clock("eval"):
        for batch in _batches(group, inputs, None):
            sums, of_rows = jax.device_get(eval_step(heads, batch))
            for place, total in totals.items():
                total.add(at(sums, place))
            index, mask = np.asarray(batch["index"])[:, 0], np.asarray(batch["mask"])
            real = mask.any(1)  # rows that fill the last batch repeat others
            logits[index[real]], counted[index[real]] = of_rows[real], mask[real]
        return {
            (s, a): evaluation.of_logits(group.setup.task, total, logits[:, s, a], counted[:, s], labels)
            for (s, a), total in totals.items()
        }


def _batches(group, inputs, epoch) -> Iterator[Any]:
    """The batches of each seed side by side along the second axis, on the devices."""

    def stacked():
        for parts in zip(*(split.batches(epoch, 0) for split in inputs), strict=True):
            yield jax.tree.map(lambda *arrays: np.stack(arrays, 1), *parts)

    for batch in parallel.prefetch(stacked(), group.setup.mesh, group.setup.config.parallel):
        if group.process.stop():
            raise TerminatedError("stopped while probes were trained together; the same command trains them again")
        yield batch
