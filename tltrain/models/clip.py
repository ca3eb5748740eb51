"""The image tower of CLIP (Radford et al. 2021, arXiv 2103.00020) as in `modeling_clip.py` of transformers.

Features are those before the projection to the space of texts.
"""

import functools
from collections.abc import Callable

from tltrain.models.transformer import Names
from tltrain.models.vision_transformer import VisionTransformer

NAMES = Names(
    patches="patch_embedding",
    positions="position_embedding",
    query="self_attn.q_proj",
    key="self_attn.k_proj",
    value="self_attn.v_proj",
    attended="self_attn.out_proj",
    norm_before="layer_norm1",
    norm_after="layer_norm2",
    up="mlp.fc1",
    down="mlp.fc2",
)
LAYERS = "encoder.layers."
OTHER_TOWER = (r"text_model\..*", r"logit_scale", r"logit_bias")


class CLIP(VisionTransformer):
    """Tokens are normalised before the first layer too, by `pre_layrnorm`, as files call it."""

    epsilon: float = 1e-5
    activation: str = "quick_gelu"
    patch_size: int = 32
    grid: int = 7
    tokens: tuple[str, ...] = ("class_embedding",)
    pixels: str = "clip"

    families = ("clip", "clip_vision_model")
    hub_prefixes = ("vision_model.",)
    hub_unused = (*OTHER_TOWER, r"(text|visual)_projection\..*", r"embeddings\.position_ids")
    layers_name = LAYERS
    last_norm = "post_layernorm"
    norm_of_embeddings = "pre_layrnorm"
    patch_bias = False
    token_shape = ()
    positions_shape = ()

    @property
    def names(self):
        return NAMES


def _variant(name, patch_size, hidden_size, num_layers, sha256=None):
    return functools.partial(
        CLIP,
        variant=f"openai/clip-vit-{name}",
        patch_size=patch_size,
        grid=224 // patch_size,
        hidden_size=hidden_size,
        num_layers=num_layers,
        num_heads=hidden_size // 64,
        intermediate_size=4 * hidden_size,
        sha256=sha256,
    )


# the revisions of B/32 and B/16 are those that have a model.safetensors, which main has not
VARIANTS: dict[str, Callable[..., CLIP]] = {
    "clip": CLIP,
    "clip_base_32": _variant(
        *("base-patch32@b33cedfd0df4e43b8238760678fcc89e1a0d38b3", 32, 768, 12),
        "99d28a652e6ec46629ab7047a0ac82c69b1fe11e0ce672c43af65d3a9a3fc05d",
    ),
    "clip_base_16": _variant("base-patch16@5ef227a78de3f75873f373246dac80def63b0003", 16, 768, 12),
    "clip_large_14": _variant(
        *("large-patch14@32bd64288804d66eefd0ccbe215aa642df71cc41", 14, 1024, 24),
        "a2bf730a0c7debf160f7a6b50b3aaf3703e7e88ac73de7a314903141db026dcb",
    ),
}
