"""Backbone -> pooling -> dropout -> head, which is dense, or of nearest neighbours."""

import functools
import math
from collections.abc import Callable
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp

from tltrain.models.backbone import Backbone, cast
from tltrain.models.layers import dropout, map_chunks
from tltrain.models.neighbors import Bank, Neighbors

HEAD_INIT = nn.initializers.glorot_uniform()  # as Keras' Dense
_SMALL_MAP = 20 * 20  # positions; the activations of several examples of this size fit a processor's cache together


class Shapes(NamedTuple):
    """Shapes and dtypes of a tree of arrays as one hashable value."""

    leaves: tuple[jax.ShapeDtypeStruct, ...]
    structure: Any

    @classmethod
    def of(cls, tree: Any) -> "Shapes":
        """Those of arrays or shapes."""
        leaves, structure = jax.tree.flatten(tree)
        return cls(tuple(jax.ShapeDtypeStruct(leaf.shape, leaf.dtype) for leaf in leaves), structure)

    @property
    def tree(self) -> Any:
        """As a tree of shapes."""
        return jax.tree.unflatten(self.structure, self.leaves)


class Classifier(nn.Module):
    """Rows of examples or stored activations to logits.

    Variables: `{"backbone": {stage: ...}, "head": {"kernel", "bias"}}`; where there is a `bank`, the head is that of
    `Neighbors`.
    """

    backbone: Backbone
    num_outputs: int
    dropout: float
    bank: Bank | None = None

    @nn.compact
    def __call__(
        self,
        x: Any,
        start: int = 0,
        batch_norm_train: bool = False,
        dropout_keys: jax.Array | None = None,
    ) -> jax.Array:
        """Logits `[B, num_outputs]`, float32.

        `x` holds rows of examples where `start` is 0, else the activations before stage `start`, or pooled features
        `[B, C]` after the last stage. With `dropout_keys` `[B]`, row `i` drops features by key `i`;
        with `batch_norm_train` the stages normalise by the batch and move their statistics.
        """
        last = len(self.backbone.stages)
        pooled = x if start == last else self.backbone.pool(self.run(x, start, last, batch_norm_train))
        features = pooled.astype(jnp.float32)
        if dropout_keys is not None:
            features = dropout(features, self.dropout, dropout_keys)
        if self.bank is not None:
            return Neighbors(self.num_outputs, self.bank, name="head")(features)
        return nn.Dense(self.num_outputs, kernel_init=HEAD_INIT, name="head")(features)

    def run(self, x: Any, start: int, stop: int, train: bool = False) -> Any:
        """Activations before stage `stop`, from rows of examples (`start` 0) or from those before stage `start`."""
        if start == stop:
            return x
        x = self.backbone.prepare(x) if start == 0 else cast(x, self.backbone.dtype)
        return self.backbone(x, train, start, stop)


def run_frozen(model: Classifier, variables: dict, x: Any, start: int, stop: int) -> Any:
    """Stages `[start, stop)` in inference mode and without a gradient: what a frozen prefix is, and what is stored.

    Returns the activations before stage `stop`, pooled `[B, C]` after the last. On CPU the batch goes through in
    chunks whose activations stay in the processor's cache: one example while maps are large, eight after.
    """
    if "constants" not in variables:
        variables = variables | frozen_constants(model, variables, x, start, stop)
    last = len(model.backbone.stages)
    one = jax.tree.map(lambda leaf: jax.ShapeDtypeStruct((1, *leaf.shape[1:]), leaf.dtype), x)
    small = _first_small(model, Shapes.of(one), start, stop)

    def stages(begin: int, end: int) -> Callable[[Any], Any]:
        def run(part):
            y = model.apply(variables, part, begin, end, method="run")
            return model.backbone.pool(y) if end == last else y

        return run

    x = map_chunks(stages(start, small), x, 1) if small > start else x
    x = map_chunks(stages(small, stop), x, 8) if small < stop else x
    return jax.lax.stop_gradient(x.astype(jnp.float32) if stop == last else x)


def frozen_constants(model: Classifier, variables: dict, x: Any, start: int, stop: int) -> dict:
    """What `run_frozen` computes of variables alone, to be handed to it among them for many batches like `x`.

    `{"constants": {"backbone": {stage: {layer: {name: value}}}}}`: see `layers.constant`. To be compiled, which drops
    all that is computed of an example.
    """
    example = jax.tree.map(lambda leaf: jnp.zeros((1, *leaf.shape[1:]), leaf.dtype), x)
    found = model.apply(variables, example, start, stop, method="run", mutable=["constants"])[1]
    return {"constants": found.get("constants", {})}


@functools.cache
def _first_small(model, one, start, stop):
    """The first of stages `[start, stop)` on small maps, else `stop`; `one`: shapes of an example before them."""
    x = one.tree
    for stage in range(start, stop):
        if max(math.prod(leaf.shape[1:-1]) for leaf in jax.tree.leaves(x)) <= _SMALL_MAP:
            return stage
        run = functools.partial(model.init_with_output, start=stage, stop=stage + 1, method="run")
        x = jax.eval_shape(run, jax.random.key(0), x)[0]
    return stop
