"""BERT (Devlin et al. 2019, arXiv 1810.04805) as in `modeling_bert.py` of Hugging Face transformers, and DistilBERT.

Normalisation comes after each sum, positions are learned, and layers have the names of the Hugging Face files.
"""

import functools
from collections.abc import Callable
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from ml_collections import ConfigDict

from tltrain.data import packing
from tltrain.data.kinds.text import Text, num_words
from tltrain.errors import ConfigError, WeightsError
from tltrain.models import hub_config
from tltrain.models.attention import attention, rows_of
from tltrain.models.hub_backbone import HubBackbone
from tltrain.models.transformer import ACTIVATIONS

_ACTIVATIONS = ACTIVATIONS | {"gelu": functools.partial(nn.gelu, approximate=False)}
_HEADS = (r"cls\..*", r"vocab_.*", r"classifier\..*", r"pre_classifier\..*")
# what a field of `Bert` is called in the config.json of each family
_FIELDS = {
    "bert": {
        "vocab_size": "vocab_size",
        "hidden_size": "hidden_size",
        "num_hidden_layers": "num_layers",
        "num_attention_heads": "num_heads",
        "intermediate_size": "intermediate_size",
        "max_position_embeddings": "num_positions",
        "type_vocab_size": "num_types",
        "layer_norm_eps": "epsilon",
        "hidden_act": "activation",
    },
    "distilbert": {
        "vocab_size": "vocab_size",
        "dim": "hidden_size",
        "n_layers": "num_layers",
        "n_heads": "num_heads",
        "hidden_dim": "intermediate_size",
        "max_position_embeddings": "num_positions",
        "activation": "activation",
    },
}
# what a layer is called in files of BERT, and in those of DistilBERT
NAMES = {
    "query": ("attention.self.query", "attention.q_lin"),
    "key": ("attention.self.key", "attention.k_lin"),
    "value": ("attention.self.value", "attention.v_lin"),
    "attended": ("attention.output.dense", "attention.out_lin"),
    "attention_norm": ("attention.output.LayerNorm", "sa_layer_norm"),
    "up": ("intermediate.dense", "ffn.lin1"),
    "down": ("output.dense", "ffn.lin2"),
    "norm": ("output.LayerNorm", "output_layer_norm"),
}


class Embeddings(nn.Module):
    """Words, positions and, where there are any, token types, summed and normalised."""

    sizes: tuple[int, int, int]  # words, positions, token types
    features: int
    norm: Callable[..., nn.Module]
    dtype: jnp.dtype

    @nn.compact
    def __call__(self, x: dict[str, jax.Array], train: bool) -> dict[str, jax.Array]:
        """Maps `ids` and `types` int32 `[G, T]` of a packed batch to its `hidden` `[G, T, H]`."""
        embed = functools.partial(nn.Embed, features=self.features, dtype=self.dtype)
        words, positions, types = self.sizes
        hidden = embed(words, name="word_embeddings")(x["ids"])
        hidden += embed(positions, name="position_embeddings")(x["slot"] % x["token"].shape[-1])
        if types:
            hidden += embed(types, name="token_type_embeddings")(x["types"])
        return {"hidden": self.norm(name="LayerNorm")(hidden)} | {name: x[name] for name in packing.LAYOUT}


class Layer(nn.Module):
    """Attention among the tokens of a row, then two dense layers on each; normalised after each sum."""

    distilled: bool  # whether its layers have the names of DistilBERT
    num_heads: int
    widths: tuple[int, int]  # of what it takes and gives, and between its dense layers
    activation: str
    norm: Callable[..., nn.Module]
    dtype: jnp.dtype

    @nn.compact
    def __call__(self, x: dict[str, jax.Array], train: bool) -> dict[str, jax.Array]:
        """`hidden` `[G, T, H]` of a packed batch to the same shape."""
        features, between = self.widths
        names = {name: both[self.distilled] for name, both in NAMES.items()}

        def dense(features, name):
            return nn.Dense(features, dtype=self.dtype, name=names[name])

        hidden = x["hidden"]
        q, k, v = (dense(features, name)(hidden) for name in ("query", "key", "value"))
        attended = dense(features, "attended")(attention(q, k, v, x, self.num_heads))
        hidden = self.norm(name=names["attention_norm"])(hidden + attended)
        wide = _ACTIVATIONS[self.activation](dense(between, "up")(hidden))
        return x | {"hidden": self.norm(name=names["norm"])(hidden + dense(features, "down")(wide))}


class Pooler(nn.Module):
    """A dense layer and tanh on the first token, trained to tell whether a sentence follows another."""

    features: int
    dtype: jnp.dtype

    @nn.compact
    def __call__(self, x: dict[str, jax.Array], train: bool) -> jax.Array:
        """`hidden` `[G, T, H]` of a packed batch to `[G, R, H]`."""
        return jnp.tanh(nn.Dense(self.features, dtype=self.dtype, name="dense")(first_of(x)))


def first_of(x: dict[str, jax.Array]) -> jax.Array:
    """The first token of each row, `[G, R, H]`; zero where there is no row."""
    return rows_of(x["hidden"], x)[..., 0, :]


class Bert(HubBackbone):
    """Stages `embeddings`, `layer_0` ..., and `pooler` where the first token is pooled by it."""

    vocab_size: int = 30522
    hidden_size: int = 768
    num_layers: int = 12
    num_heads: int = 12
    intermediate_size: int = 3072
    num_positions: int = 512
    num_types: int = 2
    epsilon: float = 1e-12
    activation: str = "gelu"
    distilled: bool = False
    pooling: str = "cls"  # "cls": the first token | "pooler": the same through a dense layer | "mean": of all tokens

    kind = Text
    families = tuple(_FIELDS)
    hub_prefixes = ("bert.", "distilbert.")
    hub_unused = (r"embeddings\.position_ids", r"pooler\..*", *_HEADS)

    def resolve(self, config: ConfigDict) -> None:
        """The weights of the variant where a config names none, and the pooling these were trained with."""
        super().resolve(config)
        model = config.model
        given = self.sized(config)
        if config.data.max_tokens > given.num_positions:
            raise ConfigError(
                f"data.max_tokens = {config.data.max_tokens}, allowed with {model.backbone}: at most "
                f"{given.num_positions}, for which it has positions"
            )
        if len(config.data.text) == 2 and not given.num_types:
            raise ConfigError(
                f"data.text = {tuple(config.data.text)}, allowed with {model.backbone}: one, since it has no token "
                "types, by which the two of a pair are told apart"
            )
        if model.pool == "auto":
            model.pool = self.pooling if self.variant else hub_config.pooling_of(model.weights)
        if model.pool == "cls" and not given.distilled and hub_config.has_pooler(model.weights):
            model.pool = "pooler"

    def fields(self, said: dict[str, Any]) -> dict[str, Any]:
        """Those that a `config.json` says."""
        if said.get("position_embedding_type", "absolute") != "absolute":
            raise WeightsError(
                "config.json says positions of another kind than learned ones; of model.weights; take others"
            )
        family = said["model_type"]
        found = hub_config.renamed(said, _FIELDS[family])
        return found | ({"distilled": True, "num_types": 0} if family == "distilbert" else {})

    def configured(self, config: ConfigDict) -> "Bert":
        """Also with its pooling."""
        return super().configured(config).clone(pooling=config.model.pool)

    def check(self, kind: Text) -> None:
        """The tokenizer has no word that there is no embedding for."""
        if (words := num_words(kind.tokenizer)) > self.vocab_size:
            raise WeightsError(
                f"the tokenizer beside the weights knows {words} words, and they have embeddings for "
                f"{self.vocab_size}; it is not theirs; put there the one they were trained with"
            )

    def facts(self) -> dict[str, Any]:
        """What does not show in the shapes of variables."""
        said = (self.num_heads, self.activation, self.epsilon, self.pooling)
        return dict(zip(("num_heads", "activation", "epsilon", "pooling"), said, strict=True))

    def example(self) -> dict[str, jax.ShapeDtypeStruct]:
        """A row of eight tokens."""
        row = dict.fromkeys(("ids", "types"), jax.ShapeDtypeStruct((8,), jnp.int32))
        return packing.shapes_of(row, packing.Shape(8, 1, 8), 1)

    def prepare(self, rows: dict[str, jax.Array]) -> dict[str, jax.Array]:
        """Token ids are taken as they are."""
        return rows

    def pool(self, x: Any) -> jax.Array:
        """What the pooler gives, the first token, or the mean over the tokens of each row."""
        if self.pooling == "mean":
            length = jnp.maximum(x["length"], 1)[..., None]
            x = rows_of(x["hidden"].astype(jnp.float32), x).sum(-2) / length
        elif self.pooling == "cls":
            x = first_of(x)
        return x.astype(jnp.float32).reshape(-1, self.hidden_size)

    def hub_name(self, stage: str, layer: str) -> str:
        """What Hugging Face calls `layer` of `stage`."""
        layers = "transformer.layer" if self.distilled else "encoder.layer"
        return f"{stage.replace('layer_', f'{layers}.')}.{layer}"

    def stage_factories(self) -> dict[str, Callable[..., nn.Module]]:
        norm = functools.partial(nn.LayerNorm, self.epsilon, self.dtype, use_fast_variance=False)
        sizes = (self.vocab_size, self.num_positions, self.num_types)
        widths = (self.hidden_size, self.intermediate_size)
        layer = functools.partial(Layer, self.distilled, self.num_heads, widths, self.activation, norm, self.dtype)
        stages: dict[str, Callable[..., nn.Module]] = {
            "embeddings": functools.partial(Embeddings, sizes, self.hidden_size, norm, self.dtype)
        }
        stages |= {f"layer_{i}": layer for i in range(self.num_layers)}
        pooler = functools.partial(Pooler, self.hidden_size, self.dtype)
        return stages | ({"pooler": pooler} if self.pooling == "pooler" else {})
