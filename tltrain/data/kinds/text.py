"""Texts, one or a pair, in UTF-8; a row is as many int32 `ids` and `types` as the text has tokens.

Tokens are made by the `tokenizers` library from the file that belongs to the weights.
"""

import functools
import hashlib
import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
from ml_collections import ConfigDict
from tokenizers import Tokenizer
from tokenizers.implementations import BertWordPieceTokenizer

from tltrain import hub
from tltrain.data import packing
from tltrain.data.kinds.kind import Argument, Kind, Tokens
from tltrain.errors import WeightsError, foreign_errors

_AT_ONCE = 1024  # texts handed to the tokenizer, which works on all cores
_UNCUT = 1 << 30  # tokens
_SHOWN = 600  # characters of a text on a page


class Looked(NamedTuple):
    """A text: all its tokens, those of them that are not in the vocabulary, and a hash of it without case and space."""

    num_tokens: int
    num_unknown: int
    folded: bytes


@dataclass(frozen=True)
class Text(Kind):
    """Texts of `num_texts` (1, or 2 for pairs) as the tokens of `tokenizer` (its JSON), cut at `max_tokens`."""

    tokenizer: str
    max_tokens: int
    num_texts: int

    name = "texts"
    rate = "texts/s"
    keys = ("data.text", "data.max_tokens", "model.pool")
    augments = False
    ragged = True
    alike_but = "that differ in case or spaces alone"
    shown_as = "text/plain"

    @classmethod
    def of(cls, config: ConfigDict) -> "Text":
        """That of a resolved config, with the tokenizer of its weights."""
        return cls(tokenizer_of(config.model.weights), config.data.max_tokens, len(config.data.text))

    def shapes(self) -> dict[str, jax.ShapeDtypeStruct]:
        """The longest row."""
        return dict.fromkeys(("ids", "types"), jax.ShapeDtypeStruct((self.max_tokens,), np.int32))

    def row(self, encoded: bytes, key: tuple[int, int] | None = None) -> packing.Row:
        """Its tokens."""
        found = self._encoded([self._texts(encoded)])[0][0]
        return {"ids": np.asarray(found.ids, np.int32), "types": np.asarray(found.type_ids, np.int32)}

    def tokens(self, read: Callable[[int], bytes], count: int) -> Tokens:
        """As many of each text as `max_tokens` allow."""
        errors: dict[int, str] = {}
        ids, types, lengths = [], [], np.zeros(count, np.int64)
        num_lost = np.zeros(count, np.int64)
        for first in range(0, count, _AT_ONCE):
            texts, places = [], []
            for i in range(first, min(first + _AT_ONCE, count)):
                try:
                    texts.append(self._texts(read(i)))
                    places.append(i)
                except OSError as error:
                    errors[i] = str(error)
            for i, (found, lost) in zip(places, self._encoded(texts), strict=True):
                ids.append(np.asarray(found.ids, np.int32))
                types.append(np.asarray(found.type_ids, np.int32))
                lengths[i], num_lost[i] = len(found.ids), lost
        leaves = {"ids": _joined(ids), "types": _joined(types)}
        return Tokens(packing.Ragged(leaves, np.concatenate([[0], np.cumsum(lengths)])), errors, num_lost)

    def _texts(self, encoded: bytes) -> str | tuple[str, ...]:
        try:
            text = encoded.decode("utf-8-sig")
        except UnicodeDecodeError as error:
            raise OSError(f"not UTF-8 from byte {error.start} on") from error
        return text if self.num_texts == 1 else tuple(json.loads(text))

    def _encoded(self, texts: Sequence[Any]) -> list[tuple[Any, int]]:
        """What the tokenizer makes of each of `texts`, cut, and how many tokens that lost."""
        whole, cutting = _tokenizers(self.tokenizer, self.max_tokens)
        pair = self.num_texts == 2
        special = whole.num_special_tokens_to_add(pair)
        flat = [text for texts_of_one in texts for text in texts_of_one] if pair else texts
        found = whole.encode_batch_fast(flat, add_special_tokens=False)
        parts = zip(found[::2], found[1::2], strict=True) if pair else ((one,) for one in found)
        made = []
        for parts_of_one in parts:
            kept = cutting.post_process(*parts_of_one)
            made.append((kept, sum(map(len, parts_of_one)) + special - len(kept)))
        return made

    def files(self) -> dict[str, str]:
        """Its tokenizer."""
        return {"tokenizer.json": self.tokenizer}

    def facts(self, view: int | None) -> dict[str, Any]:
        """The tokenizer by its content, and what it is asked for."""
        sha256 = hashlib.sha256(self.tokenizer.encode()).hexdigest()
        return {"tokenizer": sha256, "max_tokens": self.max_tokens, "num_texts": self.num_texts}

    def is_example(self, path: Path, what: str) -> bool:
        """A file that has the name of a text and is none counts among the unreadable."""
        return path.suffix.lower() == ".txt"

    def look(self, encoded: bytes) -> Looked:
        """Counts its tokens."""
        texts = self._texts(encoded)
        ((found, _),) = replace(self, max_tokens=_UNCUT)._encoded([texts])
        folded = " ".join((texts if isinstance(texts, str) else "\n".join(texts)).casefold().split())
        return Looked(len(found), found.ids.count(_unknown(self.tokenizer)), hashlib.sha256(folded.encode()).digest())

    def alike(self, seen: Sequence[Looked], others: Sequence[Looked]) -> Iterator[tuple[int, int]]:
        """Those that are equal but for case and space."""
        where: dict[bytes, list[int]] = {}
        for i, one in enumerate(seen):
            where.setdefault(one.folded, []).append(i)
        for j, other in enumerate(others):
            yield from ((i, j) for i in where.get(other.folded, ()))

    def show(self, encoded: bytes) -> bytes:
        """Its beginning."""
        texts = self._texts(encoded)
        text = texts if isinstance(texts, str) else "\n".join(texts)
        return (text if len(text) <= _SHOWN else f"{text[:_SHOWN]} ...").encode()

    def signature(self) -> tuple[Argument, ...]:
        """What tokenizers give: ids of tokens, 1 where there is one and 0 where not, types."""
        names = ("input_ids", "attention_mask", "token_type_ids")
        return tuple(Argument(name, "int32", ("batch", "length")) for name in names)

    def raw(self, encoded: bytes) -> tuple[np.ndarray, ...]:
        """Its tokens, none of them padding."""
        row = self.row(encoded)
        return row["ids"], np.ones_like(row["ids"]), row["types"]

    def rows_of(self, xp: Any, *raw: Any) -> packing.Row:
        """A packed batch of a group a row."""
        ids, mask, types = raw
        length, place = mask.sum(1, keepdims=True), xp.arange(ids.shape[1], dtype="int32")
        slot = xp.where(place < length, place, ids.shape[1])
        return {"ids": ids, "types": types, "length": length, "token": slot[:, None], "slot": slot}


def _joined(parts):
    return np.concatenate(parts) if parts else np.zeros(0, np.int32)


@functools.lru_cache(maxsize=8)
def _tokenizers(text: str, max_tokens: int) -> tuple[Tokenizer, Tokenizer]:
    """The tokenizer of the JSON `text`: one that cuts nothing, and one that cuts at `max_tokens`, neither pads."""
    whole, cutting = Tokenizer.from_str(text), Tokenizer.from_str(text)
    for one in (whole, cutting):
        one.no_padding()
    whole.no_truncation()
    cutting.enable_truncation(max_tokens)
    return whole, cutting


@functools.lru_cache(maxsize=8)
def _unknown(text: str) -> int | None:
    return Tokenizer.from_str(text).token_to_id(json.loads(text)["model"].get("unk_token") or "[UNK]")


@functools.lru_cache(maxsize=8)
def num_words(text: str) -> int:
    """The words that the tokenizer of the JSON `text` knows, those that were added to it too."""
    return Tokenizer.from_str(text).get_vocab_size()


def tokenizer_of(weights: str) -> str:
    """The tokenizer that belongs to `model.weights`, as JSON; raises WeightsError where there is none.

    A `vocab.txt` alone is that of BERT's WordPiece, with the case that the `tokenizer_config.json` beside it says.
    """
    place = hub.place_of(weights)
    assert place is not None, "a resolved config names the place of its weights"
    path = hub.files(place, weights=False).tokenizer
    if path is None:
        raise WeightsError(
            f"no tokenizer.json or vocab.txt beside the weights; {weights}; put there the one they were trained with"
        )
    with foreign_errors(WeightsError, f"cannot read the tokenizer {path}", "fetch it again"):
        return _read(path, path.stat().st_mtime_ns)


@functools.lru_cache(maxsize=8)
def _read(path: Path, changed: int) -> str:
    if path.suffix == ".json":
        return Tokenizer.from_file(str(path)).to_str()
    said = path.with_name("tokenizer_config.json")
    options = json.loads(said.read_text()) if said.exists() else {}
    made = BertWordPieceTokenizer(
        str(path),
        lowercase=options.get("do_lower_case", True),
        strip_accents=options.get("strip_accents"),
        handle_chinese_chars=options.get("tokenize_chinese_chars", True),
    )
    return made.to_str()
