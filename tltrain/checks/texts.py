"""The texts: their lengths against what a row may have, words that are in no vocabulary, the tokenizer itself."""

from collections.abc import Iterator

import numpy as np

from tltrain.checks.case import Case
from tltrain.checks.finding import Finding, advice, fine
from tltrain.data.kinds.text import Text, num_words
from tltrain.models.bert import Bert

_UNKNOWN = 0.02  # share of tokens in no vocabulary: of reviews in English under BERT's it is below 0.001
_BINS = 8  # of the histogram


def check_texts(case: Case) -> Iterator[Finding]:
    """Lengths, and tokens that are unknown."""
    kind = case.data.kind
    if not isinstance(kind, Text):
        return
    seen = [one for looked in case.looked.values() for one in looked.seen if one is not None]
    if not seen:
        return
    lengths = np.asarray([one.num_tokens for one in seen])
    yield fine(f"tokens a text: {_histogram(lengths)}")
    yield from _cut(lengths, kind.max_tokens)
    unknown, total = sum(one.num_unknown for one in seen), int(lengths.sum())
    text = f"{unknown} of {total} tokens ({100 * unknown / total:.2g} %) are in no vocabulary"
    if unknown > _UNKNOWN * total:
        yield advice(f"{text}: is the tokenizer of another language, or of another case?")
    else:
        yield fine(text)
    if empty := int((lengths <= _special(kind)).sum()):
        yield advice(f"{empty} texts have no token of their own: empty, or of characters that are dropped")


def check_vocabulary(case: Case) -> Iterator[Finding]:
    """The tokenizer that lies beside the weights has about as many words as these have embeddings for, and not more."""
    kind, backbone = case.data.kind, case.backbone
    if not isinstance(kind, Text) or not isinstance(backbone, Bert):
        return
    words = num_words(kind.tokenizer)
    text = f"the tokenizer knows {words} words, the weights have embeddings for {backbone.vocab_size}"
    if words < 0.9 * backbone.vocab_size:
        yield advice(f"{text}: is it theirs?")
    else:
        yield fine(text)


def _cut(lengths, max_tokens):
    over = lengths[lengths > max_tokens]
    if not len(over):
        yield fine(f"none is longer than data.max_tokens = {max_tokens}; the longest has {lengths.max()}")
        return
    lost = int((over - max_tokens).sum())
    yield advice(
        f"{len(over)} of {len(lengths)} texts are longer than data.max_tokens = {max_tokens}: cut, {lost} tokens "
        f"({100 * lost / lengths.sum():.2g} %) are lost"
    )


def _histogram(lengths):
    edges = np.unique(np.linspace(lengths.min(), lengths.max() + 1, _BINS + 1).astype(int))
    counts, edges = np.histogram(lengths, edges)
    return ", ".join(f"{a} to {b - 1}: {n}" for a, b, n in zip(edges, edges[1:], counts, strict=False))


def _special(kind):
    return len(kind.row(b"" if kind.num_texts == 1 else b'["", ""]')["ids"])
