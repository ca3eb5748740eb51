"""A head without a kernel: the votes of the nearest training examples."""

from typing import NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

TEMPERATURE = 0.07  # of a vote
_LEAST = 1e-6  # share of the votes that a class is given at least: its logarithm is a logit
_SHORTEST = 1e-12  # length by which features are divided at least


class Bank(NamedTuple):
    """Which examples vote: the nearest `num_neighbors` of `num_examples`, or all where there are fewer.

    Where the classes are `exclusive` an example is of one of several outputs; else each output is there or not.
    """

    num_examples: int
    num_neighbors: int
    exclusive: bool


class Neighbors(nn.Module):
    """Pooled features to logits: the logarithms of the shares that classes have of the votes, or their log odds.

    A vote counts `exp(similarity / TEMPERATURE)` by the cosine, as in DINO (Caron et al. 2021, arXiv 2104.14294) and
    DINOv2 (Oquab et al. 2023, arXiv 2304.07193). Variables: those of `filled`.
    """

    num_outputs: int
    bank: Bank

    @nn.compact
    def __call__(self, features: jax.Array) -> jax.Array:
        """Logits float32 `[B, num_outputs]` of float32 `[B, C]`."""
        count, zeros = self.bank.num_examples, nn.initializers.zeros_init()
        known = self.param("features", zeros, (count, features.shape[-1]), jnp.float32)
        targets = self.param("targets", zeros, (count, self.num_outputs), jnp.bool_)
        mask = self.param("mask", zeros, (count,), jnp.bool_)
        lengths = jnp.linalg.norm(features, axis=-1, keepdims=True)
        # an accelerator's default precision would blur what is near
        similar = jnp.matmul(features / jnp.maximum(lengths, _SHORTEST), known.T, precision="highest")
        nearest, index = jax.lax.top_k(jnp.where(mask, similar, -jnp.inf), min(self.bank.num_neighbors, count))
        votes = jnp.exp((nearest - nearest[:, :1]) / TEMPERATURE)
        there = jnp.where(jnp.take(targets, index, axis=0), votes[..., None], 0.0).sum(1) / votes.sum(1, keepdims=True)
        logits = jnp.log(jnp.maximum(there, _LEAST))
        if self.bank.exclusive and self.num_outputs > 1:
            return logits
        return logits - jnp.log(jnp.maximum(1 - there, _LEAST))


def filled(features: np.ndarray, targets: np.ndarray, mask: np.ndarray) -> dict[str, np.ndarray]:
    """The variables of `Neighbors`: `features` `[N, C]` at length one, the bools `targets` `[N, D]` and `mask` `[N]`.

    Where `mask` is False a row stands for no example, and is nobody's neighbour.
    """
    lengths = np.linalg.norm(features, axis=1, keepdims=True)
    return {"features": features / np.maximum(lengths, _SHORTEST), "targets": targets, "mask": mask}
