"""Backbone -> global average pooling -> dropout -> dense head."""

import functools
import math
from collections.abc import Callable

import flax.linen as nn
import jax
import jax.numpy as jnp

from tltrain.models.backbone import Backbone, scale_pixels
from tltrain.models.layers import dropout, map_chunks

HEAD_INIT = nn.initializers.glorot_uniform()  # as Keras' Dense
_SMALL_MAP = 20 * 20  # positions; the activations of several images of this size fit a processor's cache together


class Classifier(nn.Module):
    """Images or stored activations to logits. Variables: `{"backbone": {stage: ...}, "head": {"kernel", "bias"}}`."""

    backbone: Backbone
    num_outputs: int
    dropout: float
    pixels: str

    @nn.compact
    def __call__(
        self,
        x: jax.Array,
        start: int = 0,
        batch_norm_train: bool = False,
        dropout_keys: jax.Array | None = None,
    ) -> jax.Array:
        """Logits `[B, num_outputs]`, float32.

        `x` holds RGB pixels 0..255 `[B, H, W, 3]` where `start` is 0, else the activations before stage `start`, or
        pooled features `[B, C]` after the last stage. With `dropout_keys` `[B]`, row `i` drops features by key `i`;
        with `batch_norm_train` the stages normalise by the batch and move their statistics.
        """
        features = pool(self.run(x, start, len(self.backbone.stages), batch_norm_train))
        if dropout_keys is not None:
            features = dropout(features, self.dropout, dropout_keys)
        return nn.Dense(self.num_outputs, kernel_init=HEAD_INIT, name="head")(features)

    def run(self, x: jax.Array, start: int, stop: int, train: bool = False) -> jax.Array:
        """Activations before stage `stop`, from pixels (`start` 0) or from those before stage `start`."""
        x = scale_pixels(x, self.pixels, self.backbone.dtype) if start == 0 else x
        return self.backbone(x.astype(self.backbone.dtype), train, start, stop) if start < stop else x


def pool(x: jax.Array) -> jax.Array:
    """Mean over the image of `[B, H, W, C]`, float32; `[B, C]` is taken as pooled already."""
    return (x if x.ndim == 2 else x.astype(jnp.float32).mean((1, 2))).astype(jnp.float32)


def run_frozen(model: Classifier, variables: dict, x: jax.Array, start: int, stop: int) -> jax.Array:
    """Stages `[start, stop)` in inference mode and without a gradient: what a frozen prefix is, and what is stored.

    Returns the activations before stage `stop`, pooled `[B, C]` after the last. On CPU the batch goes through in
    chunks whose activations stay in the processor's cache: one image while maps are large, eight after.
    """
    if "constants" not in variables:
        variables = variables | frozen_constants(model, variables, x, start, stop)
    last, small = len(model.backbone.stages), _first_small(model, x.shape[1:], x.dtype, start, stop)

    def stages(begin: int, end: int) -> Callable[[jax.Array], jax.Array]:
        def run(part):
            y = model.apply(variables, part, begin, end, method="run")
            return pool(y) if end == last else y

        return run

    x = map_chunks(stages(start, small), x, 1) if small > start else x
    x = map_chunks(stages(small, stop), x, 8) if small < stop else x
    return jax.lax.stop_gradient(pool(x) if stop == last else x)


def frozen_constants(
    model: Classifier, variables: dict, x: jax.Array | jax.ShapeDtypeStruct, start: int, stop: int
) -> dict:
    """What `run_frozen` computes of variables alone, to be handed to it among them for many batches like `x`.

    `{"constants": {"backbone": {stage: {layer: {name: value}}}}}`: see `layers.constant`. To be compiled, which drops
    all that is computed of an image.
    """
    image = jnp.zeros((1, *x.shape[1:]), x.dtype)
    found = model.apply(variables, image, start, stop, method="run", mutable=["constants"])[1]
    return {"constants": found.get("constants", {})}


@functools.cache
def _first_small(model, shape, dtype, start, stop):
    """The first of stages `[start, stop)` on small maps, else `stop`; `shape` and `dtype`: one image before `start`."""
    x = jax.ShapeDtypeStruct((1, *shape), dtype)
    for stage in range(start, stop):
        if math.prod(x.shape[1:3]) <= _SMALL_MAP:
            return stage
        run = functools.partial(model.init_with_output, start=stage, stop=stage + 1, method="run")
        x = jax.eval_shape(run, jax.random.key(0), x)[0]
    return stop
