"""A small BERT and a small DistilBERT, sentences of all kinds, and a table of few of them; all follow from seeds.

Nothing but NumPy is imported here, for `tests/golden/make_text.py` runs where transformers and torch are.
"""

import random
import zlib

import numpy as np

BERT = {
    "model_type": "bert",
    "vocab_size": 120,
    "hidden_size": 32,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "intermediate_size": 48,
    "max_position_embeddings": 44,
    "type_vocab_size": 2,
    "layer_norm_eps": 1e-3,  # large enough to show
    "hidden_act": "gelu",
}
DISTILBERT = {
    "model_type": "distilbert",
    "vocab_size": 120,
    "dim": 32,
    "n_layers": 2,
    "n_heads": 4,
    "hidden_dim": 48,
    "max_position_embeddings": 44,
    "activation": "gelu",
}
CONFIGS = {"bert": BERT, "distilbert": DISTILBERT}
EVERY = 3  # features of a hidden state in the golden file: two or three of each head


def array(name, shape):
    """Float32 that follow from the name of an array on the Hub; attention is far from even, no norm is one."""
    rng = np.random.default_rng(zlib.crc32(name.encode()))
    made = rng.normal(0, 1, shape)
    if "norm" in name.lower():
        return (0.1 * made + name.endswith("weight")).astype(np.float32)
    if "embeddings" in name:
        return made.astype(np.float32)
    return (made * (2 * shape[-1] ** -0.5 if len(shape) == 2 else 0.3)).astype(np.float32)


def token_rows():
    """Rows of 1 to 40 tokens, in no order of length: int32 `ids` and `types`, a second text from somewhere on."""
    rng = np.random.default_rng(5)
    rows = []
    for n in rng.permutation(np.arange(1, 41)).tolist():
        types = (np.arange(n) >= rng.integers(1, n + 1)).astype(np.int32)
        rows.append({"ids": rng.integers(0, BERT["vocab_size"], n).astype(np.int32), "types": types})
    return rows


WORDS = (
    "the a movie film is was not good bad unbelievably GREAT Terrible naive antidisestablishmentarianism it's don't "
    "e-mail U.S.A. 3.14 1,000,000 $5 #tag @user http://x.org/a?b=c_d C++ [SEP] [CLS] [MASK] [UNK] [unused1] ##ing"
).split()
ACCENTS = (
    "café naïve Ångström ÜBER Żółć São Đà Nẵng e\u0301le\u0300ve ǅ İstanbul ıßſ Ωμέγα ΣΊΣΥΦΟΣ Ёлка й ạ̈ ﬁne ½ Ⅷ ²"
).split()
SCRIPTS = (
    "中文 日本語テスト 한국어 漢字混じりtext 𠀀𪛖 豈 שלום עולם مرحبا بالعالم "
    "हिन्दी ภาษาไทย தமிழ் ქართული አማርኛ Русский 㐀 々 。"
).split()
EMOJI = "😀 👍🏽 👨‍👩‍👧‍👦 🇩🇪 ❤️ ☃ 1️⃣ © ™ → ∑ ₿ 𝔘𝔫𝔦 ａｂｃ".split()  # noqa: RUF001
INVISIBLE = ["\u200b", "\u200d", "\u200e", "\u200f", "\u202e", "\u2060", "\ufeff", "\u00ad", "\u034f", "\ufe0f"]
CONTROL = ["\x00", "\x01", "\x07", "\x1b", "\x7f", "\x85", "\x9f", "\ufffd", "\u2028", "\u2029", "\ue000", "\x1c"]
SPACES = [" ", "  ", "\t", "\n", "\r\n", "\u00a0", "\u3000", "\u2003", "\u1680", "\u202f"]
MARKS = [*"!?.,;:'\"()[]{}<>|/\\~`^*&%$#@+=-_", *"…—«»“’¿‽⸘،॥・〜"]  # noqa: RUF001
LETTERS = ((0x20, 0x250), (0x250, 0x3000), (0x1F300, 0x1F650))
PARTS = (WORDS, WORDS, ACCENTS, SCRIPTS, EMOJI, INVISIBLE, CONTROL, MARKS)


def _sentence(rng):
    pieces = []
    for _ in range(rng.randrange(1, 24)):
        piece = rng.choice(rng.choice(PARTS))
        if rng.random() < 0.1:
            piece = rng.choice((str.upper, str.title, str.swapcase))(piece)
        if rng.random() < 0.1:
            piece += chr(rng.randrange(*rng.choice(((0x20, 0x250), (0x250, 0x3000), (0x1F300, 0x1F650)))))
        pieces.append(piece + (rng.choice(SPACES) if rng.random() < 0.8 else ""))
    return "".join(pieces)


# empty or of space alone, of words at the limit of 100 letters and beyond, of combining marks, of special tokens
ODD = ["", " ", "\n\t", "\x00", "\u200b", "\ufeff", "a", "😀", "x" * 99, "x" * 100, "x" * 101, "y" * 10_000, "中" * 300]
ODD += [
    "é" * 100,
    "e\u0301" * 60,
    "a" + "\u0301" * 150,
    "!" * 200,
    "[PAD]" * 3,
    "[CLS] a [SEP]",
    "ab\x00cd",
    "a\u200bb",
]


def sentences():
    """A thousand: the odd ones, one of 10,000 words, and short ones of everything."""
    rng = random.Random(11)
    long = " ".join(rng.choice(WORDS + ACCENTS) for _ in range(10_000))
    return [*ODD, long, *(_sentence(rng) for _ in range(1000 - len(ODD) - 1))]


def pairs():
    """Five hundred pairs of these: short and long, and long and short."""
    made = sentences()
    return [*zip(made[::2], made[1::2], strict=True)]


GOOD, BAD = ("great", "fine", "lovely", "superb"), ("awful", "dull", "poor", "boring")
PLAIN = "the a film movie plot it is was and of in to this that actor scene end very so too".split()


def vocabulary():
    """Sixty words and pieces of them, for a tokenizer of its own."""
    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *GOOD, *BAD, *PLAIN, ".", ",", "!", "'", *"abcdefghijklm"]
    return [*words, *(f"##{c}" for c in "bdelnorst")]


def reviews(count=40):
    """`(text, "good" or "bad")` of 1 to 20 words; most have one that tells which."""
    rng = random.Random(3)
    made = []
    for i in range(count):
        words = [rng.choice(PLAIN) for _ in range(rng.randrange(1, 20))]
        words.insert(rng.randrange(len(words)), rng.choice((GOOD, BAD)[i % 2]))
        made.append((" ".join(words) + rng.choice((".", "!", "")), ("good", "bad")[i % 2]))
    return made
