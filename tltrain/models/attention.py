"""Attention among the tokens of an image, or of each row of a packed batch, see `tltrain/data/packing.py`."""

from typing import Any

import jax
import jax.numpy as jnp

from tltrain.models.convolution import on_cpu, on_gpu


def attention(q: jax.Array, k: jax.Array, v: jax.Array, packed: dict[str, Any], num_heads: int) -> jax.Array:
    """Scaled dot-product attention (Vaswani et al. 2017, arXiv 1706.03762) of `q k v` `[G, T, H]`, each `[G, T, H]`.

    A token attends to all tokens of its row.
    """
    q, k, v = (rows_of(x, packed) for x in (q, k, v))
    shape = q.shape
    q, k, v = (x.reshape(*x.shape[:-1], num_heads, -1) for x in (q, k, v))
    there = jnp.arange(shape[-2]) < packed["length"][..., None]
    return tokens_of(_of_heads(q, k, v, there).reshape(shape), packed)


def attend(q: jax.Array, k: jax.Array, v: jax.Array, num_heads: int) -> jax.Array:
    """The same of `q` `[B, L, H]` over all of `k v` `[B, T, H]`, none of them padding: `[B, L, H]`."""
    shape = q.shape
    q, k, v = (x.reshape(*x.shape[:-1], num_heads, -1) for x in (q, k, v))
    return _of_heads(q, k, v, None).reshape(shape)


def _of_heads(q, k, v, there):
    """Of heads `[..., L, N, D]` over the keys that are `there` `[..., T]`, None: all.

    The one place that looks at the platform: on CPU products of matrices that lie together are 1.5 times as fast as
    what `dot_product_attention` becomes there; on a GPU cuDNN's flash attention takes halves, without a mask.
    """
    if not on_cpu():
        flat = [x.reshape(-1, *x.shape[-3:]) for x in (q, k, v)]
        mask = None if there is None else there.reshape(-1, 1, 1, there.shape[-1])
        is_flash = on_gpu() and mask is None and q.dtype == jnp.bfloat16 and q.shape == k.shape
        implementation = "cudnn" if is_flash else None
        return jax.nn.dot_product_attention(*flat, mask=mask, implementation=implementation).reshape(q.shape)
    q, k, v = (x.swapaxes(-2, -3) for x in (q * q.shape[-1] ** -0.5, k, v))
    scores = (q @ k.swapaxes(-1, -2)).astype(jnp.float32)
    if there is not None:  # additive: rows without tokens pass
        scores += jnp.where(there, 0.0, jnp.finfo(jnp.float32).min)[..., None, None, :]
    return (jax.nn.softmax(scores, -1).astype(v.dtype) @ v).swapaxes(-2, -3)


def rows_of(x: jax.Array, packed: dict[str, Any]) -> jax.Array:
    """Tokens `[G, T, H]` as rows `[G, R, L, H]`, zero beyond their ends."""
    return _rows(x, packed["token"], packed["slot"])


def tokens_of(y: jax.Array, packed: dict[str, Any]) -> jax.Array:
    """Rows `[G, R, L, H]` as tokens `[G, T, H]`, zero for those of no row."""
    return _tokens(y, packed["token"], packed["slot"])


# Each undoes the other, so the gradient of one is the other: a gather, where XLA would scatter and add row by row.


@jax.custom_vjp
def _rows(x, token, slot):
    return _gather(x, token)


@jax.custom_vjp
def _tokens(y, token, slot):
    return _gather(y.reshape(y.shape[0], -1, y.shape[-1]), slot)


def _gather(x, index):
    return jax.vmap(lambda x, i: x.at[i].get(mode="fill", fill_value=0))(x, index)


_rows.defvjp(
    lambda x, token, slot: (_rows(x, token, slot), (token, slot)),
    lambda kept, gradient: (_tokens(gradient, *kept), None, None),
)
_tokens.defvjp(
    lambda y, token, slot: (_tokens(y, token, slot), (token, slot)),
    lambda kept, gradient: (_rows(gradient, *kept), None, None),
)
