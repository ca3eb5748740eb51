"""Writes the golden files of texts: what transformers makes of rows of tokens and of sentences.

PYTHONPATH=tests python tests/golden/make_text.py VOCABULARY, where transformers and torch are installed.
`bert.npz`: every third feature of each hidden state, and what the pooler gives, at weights that follow from names.
`tokens.npz`: ids of sentences by the tokenizer of MiniLM, whose vocab.txt is VOCABULARY; with them, the sentences of
which the tokenizer that is written in Python makes others.
"""

import json
import sys
from pathlib import Path

import numpy as np
import torch
import transformers
from small_text import CONFIGS, EVERY, array, pairs, sentences, token_rows
from transformers.models.bert.tokenization_bert_legacy import BertTokenizerLegacy

WHOLE, CUT = 1_000_000, 32


def hidden_states(family):
    """`{name: array}`: `FAMILY/i` float32 `[tokens, features]` of rows one after another, and the shapes of weights."""
    config = transformers.AutoConfig.for_model(**CONFIGS[family])
    config._attn_implementation = "eager"
    model = transformers.AutoModel.from_config(config).eval()
    weights = {name: array(name, tuple(value.shape)) for name, value in model.state_dict().items()}
    model.load_state_dict({name: torch.from_numpy(value) for name, value in weights.items()})
    rows = token_rows()
    longest = max(len(row["ids"]) for row in rows)
    padded = {key: torch.tensor([[*row[key], *[0] * (longest - len(row[key]))] for row in rows]) for key in rows[0]}
    mask = torch.tensor([[1] * len(row["ids"]) + [0] * (longest - len(row["ids"])) for row in rows])
    given = {"input_ids": padded["ids"], "attention_mask": mask, "output_hidden_states": True}
    with torch.no_grad():
        found = model(**given, **({"token_type_ids": padded["types"]} if family == "bert" else {}))
    kept = mask.bool().numpy()
    made = {f"{family}/{i}": state.numpy()[kept][:, ::EVERY] for i, state in enumerate(found.hidden_states)}
    if family == "bert":
        made["bert/pooled"] = found.pooler_output.numpy()
    shapes = json.dumps({name: value.shape for name, value in weights.items()})
    return made | {f"{family}/shapes": np.frombuffer(shapes.encode(), np.uint8)}


def tokens(vocabulary):
    """Ids and types, those of all sentences one after another, and how many each has."""
    fast = transformers.BertTokenizer(vocab=vocabulary, do_lower_case=True)
    in_python = BertTokenizerLegacy(vocabulary, do_lower_case=True)
    made = {}

    def store(name, found):
        made[f"{name}/ids"] = np.asarray([i for ids in found["input_ids"] for i in ids], np.uint16)
        made[f"{name}/types"] = np.asarray([i for ids in found["token_type_ids"] for i in ids], np.uint8)
        made[f"{name}/lengths"] = np.asarray([len(ids) for ids in found["input_ids"]], np.int32)

    texts = sentences()
    whole = fast(texts, truncation=True, max_length=WHOLE)
    store("whole", whole)
    store("cut", fast(texts, truncation=True, max_length=CUT))
    first, second = zip(*pairs(), strict=True)
    store("pairs", fast(list(first), list(second), truncation="longest_first", max_length=CUT))
    others = [in_python(text)["input_ids"] for text in texts]
    differing = [i for i, ids in enumerate(whole["input_ids"]) if ids != others[i]]
    for i in differing:
        print("in Python", i, ascii(texts[i])[:200])
        print("   ", fast.convert_ids_to_tokens(whole["input_ids"][i])[:40])
        print("   ", fast.convert_ids_to_tokens(others[i])[:40])
    print(len(differing), "sentences differ")
    made["differing"] = np.asarray(differing, np.int32)
    return made


def main(vocabulary):
    """Writes both files."""
    files = {"bert": hidden_states("bert") | hidden_states("distilbert"), "tokens": tokens(vocabulary)}
    for name, arrays in files.items():
        path = Path(__file__).parent / f"{name}.npz"
        np.savez_compressed(path, **arrays)
        print(path.name, path.stat().st_size, "bytes")


if __name__ == "__main__":
    main(sys.argv[1])
