"""Transformers of images: what the families `vit`, `dinov2`, `clip` and `siglip` share, and what each declares."""

import functools
from collections.abc import Callable
from typing import Any, ClassVar, Self

import flax.linen as nn
import jax
import jax.numpy as jnp
from ml_collections import ConfigDict

from tltrain.errors import ConfigError, WeightsError
from tltrain.models import hub_config
from tltrain.models.backbone import Layout
from tltrain.models.hub_backbone import HubBackbone
from tltrain.models.image_backbone import NORMALIZED, ImageBackbone
from tltrain.models.transformer import AttentionPooling, Embeddings, Layer, Names, Normalized, Sizes

# what the fields are called in a config.json
FIELDS = {
    "hidden_size": "hidden_size",
    "num_hidden_layers": "num_layers",
    "num_attention_heads": "num_heads",
    "intermediate_size": "intermediate_size",
    "patch_size": "patch_size",
    "layer_norm_eps": "epsilon",
    "hidden_act": "activation",
}

# what timm calls the layers of ViT and DINOv2
TIMM: Layout = (
    (r"^embeddings\.(cls_token|mask_token)$", r"\1"),
    (r"^embeddings\.register_tokens$", "reg_token"),
    (r"^embeddings\.position_embeddings$", "pos_embed"),
    (r"^embeddings\.patch_embeddings\.projection\.", "patch_embed.proj."),
    (r"^layernorm\.", "norm."),
    (r"^encoder\.layer\.", "blocks."),
    (r"\.attention\.attention\.query\.", ".attn.qkv[0]."),
    (r"\.attention\.attention\.key\.", ".attn.qkv[1]."),
    (r"\.attention\.attention\.value\.", ".attn.qkv[2]."),
    (r"\.attention\.output\.dense\.", ".attn.proj."),
    (r"\.layernorm_before\.", ".norm1."),
    (r"\.layernorm_after\.", ".norm2."),
    (r"\.intermediate\.dense\.", ".mlp.fc1."),
    (r"\.output\.dense\.", ".mlp.fc2."),
    (r"\.mlp\.weights_in\.", ".mlp.w12."),
    (r"\.mlp\.weights_out\.", ".mlp.w3."),
    (r"\.layer_scale(\d)\.", r".ls\1."),
)


class VisionTransformer(HubBackbone, ImageBackbone):
    """Stages `embeddings`, `layer_0` ..., the last normalisation and, with `pooling` "map", `head`.

    Activations are tokens `[B, T, C]`: `tokens`, registers, then patches row by row. With `pooling` "cls" the last
    layer computes the first token alone, since nothing else of it is used.
    """

    hidden_size: int = 768
    num_layers: int = 12
    num_heads: int = 12
    intermediate_size: int = 3072
    patch_size: int = 16
    grid: int = 14  # patches a side of the square that positions were learned for
    epsilon: float = 1e-6
    activation: str = "gelu"
    tokens: tuple[str, ...] = ("cls_token",)  # before the patches
    placed_tokens: bool = True  # whether `tokens` have positions
    registers: int = 0
    scaled: bool = False  # LayerScale
    gated: bool = False  # SwiGLU
    antialias: bool = False  # of positions for a smaller grid
    pooling: str = "cls"  # "cls": the first token | "mean": of the patches | "map": by a learned token that attends

    flax_layouts: ClassVar[tuple[Layout, ...]] = ()  # of files .npz with its weights
    layers_name: ClassVar[str] = "encoder.layer."
    last_norm: ClassVar[str] = "layernorm"
    norm_of_embeddings: ClassVar[str | None] = None
    patch_bias: ClassVar[bool] = True
    token_shape: ClassVar[tuple[int, ...]] = (1, 1)  # of a token in files, before its features
    positions_shape: ClassVar[tuple[int, ...]] = (1,)  # of positions in files, before the last two axes
    poolings = ("cls", "mean")
    alike = True
    needs_files = False

    @property
    def names(self) -> Names:
        """Those of its layers."""
        raise NotImplementedError

    def resolve(self, config: ConfigDict) -> None:
        """Its weights, pooling and image size where a config names none."""
        model = config.model
        HubBackbone.resolve(self, config)
        given = self.sized(config)
        if model.pool == "auto":
            model.pool = given.pooling
        ImageBackbone.resolve(given, config)
        size = tuple(config.data.image_size)
        if any(side % given.patch_size for side in size) and size != tuple(given.input_size):
            raise ConfigError(
                f"data.image_size = {size}, allowed with {model.backbone}: {given.input_size}, or multiples of "
                f"{given.patch_size} pixels, the side of a patch"
            )

    def configured(self, config: ConfigDict) -> Self:
        """Also with its pooling."""
        return super().configured(config).clone(pooling=config.model.pool)

    def sized(self, config: ConfigDict) -> Self:
        """Where it is of no variant, with the sizes and the pixels that files beside the weights say."""
        given = super().sized(config)
        if self.variant:
            return given
        path, pixels = self._said_pixels(config)
        known = [name for name, numbers in NORMALIZED.items() if numbers == (pixels.mean, pixels.std)]
        if not known:
            raise WeightsError(
                f"{path} says a mean of {pixels.mean} and a deviation of {pixels.std}, by which no known network was "
                f"trained; known: {', '.join(f'{name} {numbers}' for name, numbers in NORMALIZED.items())}; take others"
            )
        return given.clone(pixels=known[0], input_size=pixels.size or (given.grid * given.patch_size,) * 2)

    def fields(self, said: dict[str, Any]) -> dict[str, Any]:
        """Sizes, and positions for the whole patches of the square that the network was trained on."""
        said = said.get("vision_config", said)  # a tower of texts may stand beside that of images
        found = hub_config.renamed(said, FIELDS)
        patch = found.get("patch_size", self.patch_size)
        side = hub_config.number("image_size", said.get("image_size", self.grid * self.patch_size))
        if side < patch:
            raise WeightsError(f"config.json says images of {side} pixels in patches of {patch}; fetch it again")
        return found | {"grid": side // patch}

    def files(self, config: ConfigDict) -> dict[str, str]:
        """Its sizes and its pixels, where it is of no variant."""
        if self.variant:
            return {}
        path, _ = self._said_pixels(config)
        return super().files(config) | {path.name: path.read_text()}

    def _said_pixels(self, config):
        said = hub_config.pixels_of(config.model.weights)
        if said is None:
            raise WeightsError(
                f"no preprocessor_config.json beside the weights; {config.model.weights}; put it there, since scaling "
                "and size of pixels are read there, or name a backbone that has them"
            )
        return said

    def facts(self) -> dict[str, Any]:
        """The scaling, and what does not show in the shapes of variables."""
        names = ("num_heads", "activation", "epsilon", "pooling", "patch_size", "antialias", "gated", "placed_tokens")
        return super().facts() | {name: getattr(self, name) for name in names}

    def pool(self, x: jax.Array) -> jax.Array:
        """The first token, which may be the only one, or the mean of the patches."""
        x = x.astype(jnp.float32)
        return x[:, self.num_before :].mean(1) if self.pooling == "mean" else x[:, 0]

    @property
    def num_before(self) -> int:
        """Tokens before the first patch."""
        return len(self.tokens) + self.registers

    def hub_name(self, stage: str, layer: str) -> str:
        """What Hugging Face calls `layer` of `stage`."""
        if layer in (self.last_norm, self.norm_of_embeddings):
            return layer
        return f"{stage.replace('layer_', self.layers_name)}.{layer}"

    def stage_factories(self) -> dict[str, Callable[..., nn.Module]]:
        norm = functools.partial(nn.LayerNorm, self.epsilon, self.dtype, use_fast_variance=False)
        sizes = Sizes(
            *(self.hidden_size, self.intermediate_size, self.num_heads, self.activation, self.gated, self.scaled)
        )
        first = self.norm_of_embeddings
        embeddings = functools.partial(
            Embeddings,
            patch=self.patch_size,
            grid=self.grid,
            features=self.hidden_size,
            names=self.names,
            tokens=tuple((name, (*self.token_shape, self.hidden_size)) for name in self.tokens),
            placed_tokens=self.placed_tokens,
            positions_shape=self.positions_shape,
            registers=self.registers,
            antialias=self.antialias,
            use_bias=self.patch_bias,
            norm=(first, norm) if first else None,
        )
        stages: dict[str, Callable[..., nn.Module]] = {"embeddings": embeddings}
        layer = functools.partial(Layer, self.names, sizes, norm=norm, dtype=self.dtype, first_only=False)
        stages |= {f"layer_{i}": layer for i in range(self.num_layers)}
        if self.pooling == "cls":
            stages[f"layer_{self.num_layers - 1}"] = functools.partial(layer, first_only=True)
        stages[self.last_norm] = functools.partial(Normalized, norm)
        if self.pooling == "map":
            stages["head"] = functools.partial(AttentionPooling, sizes, norm, self.dtype)
        return stages
