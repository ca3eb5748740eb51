"""DINOv2 (Oquab et al. 2023, arXiv 2304.07193), without and with registers, as in `modeling_dinov2.py` of transformers.

Positions were learned for images of 518 pixels; features are read at 224.
"""

import functools
from collections.abc import Callable
from typing import Any

from tltrain.models import hub_config
from tltrain.models.backbone import HUGGING_FACE
from tltrain.models.vision_transformer import TIMM, VisionTransformer
from tltrain.models.vit import NAMES as VIT

NAMES = VIT._replace(norm_before="norm1", norm_after="norm2", up="mlp.fc1", down="mlp.fc2")
_FAMILIES = {"dinov2": False, "dinov2_with_registers": True}


class DINOv2(VisionTransformer):
    """With LayerScale, and SwiGLU where it is `gated`; positions are antialiased where there are registers."""

    patch_size: int = 14
    grid: int = 37
    scaled: bool = True
    pixels: str = "torch"

    families = tuple(_FAMILIES)
    hub_prefixes = ("dinov2.", "dinov2_with_registers.")
    hub_unused = (r"embeddings\.mask_token", r"mask_token", r"classifier\..*")
    hub_layouts = (HUGGING_FACE, TIMM)

    @property
    def names(self):
        return NAMES._replace(up="mlp.weights_in", down="mlp.weights_out") if self.gated else NAMES

    def fields(self, said: dict[str, Any]) -> dict[str, Any]:
        """Also the width of its dense layers, by `mlp_ratio`, and its registers."""
        found = super().fields(said)
        with_registers, gated = _FAMILIES[said["model_type"]], said.get("use_swiglu_ffn", False)
        between = int(found["hidden_size"] * hub_config.number("mlp_ratio", said.get("mlp_ratio", 4), (0.1, 100.0)))
        registers = said.get("num_register_tokens", 4) if with_registers else 0
        registers = hub_config.number("num_register_tokens", registers, (0, 2**20))
        between = _gated(between) if gated else between
        return found | {
            "intermediate_size": between,
            "gated": gated,
            "registers": registers,
            "antialias": with_registers,
        }


def _gated(between):
    """The width at which SwiGLU, with three matrices, has as many weights as two of `between`."""
    return (int(between * 2 / 3) + 7) // 8 * 8


def _variant(name, num_layers, hidden_size, revision, sha256=None, registers=0):
    gated = name == "giant"
    kind = "dinov2-with-registers" if registers else "dinov2"
    return functools.partial(
        DINOv2,
        num_layers=num_layers,
        hidden_size=hidden_size,
        num_heads=hidden_size // 64,
        intermediate_size=_gated(4 * hidden_size) if gated else 4 * hidden_size,
        gated=gated,
        registers=registers,
        antialias=bool(registers),
        variant=f"facebook/{kind}-{name}@{revision}",
        sha256=sha256,
    )


VARIANTS: dict[str, Callable[..., DINOv2]] = {
    "dinov2": DINOv2,
    "dinov2_small": _variant(
        *("small", 12, 384, "ed25f3a31f01632728cabb09d1542f84ab7b0056"),
        "ae1e99fcefd534ed978cdeb8326f08030c96e28b7a81ffcbc98a857c84d14be1",
    ),
    "dinov2_base": _variant(
        *("base", 12, 768, "f9e44c814b77203eaa57a6bdbbd535f21ede1415"),
        "d73036b56966966d07975d696bde331762f37297e2f095de8cea0040c3aa0841",
    ),
    "dinov2_large": _variant(
        *("large", 24, 1024, "47b73eefe95e8d44ec3623f8890bd894b6ea2d6c"),
        "399fba97a95f22c36834418bc69373364a99af3a1153da1c0fb31db567c92e23",
    ),
    "dinov2_giant": _variant(
        *("giant", 40, 1536, "611a9d42f2335e0f921f1e313ad3c1b7178d206d"),
        "917d3c470db999d32a312f8542149be91c7cbac61ee8fb4b67ae3d82b79ce21f",
    ),
    "dinov2_registers_small": _variant("small", 12, 384, "0d9846e56b43a21fa46d7f3f5070f0506a5795a9", registers=4),
    "dinov2_registers_base": _variant(
        *("base", 12, 768, "a1d738ccfa7ae170945f210395d99dde8adb1805"),
        "7a6f7b3b9fa4b8732e707476a03cd6cdce210048582f21aafb7991c17d98e362",
        registers=4,
    ),
    "dinov2_registers_large": _variant(
        *("large", 24, 1024, "e4c89a4e05589de9b3e188688a303d0f3c04d0f3"),
        "edccedab2c4e164e80833096de89a32a6e8d7365870499a066a61dbc8894b42b",
        registers=4,
    ),
    "dinov2_registers_giant": _variant(
        *("giant", 40, 1536, "8d0d49f77fb8b5dd78842496ff14afe7dd4d85cb"),
        "c03832d44691e99b62ae28c4dfa2f134853a3614b3756c94f525109cce5a5051",
        registers=4,
    ),
}
