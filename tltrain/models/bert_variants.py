"""The networks of `bert.py` that a config can name, each with its weights on the Hugging Face Hub."""

import functools
from collections.abc import Callable

from tltrain.models.bert import Bert


def _variant(repository, num_layers, hidden_size, sha256=None, **fields):
    """One of the Hub, heads of 64 features each where no `num_heads` is given."""
    sizes = {"num_heads": hidden_size // 64, "intermediate_size": 4 * hidden_size} | fields
    return functools.partial(
        Bert, num_layers=num_layers, hidden_size=hidden_size, variant=repository, sha256=sha256, **sizes
    )


_MINILM = "sentence-transformers/all-MiniLM-L6-v2@c9745ed1d9f207416be6d2e6f8de32d1f16199bf"
_DISTILBERT = "distilbert/distilbert-base-uncased@12040accade4e8a0f71eabdb258fecc2e7e948be"
VARIANTS: dict[str, Callable[..., Bert]] = {
    "bert": Bert,
    "bert_base_uncased": _variant(
        "google-bert/bert-base-uncased@86b5e0934494bd15c9632b12f734a8a67f723594",
        *(12, 768),
        sha256="68d45e234eb4a928074dfd868cead0219ab85354cc53d20e772753c6bb9169d3",
    ),
    "bert_base_cased": _variant(
        "google-bert/bert-base-cased@cd5ef92a9fb2f889e972770a36d4ed042daf221e", 12, 768, vocab_size=28996
    ),
    "bert_large_uncased": _variant("google-bert/bert-large-uncased@6da4b6a26a1877e173fca3225479512db81a5e5b", 24, 1024),
    "bert_tiny": _variant("google/bert_uncased_L-2_H-128_A-2@30b0a37ccaaa32f332884b96992754e246e48c5f", 2, 128),
    # without a revision what is newest there is taken; a run keeps the sha256 of what it was
    "bert_mini": _variant("google/bert_uncased_L-4_H-256_A-4", 4, 256),
    "bert_small": _variant("google/bert_uncased_L-4_H-512_A-8", 4, 512),
    "bert_medium": _variant("google/bert_uncased_L-8_H-512_A-8", 8, 512),
    "minilm_l6": _variant(
        *(_MINILM, 6, 384, "53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db"),
        num_heads=12,
        pooling="mean",
    ),
    "distilbert_base_uncased": _variant(_DISTILBERT, 6, 768, distilled=True, num_types=0),
}
