"""Mixup and CutMix on the device: each image is mixed with its partner, the same row of the batch reversed."""

import jax
import jax.numpy as jnp

from tltrain.data.pipeline import Batch
from tltrain.runtime import parallel


def mixed(batch: Batch, key: jax.Array, mixup: float, cutmix: float, axis_name: str | None) -> Batch:
    """`batch` with its images mixed, all of a step by one share.

    Mixup (Zhang et al. 2018, arXiv 1710.09412) blends two images, CutMix (Yun et al. 2019, arXiv 1905.04899) pastes a
    box of one into the other. Their share is drawn from Beta(alpha, alpha); where both are on, one of the two is drawn
    each step with equal chance. An image whose partner is masked stays as it is.

    Args:
        batch: with `inputs` uint8 `[B, H, W, 3]`.
        key: of the step, the same on all devices.
        mixup: alpha of mixup, 0: off.
        cutmix: alpha of CutMix, 0: off; not both are.
        axis_name: mapped axis along which the global batch is divided; None where `batch` is global.

    Returns:
        The batch with `inputs` float32; `label` is that of the larger weight, `other` that of the smaller,
        and `share` float32 `[B]`, from 0.5 to 1, is the weight of `label`.
    """
    fields = {name: batch[name] for name in ("inputs", "label", "mask")}
    partner = parallel.reverse(fields, axis_name)
    keep = jnp.where(partner["mask"][:, None, None], _weights(key, batch["inputs"].shape[1:3], mixup, cutmix), 1.0)
    own, other = (tree["inputs"].astype(jnp.float32) for tree in (batch, partner))
    inputs = keep[..., None] * own + (1 - keep[..., None]) * other
    share = keep.mean((1, 2))
    labels = batch["label"], partner["label"]
    larger = (share >= 0.5).reshape(-1, *(1 for _ in labels[0].shape[1:]))
    return batch | {
        "inputs": inputs,
        "label": jnp.where(larger, *labels),
        "other": jnp.where(larger, *reversed(labels)),
        "share": jnp.maximum(share, 1 - share),
    }


def _weights(key, size, mixup, cutmix):
    """The weight of the own image at each pixel `[H, W]`."""
    choose, draw, place = jax.random.split(key, 3)
    cut = jax.random.bernoulli(choose) if mixup and cutmix else bool(cutmix)
    alpha = jnp.where(cut, cutmix, mixup)
    share = jax.random.beta(draw, alpha, alpha)
    return jnp.where(cut, 1.0 - _box(place, size, 1 - share), jnp.broadcast_to(share, size))


def _box(key, size, area):
    """1 in a box of `area` of the image around a random point, 0 elsewhere; what lies outside the image is cut off."""
    inside = []
    for length, centre in zip(size, jax.random.uniform(key, (2,)), strict=True):
        half = jnp.sqrt(area) * length / 2
        position = jnp.arange(length) + 0.5
        inside.append(jnp.abs(position - centre * length) < half)
    return (inside[0][:, None] & inside[1]).astype(jnp.float32)
