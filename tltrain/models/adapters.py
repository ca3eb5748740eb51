"""LoRA (Hu et al. 2021, arXiv 2106.09685): a kernel stays, and the product of two narrow matrices trains beside it.

A layer that has such factors holds two leaves more, float32, `lora_a` `[C, rank]` and `lora_b` `[rank, D]`, for as long
as a phase trains them. Before and after, and wherever a model is evaluated, there is one kernel and nothing to know.
"""

import contextlib
from collections.abc import Collection, Mapping, Sequence
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from tltrain.errors import ConfigError
from tltrain.models.convolution import conv2d
from tltrain.models.layers import Conv

FACTORS = ("lora_a", "lora_b")


class Lora(NamedTuple):
    """Which layers get factors, and how: the product is of rank `rank`, times `alpha / rank`; drawn from `seed`.

    `targets` name layers, see `targeted`.
    """

    rank: int
    alpha: float
    targets: tuple[str, ...]
    seed: int


def targeted(layers: Mapping[str, Mapping[str, Any]], targets: Collection[str]) -> list[str]:
    """Those of the `layers` of a stage, `{name: leaves}`, that get factors: dense ones, and convolutions of one pixel.

    A target is a name, or the end of one after a dot or an underscore: `"query"` is `attention.self.query`. It stands
    for `q_lin` and `q_proj` too, and so do `"key"` and `"value"`. `"all"` is every such layer.
    """
    ends = [f"{mark}{name}" for target in targets for name in _names(target) for mark in "._"]
    return [
        name
        for name, leaves in layers.items()
        if _is_matrix(leaves) and ("all" in targets or f".{name}".endswith(tuple(ends)))
    ]


def _names(target):
    """A target and what else networks call it."""
    others = (f"{target[0]}_lin", f"{target[0]}_proj") if target in ("query", "key", "value") else ()
    return (target, *others)


def _is_matrix(leaves):
    return "kernel" in leaves and set(leaves["kernel"].shape[:-2]) <= {1}


def check(backbone: Mapping[str, Any], stages: Sequence[str], targets: Sequence[str]) -> None:
    """Raises ConfigError where one of `targets` is no layer of the `stages` of `backbone`, arrays or shapes."""
    for target in targets:
        if not any(targeted(backbone[stage], (target,)) for stage in stages):
            known = dict.fromkeys(name for stage in stages for name in targeted(backbone[stage], ("all",)))
            raise ConfigError(
                f"lora.targets has {target!r}, which is no layer after freeze_until with a dense kernel or one of 1x1; "
                f"those are: {', '.join(known) or 'none'}; name them, the end of a name, or 'all'"
            )


def with_factors(params: Any, stages: Sequence[str], lora: Lora | None) -> Any:
    """`params`, arrays or shapes, with factors in the targeted layers of `stages`, whose product is zero.

    `lora_a` is uniform within one over the root of `C`, as in the authors' code: one seed and place, one draw.
    """
    if lora is None:
        return params
    backbone = dict(params["backbone"])
    for stage in stages:
        names = targeted(backbone[stage], lora.targets)
        added = {
            name: backbone[stage][name] | _initial(f"{stage}/{name}", backbone[stage][name], lora) for name in names
        }
        backbone[stage] = backbone[stage] | added
    return params | {"backbone": backbone}


def _initial(place, leaves, lora):
    inputs, outputs = leaves["kernel"].shape[-2:]
    rng = np.random.default_rng([lora.seed, *place.encode()])
    drawn = rng.uniform(-1, 1, (inputs, lora.rank)) / np.sqrt(inputs)
    factors = drawn.astype(np.float32), np.zeros((lora.rank, outputs), np.float32)
    return dict(zip(FACTORS, factors, strict=True))


def merged(params: Any, lora: Lora | None) -> Any:
    """`params` as a model without factors has them: the product of the factors is part of the kernels."""
    if lora is None:
        return params
    scale = lora.alpha / lora.rank

    def of(leaves):
        if not set(FACTORS) <= set(leaves):
            return leaves
        a, b = (leaves[name] for name in FACTORS)
        product = scale * jnp.matmul(a, b, precision="highest")
        others = {name: leaf for name, leaf in leaves.items() if name not in FACTORS}
        return others | {"kernel": leaves["kernel"] + product.reshape(leaves["kernel"].shape)}

    backbone = {
        stage: {name: of(leaves) for name, leaves in layers.items()} for stage, layers in params["backbone"].items()
    }
    return params | {"backbone": backbone}


def applied(lora: Lora | None) -> contextlib.AbstractContextManager[None]:
    """Layers called within the block add what their factors make of their input to what they give.

    The product of the factors is never formed, and the gradient of a kernel that does not train never computed.
    """
    if lora is None:
        return contextlib.nullcontext()
    scale = lora.alpha / lora.rank

    def add(call, arguments, options, context):
        y, layer = call(*arguments, **options), context.module
        if context.method_name != "__call__" or not layer.has_variable("params", FACTORS[0]):
            return y
        a, b = (layer.get_variable("params", name) for name in FACTORS)
        return y + _product(layer, a, scale * b, y.dtype, *arguments)

    return nn.intercept_methods(add)


def _product(layer: nn.Module, a: jax.Array, b: jax.Array, dtype: Any, x: jax.Array, scale: Any = None) -> jax.Array:
    """What factors `a` and `b` make of the input `x` of `layer`; `scale` `[D]` is that of a folded normalisation."""
    if scale is not None:
        b = b * scale
    x, a, b = (array.astype(dtype) for array in (x, a, b))
    if isinstance(layer, Conv):
        return conv2d(x, a[None, None], layer.strides, padding=layer.padding) @ b
    return x @ a @ b
