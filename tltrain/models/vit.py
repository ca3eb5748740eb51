"""ViT (Dosovitskiy et al. 2021, arXiv 2010.11929) as in `modeling_vit.py` of transformers, and what is trained as it.

Weights of AugReg (Steiner et al. 2022, arXiv 2106.10270), DeiT (Touvron et al. 2021, arXiv 2012.12877) and DeiT-3
(Touvron et al. 2022, arXiv 2204.07118). GELU is exact, as transformers and timm have it for all of these; that of Flax,
in which AugReg was trained, is approximated by tanh where nothing else is said.
"""

import functools
from collections.abc import Callable

from tltrain.models.backbone import HUGGING_FACE, Layout
from tltrain.models.transformer import Names
from tltrain.models.vision_transformer import TIMM, VisionTransformer

NAMES = Names(
    patches="patch_embeddings.projection",
    positions="position_embeddings",
    query="attention.attention.query",
    key="attention.attention.key",
    value="attention.attention.value",
    attended="attention.output.dense",
    norm_before="layernorm_before",
    norm_after="layernorm_after",
    up="intermediate.dense",
    down="output.dense",
)


def _flax(attention: int, norm_after: int, mlp: int, positions: str) -> Layout:
    """What files of Flax call the layers, by the numbers of modules within a layer and the name of positions."""
    heads = f"/MultiHeadDotProductAttention_{attention}/"
    return (
        (r"^embeddings\.cls_token$", "cls"),
        (r"^embeddings\.position_embeddings$", positions),
        (r"^embeddings\.patch_embeddings\.projection\.", "embedding/"),
        (r"^layernorm\.", "Transformer/encoder_norm/"),
        (r"^encoder\.layer\.(\d+)", r"Transformer/encoderblock_\1"),
        (r"\.attention\.attention\.(\w+)\.", rf"{heads}\1/"),
        (r"\.attention\.output\.dense\.", f"{heads}out/"),
        (r"\.intermediate\.dense\.", f"/MlpBlock_{mlp}/Dense_0/"),
        (r"\.output\.dense\.", f"/MlpBlock_{mlp}/Dense_1/"),
        (r"\.layernorm_before\.", "/LayerNorm_0/"),
        (r"\.layernorm_after\.", f"/LayerNorm_{norm_after}/"),
        (r"(LayerNorm_\d|encoder_norm)/weight$", r"\1/scale"),
        (r"/weight$", "/kernel"),
    )


# https://github.com/google-research/vision_transformer numbers the modules of a layer, big_vision those of a class; the
# positions of the latter are of patches alone
AUGREG = _flax(1, 2, 3, "Transformer/posembed_input/pos_embedding")
BIG_VISION = _flax(0, 1, 0, "pos_embedding")


class ViT(VisionTransformer):
    """With a class token, which is what is pooled."""

    families = ("vit",)
    hub_prefixes = ("vit.", "deit.")
    hub_unused = (r"embeddings\.mask_token", r"(pooler|classifier|decoder)\..*", r"(head|pre_logits)[./].*")
    hub_layouts = (HUGGING_FACE, TIMM)
    flax_layouts = (AUGREG, BIG_VISION)

    @property
    def names(self):
        return NAMES


def _variant(repository, patch_size, hidden_size, num_layers=12, sha256=None, **fields):
    """One of the Hub for images of 224 pixels, with heads of 64 features."""
    sizes = {"num_heads": hidden_size // 64, "intermediate_size": 4 * hidden_size, "grid": 224 // patch_size}
    return functools.partial(
        ViT,
        variant=repository,
        patch_size=patch_size,
        hidden_size=hidden_size,
        num_layers=num_layers,
        sha256=sha256,
        **(sizes | fields),
    )


_TIMM = {"antialias": True}
_DEIT = _TIMM | {"pixels": "torch"}
_DEIT3 = _DEIT | {"scaled": True, "placed_tokens": False}
# where no revision is said, what is newest there is taken; a run keeps the sha256 of what it was
VARIANTS: dict[str, Callable[..., ViT]] = {
    "vit": ViT,
    # AugReg, trained on ImageNet-21k, then on ImageNet-1k
    "vit_tiny_16": _variant(
        "timm/vit_tiny_patch16_224.augreg_in21k_ft_in1k@7d3afdd0cf93ad84d986eb2d6bcc5812ebd0b106",
        *(16, 192, 12, "fecf81b492bd13ee7a5297cb74d1d417aac8bf7e1b7d96aed89c4691984587ed"),
        **_TIMM,
    ),
    "vit_small_16": _variant(
        "timm/vit_small_patch16_224.augreg_in21k_ft_in1k@7e2c55630205e1266030f18370f4c6ed1a514b52",
        *(16, 384, 12, "79c03c635cdfd798a364a9d8c4e5c0b7255b975ea2c9616046d4f77ab01435aa"),
        **_TIMM,
    ),
    "vit_base_16": _variant(
        "timm/vit_base_patch16_224.augreg2_in21k_ft_in1k@063c6c38a5d8510b2e57df480445e94b231dad2c",
        *(16, 768, 12, "32aa17d6e17b43500f531d5f6dc9bc93e56ed8841b8a75682e1bb295d722405b"),
        **_TIMM,
    ),
    "vit_base_32": _variant("timm/vit_base_patch32_224.augreg_in21k_ft_in1k", 32, 768, **_TIMM),
    "vit_large_16": _variant(
        "timm/vit_large_patch16_224.augreg_in21k_ft_in1k@0930ab3308b84cb2ae091a4a80703c459412a4c7",
        *(16, 1024, 24, "109390825a5bada2864f1b74445a63d29c51ef079c349644bc98996c452f6cf1"),
        **_TIMM,
    ),
    # ImageNet-21k alone
    "vit_base_16_in21k": _variant(
        "google/vit-base-patch16-224-in21k@b4569560a39a0f1af58e3ddaf17facf20ab919b0",
        *(16, 768, 12, "fd4e1169c7aa6c2dbfa8a6448be13b35abc0ee256190857c90009d12c094619b"),
        epsilon=1e-12,
    ),
    "vit_large_16_in21k": _variant(
        "google/vit-large-patch16-224-in21k@6074eaf2211423e928c93b93ef773d5da618aa7e", 16, 1024, 24, epsilon=1e-12
    ),
    # ImageNet-1k alone
    "deit_tiny_16": _variant(
        "timm/deit_tiny_patch16_224.fb_in1k@80e968688553f219e4a86f940ed945a23709c16f",
        *(16, 192, 12, "21d4764d94f6c3ffdb6da3581115a0a1ee2d505537d96883b540e54766407c9e"),
        **_DEIT,
    ),
    "deit_small_16": _variant(
        "timm/deit_small_patch16_224.fb_in1k@91327a9c99f98fe6b524cd4d397b7226b80e1365",
        *(16, 384, 12, "1e747b4a8d0df2cfbd3c450e8c97685d867448ab0c2ddbfb34b6885f5cb23e5b"),
        **_DEIT,
    ),
    "deit_base_16": _variant(
        "timm/deit_base_patch16_224.fb_in1k@b78cc5532a69df6bcad9c3a8d76653fd20b31ac6",
        *(16, 768, 12, "cd2da27b74ed7f68b599f16c77af3e1e80f01c75f9ad96029d22ce747a247e8e"),
        **_DEIT,
    ),
    "deit3_small_16": _variant("timm/deit3_small_patch16_224.fb_in22k_ft_in1k", 16, 384, **_DEIT3),
    "deit3_base_16": _variant("timm/deit3_base_patch16_224.fb_in22k_ft_in1k", 16, 768, **_DEIT3),
    "deit3_large_16": _variant("timm/deit3_large_patch16_224.fb_in22k_ft_in1k", 16, 1024, 24, **_DEIT3),
}
