"""Layers of transformers of images (Dosovitskiy et al. 2021, arXiv 2010.11929): normalisation comes before each part.

Shapes: `B` batch, `H W` image, `T` tokens, `C` features.
"""

import functools
from collections.abc import Callable
from typing import NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp

from tltrain.models.attention import attend
from tltrain.models.layers import Conv, LayerScale, constant, gelu
from tltrain.models.positions import resized

Norm = Callable[..., nn.Module]

# by their names in files of the Hub
ACTIVATIONS: dict[str, Callable[[jax.Array], jax.Array]] = {
    "gelu": gelu,
    "gelu_new": nn.gelu,
    "gelu_pytorch_tanh": nn.gelu,
    "quick_gelu": lambda x: x * nn.sigmoid(1.702 * x),
    "relu": nn.relu,
}


class Names(NamedTuple):
    """What a family calls its layers, as in files of the Hub."""

    patches: str
    positions: str
    query: str
    key: str
    value: str
    attended: str
    norm_before: str  # of attention
    norm_after: str
    up: str
    down: str


class Sizes(NamedTuple):
    """Of one layer: features of its tokens and between its dense layers, heads, and what is special in it.

    `gated` is SwiGLU (Shazeer 2020, arXiv 2002.05202), `scaled` LayerScale (Touvron et al. 2021, arXiv 2103.17239).
    """

    features: int
    between: int
    num_heads: int
    activation: str
    gated: bool
    scaled: bool


class Learned(nn.Module):
    """An array that is learned as it is: a token, positions. Parameter `value`, float32."""

    shape: tuple[int, ...]

    @nn.compact
    def __call__(self) -> jax.Array:
        """The array."""
        return self.param("value", nn.initializers.normal(0.02), self.shape, jnp.float32)


class Embeddings(nn.Module):
    """Patches of `patch` pixels a side as tokens, after those of `tokens`; positions are added.

    Positions are learned for a square of `grid` patches a side, and resized to that of the image; without
    `placed_tokens` they are of patches alone. `registers` tokens without a position stand between (Darcet et al. 2023,
    arXiv 2309.16588).
    """

    patch: int
    grid: int
    features: int
    names: Names
    tokens: tuple[tuple[str, tuple[int, ...]], ...]  # the name of each, and its shape: [C] or [1, 1, C]
    placed_tokens: bool
    positions_shape: tuple[int, ...]  # before the last two axes, of files
    registers: int
    antialias: bool
    use_bias: bool
    norm: tuple[str, Norm] | None

    @nn.compact
    def __call__(self, x: jax.Array, train: bool) -> jax.Array:
        """Maps scaled pixels `[B, H, W, 3]` to `[B, T, C]`."""
        sides, valid = (self.patch, self.patch), ((0, 0), (0, 0))
        x = Conv(self.features, sides, sides, padding=valid, use_bias=self.use_bias, name=self.names.patches)(x)
        batch, height, width, _ = x.shape
        before = [Learned(shape, name=name)().reshape(1, 1, -1) for name, shape in self.tokens]
        num_placed = len(before) if self.placed_tokens else 0
        count = num_placed + self.grid**2
        places = Learned((*self.positions_shape, count, self.features), name=self.names.positions)
        learned = places().reshape(1, count, self.features)
        of_patches = constant(
            places,
            "resized",
            lambda: resized(learned[:, num_placed:], (self.grid,) * 2, (height, width), self.antialias),
        )
        x = x.reshape(batch, -1, self.features) + of_patches.astype(x.dtype)
        if num_placed:
            before = [token + learned[:, i : i + 1] for i, token in enumerate(before)]
        if self.registers:
            before.append(Learned((1, self.registers, self.features), name="register_tokens")())
        x = jnp.concatenate([*(jnp.broadcast_to(t, (batch, *t.shape[1:])).astype(x.dtype) for t in before), x], axis=1)
        return x if self.norm is None else self.norm[1](name=self.norm[0])(x)


class Layer(nn.Module):
    """Attention among tokens, then dense layers on each, each added to what went in.

    `first_only` gives the first token alone, where no other is used after it.
    """

    names: Names
    sizes: Sizes
    first_only: bool
    norm: Norm
    dtype: jnp.dtype

    @nn.compact
    def __call__(self, x: jax.Array, train: bool) -> jax.Array:
        """Maps `[B, T, C]` to the same shape, or to `[B, 1, C]`."""
        names, sizes = self.names, self.sizes
        dense = functools.partial(nn.Dense, dtype=self.dtype)

        def scale(y, name):
            return LayerScale(name=name)(y) if sizes.scaled else y

        normed = self.norm(name=names.norm_before)(x)
        kept = slice(0, 1 if self.first_only else None)
        query = dense(sizes.features, name=names.query)(normed[:, kept])
        key, value = (dense(sizes.features, name=name)(normed) for name in (names.key, names.value))
        attended = dense(sizes.features, name=names.attended)(attend(query, key, value, sizes.num_heads))
        x = x[:, kept] + scale(attended, "layer_scale1")
        y = dense(sizes.between * (2 if sizes.gated else 1), name=names.up)(self.norm(name=names.norm_after)(x))
        if sizes.gated:
            gate, y = jnp.split(y, 2, axis=-1)
            y = nn.silu(gate) * y
        else:
            y = ACTIVATIONS[sizes.activation](y)
        return x + scale(dense(sizes.features, name=names.down)(y), "layer_scale2")


class Normalized(nn.Module):
    """The normalisation after the last layer, a stage of its own by the same name."""

    norm: Norm

    @nn.compact
    def __call__(self, x: jax.Array, train: bool) -> jax.Array:
        """Maps `[B, T, C]` to the same shape."""
        return self.norm(name=self.name)(x)


class AttentionPooling(nn.Module):
    """One learned token that attends to all others, then dense layers (Lee et al. 2019, arXiv 1810.00825)."""

    sizes: Sizes
    norm: Norm
    dtype: jnp.dtype

    @nn.compact
    def __call__(self, x: jax.Array, train: bool) -> jax.Array:
        """Maps `[B, T, C]` to `[B, 1, C]`."""
        sizes = self.sizes
        dense = functools.partial(nn.Dense, dtype=self.dtype)
        probe = Learned((1, 1, sizes.features), name="probe")()
        probe = jnp.broadcast_to(probe, (x.shape[0], *probe.shape[1:])).astype(x.dtype)
        query, key, value = (
            dense(sizes.features, name=f"attention.{name}")(y)
            for name, y in (("query", probe), ("key", x), ("value", x))
        )
        x = dense(sizes.features, name="attention.out_proj")(attend(query, key, value, sizes.num_heads))
        y = dense(sizes.between, name="mlp.fc1")(self.norm(name="layernorm")(x))
        return x + dense(sizes.features, name="mlp.fc2")(ACTIVATIONS[sizes.activation](y))
