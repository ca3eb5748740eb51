"""The image tower of SigLIP (Zhai et al. 2023, arXiv 2303.15343) as in `modeling_siglip.py` of transformers.

And of SigLIP 2 (Tschannen et al. 2025, arXiv 2502.14786), where images are of one size.
"""

import functools
from collections.abc import Callable

from tltrain.models.backbone import Layout
from tltrain.models.clip import LAYERS, NAMES, OTHER_TOWER
from tltrain.models.vision_transformer import VisionTransformer

# query, key and value of the attention that pools are one array
_POOLED: Layout = tuple(
    (rf"^head\.attention\.{name}\.(weight|bias)$", rf"head.attention.in_proj_\1[{i}]")
    for i, name in enumerate(("query", "key", "value"))
)


class SigLIP(VisionTransformer):
    """Without a class token; features are pooled by a learned token that attends to all patches."""

    activation: str = "gelu_pytorch_tanh"
    tokens: tuple[str, ...] = ()
    pixels: str = "tf"
    pooling: str = "map"

    families = ("siglip", "siglip_vision_model")
    hub_prefixes = ("vision_model.",)
    hub_unused = (*OTHER_TOWER, r"head\..*", r"embeddings\.position_ids")
    hub_layouts = (_POOLED,)
    layers_name = LAYERS
    last_norm = "post_layernorm"
    positions_shape = ()
    poolings = ("map", "mean")

    @property
    def names(self):
        return NAMES


def _variant(name, side, sizes, sha256=None):
    """One of the Hub for images of `side` pixels, by its repository."""
    patch_size, hidden_size, num_layers, num_heads, intermediate_size = sizes
    return functools.partial(
        SigLIP,
        variant=f"google/{name}",
        patch_size=patch_size,
        grid=side // patch_size,
        input_size=(side, side),
        hidden_size=hidden_size,
        num_layers=num_layers,
        num_heads=num_heads,
        intermediate_size=intermediate_size,
        sha256=sha256,
    )


# patch, features, layers, heads, features between dense layers
_BASE, _LARGE, _SO400M = (16, 768, 12, 12, 3072), (16, 1024, 24, 16, 4096), (14, 1152, 27, 16, 4304)
VARIANTS: dict[str, Callable[..., SigLIP]] = {
    "siglip": SigLIP,
    "siglip_base_16": _variant(
        *("siglip-base-patch16-224@7fd15f0689c79d79e38b1c2e2e2370a7bf2761ed", 224, _BASE),
        "2c63cb7d1f2e95ba501893cbb8faeb4ea9a3af295498d35097126228659c2af8",
    ),
    "siglip_base_16_256": _variant(
        *("siglip-base-patch16-256@b078df89e446d623010d890864d4207fe6399f61", 256, _BASE),
        "f0cee7c815135c44a515eff72ab3040499744920442bc25567cd04efc93f8f65",
    ),
    "siglip_base_16_384": _variant("siglip-base-patch16-384@41aec1c83b32e0a6fca20ad88ba058aa5b5ea394", 384, _BASE),
    "siglip_large_16_256": _variant("siglip-large-patch16-256@d0da9f876e7d66b4e250cd2450c3ba2ce735e447", 256, _LARGE),
    "siglip_large_16_384": _variant("siglip-large-patch16-384@ce005573a40965dfd21fd937fbdeeebf2439fc35", 384, _LARGE),
    "siglip_so400m_14": _variant("siglip-so400m-patch14-224@d04cf29fca7b6374f74d8bea1969314492266b5e", 224, _SO400M),
    "siglip_so400m_14_384": _variant(
        *("siglip-so400m-patch14-384@9fdffc58afc957d1a03a25b10dba0329ab15c2a3", 384, _SO400M),
        "ea2abad2b7f8a9c1aa5e49a244d5d57ffa71c56f720c94bc5d240ef4d6e1d94a",
    ),
    "siglip2_base_16": _variant(
        *("siglip2-base-patch16-224@75de2d55ec2d0b4efc50b3e9ad70dba96a7b2fa2", 224, _BASE),
        "612923381c76ec5a9bed335d1c48827e3f2e506ac31b044b63b2031fadee6a0b",
    ),
    "siglip2_large_16_256": _variant("siglip2-large-patch16-256@787800c8990e6f058423089178e718139608408c", 256, _LARGE),
    "siglip2_so400m_14": _variant("siglip2-so400m-patch14-224@78e403963a4f6a3640d07803284752326fdf4edf", 224, _SO400M),
    "siglip2_so400m_14_384": _variant(
        *("siglip2-so400m-patch14-384@e8e487298228002f3d8a82e0cd5c8ea9c567f57f", 384, _SO400M),
        "9f4f4a49f908ef0c979bce8ff5a5c0e88882dc6c5dc4304387cbbd152558e2c2",
    ),
}
