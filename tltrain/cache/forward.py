"""The compiled forward pass of frozen stages, over batches, on all cores."""

import collections
import functools
import os
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any, NamedTuple, TypeVar

import jax
from jax.sharding import Mesh

from tltrain.data.pipeline import Batch
from tltrain.models import zoo
from tltrain.models.classifier import Classifier, Shapes, frozen_constants, run_frozen
from tltrain.models.layers import forward_options
from tltrain.runtime import parallel, signals
from tltrain.training.setup import Setup

Result = TypeVar("Result")


class Program(NamedTuple):
    """Stages `[start, stop)` of `model` for batches of the shapes `batch`, divided over `mesh`."""

    model: Classifier
    start: int
    stop: int
    batch: Shapes
    mesh: Mesh


def program(setup: Setup, start: int, stop: int, inputs: Any) -> Program:
    """Stages `[start, stop)` for batches of inputs like `inputs`, arrays or shapes."""
    return Program(setup.model, start, stop, Shapes.of(inputs), setup.local_mesh)


def batch_of(row: Any, size: int) -> Any:
    """The shapes of a batch of `size` rows like `row`, arrays or shapes."""
    return jax.tree.map(lambda leaf: jax.ShapeDtypeStruct((size, *leaf.shape), leaf.dtype), row)


@functools.cache
def _lowered(program: Program) -> Any:
    run = functools.partial(run_frozen, program.model, start=program.start, stop=program.stop)
    jitted = parallel.divided(run, program.mesh, (False, True), True, compiler_options=forward_options())
    shapes = zoo.shapes(program.model)
    shapes = shapes | jax.eval_shape(_constants(program), shapes)
    return jitted.lower(shapes, program.batch.tree)


@functools.cache
def _constants(program: Program) -> Callable[[dict], dict]:
    make = functools.partial(
        frozen_constants, program.model, x=program.batch.tree, start=program.start, stop=program.stop
    )
    return jax.jit(make, out_shardings=parallel.shardings(program.mesh)[0])


def result(program: Program) -> Any:
    """What `program` makes of a batch, as shapes, without compiling it."""
    return jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype), _lowered(program).out_info)


@functools.cache
def compiled(program: Program) -> Callable[[dict, Any], Any]:
    """`run_frozen` as a function of `(constants, x)`, compiled once a process; threads may call it side by side."""
    with signals.abandonable("compiling"):
        return _lowered(program).compile()


def constants(program: Program, variables: dict) -> dict:
    """What `compiled(program)` takes of `variables`: on all devices, with all that follows from them alone."""
    replicated = parallel.replicate({name: variables[name] for name in ("params", "batch_stats")}, program.mesh)
    return replicated | _constants(program)(replicated)


def activations(setup: Setup, start: int, stop: int, variables: dict, batches: Iterable[Batch]) -> Iterator[Batch]:
    """`batches` that begin before stage `start`, their inputs replaced by what stages up to `stop` make of them.

    However stages are divided into programs, and whatever stands in the other rows of a batch, a row is bitwise the
    same (on CPU).
    """
    mesh = setup.local_mesh
    frozen: dict[Program, dict] = {}

    def of_batches():
        for batch in batches:
            needed = program(setup, start, stop, batch["inputs"])
            if needed not in frozen:
                frozen[needed] = constants(needed, variables)
            yield needed, batch

    def compute(needed, batch):
        inputs = compiled(needed)(frozen[needed], parallel.put(batch["inputs"], mesh))
        return batch | {"inputs": jax.block_until_ready(inputs)}

    return in_order(compute, of_batches(), mesh)


def in_order(function: Callable[..., Result], arguments: Iterable[tuple], mesh: Mesh) -> Iterator[Result]:
    """Results of `function(*argument)`, which runs a program on `mesh`, in order, from as many threads as pay off.

    On one CPU device batches side by side keep all cores busy to the end; on an accelerator the transfer of one batch
    overlaps with the computation of another. Programs that span devices must start in one order on all of them.
    """
    threads = min(os.cpu_count() or 1, 8) if jax.default_backend() == "cpu" else 2
    threads = threads if mesh.size == 1 else 1
    waiting: collections.deque[Future[Result]] = collections.deque()
    with ThreadPoolExecutor(threads) as pool:
        for argument in arguments:
            waiting.append(pool.submit(function, *argument))
            if len(waiting) >= 2 * threads:
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()
