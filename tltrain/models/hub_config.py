"""What the small files beside weights from the Hub say of them: sizes, pooling, which arrays there are."""

import json
from collections.abc import Collection
from typing import Any

from tltrain import hub
from tltrain.errors import WeightsError, foreign_errors

# what a field of `bert.Bert` is called in the config.json of each family
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


def sizes_of(weights: str, activations: Collection[str]) -> dict[str, Any]:
    """The fields of a `bert.Bert` by the `config.json` that belongs to `model.weights`.

    Raises:
        WeightsError: there is none, or it is of a network of another family, or with none of the `activations`.
    """
    path = _config_of(weights)
    with foreign_errors(WeightsError, f"cannot read {path}", "fetch it again"):
        said = json.loads(path.read_text())
        family = said["model_type"]
        if family not in _FIELDS:
            raise WeightsError(
                f"{path} is of a {family!r}; allowed with model.backbone = 'bert': {', '.join(_FIELDS)}; take another"
            )
        found = {field: said[name] for name, field in _FIELDS[family].items() if name in said}
        if said.get("position_embedding_type", "absolute") != "absolute":
            raise WeightsError(f"{path} has positions of another kind than learned ones; take other weights")
        if (name := found.get("activation", "gelu")) not in activations:
            raise WeightsError(f"{path} has activation {name!r}; allowed: {', '.join(activations)}; take other weights")
        features, heads = found["hidden_size"], found["num_heads"]
        if features % heads:
            raise WeightsError(f"{path} divides {features} features among {heads} heads; fetch it again")
        return found | ({"distilled": True, "num_types": 0} if family == "distilbert" else {})


def text_of(weights: str) -> str:
    """The `config.json` that belongs to `model.weights`; raises WeightsError where there is none."""
    path = _config_of(weights)
    with foreign_errors(WeightsError, f"cannot read {path}", "fetch it again"):
        return path.read_text()


def _config_of(weights):
    path = _files(weights, False).config
    if path is None:
        raise WeightsError(f"no config.json beside the weights; {weights}; put it there, or name a backbone with sizes")
    return path


def pooling_of(weights: str) -> str:
    """How features were pooled in the training of `model.weights`: "mean" where sentence-transformers did, or "cls"."""
    path = _files(weights, False).pooling
    if path is None:
        return "cls"
    with foreign_errors(WeightsError, f"cannot read {path}", "set model.pool"):
        return "mean" if json.loads(path.read_text()).get("pooling_mode_mean_tokens") else "cls"


def has_pooler(weights: str) -> bool:
    """Whether the file of `model.weights` has a pooler, as Keras' have; True where it is still to be fetched."""
    place = hub.place_of(weights)
    if hub.is_random(weights) or place is None or not hub.is_here(place):
        return True
    path = _files(weights, True).weights
    if path is None or path.suffix != ".safetensors":
        return True
    with foreign_errors(WeightsError, f"cannot read {path}", "fetch it again"):
        return any("pooler." in name for name in json.loads(hub.header_of(path)))


def _files(weights, wanted):
    place = hub.place_of(weights)
    assert place is not None, "a resolved config names the place of its weights"
    return hub.files(place, wanted)
