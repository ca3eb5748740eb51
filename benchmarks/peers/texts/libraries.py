"""The frozen network with pooling in each library, as a function of texts in memory as tokens; and what jobs share."""

import json
from pathlib import Path

import numpy as np

COUNT = 2048  # texts of train
SORTED_BATCH = 64  # the fastest of 32, 64 and 128 for PyTorch and onnxruntime
STEP = 16  # tokens from one padded length to the next, where each length is a program


def examples(job, library):
    """Tokens of texts, a list of ids each."""
    return read_tokens(job, "train")[0][:COUNT]


def read_tokens(job, name):
    """Token ids of each text of a split, cut at `max_tokens`, and labels."""
    from tokenizers import Tokenizer

    tokenizer = Tokenizer.from_file(f"{job['weights']}/tokenizer.json")
    tokenizer.no_padding()
    tokenizer.enable_truncation(job["max_tokens"])
    rows = json.loads((Path(job["folder"]) / f"{name}.json").read_text())
    tokens = [found.ids for found in tokenizer.encode_batch([row["text"] for row in rows])]
    return tokens, [row["label"] for row in rows]


def padded(tokens, length=0, step=1):
    """int64 ids and mask `[B, L]`, where L is `length`, or that of the longest, or the next multiple of `step`."""
    length = length or -(-max(map(len, tokens)) // step) * step
    ids = np.zeros((len(tokens), length), np.int64)
    for row, one in zip(ids, tokens, strict=True):
        row[: len(one)] = one
    return ids, (np.arange(length) < np.asarray([[len(one)] for one in tokens])).astype(np.int64)


def in_batches(run, size, is_sorted, **padding):
    """Calls `run(ids, mask)`, which gives features, on batches padded beforehand, in the order of lengths or not."""
    kept = {}

    def forward(tokens):
        if id(tokens) not in kept:
            order = np.argsort([len(one) for one in tokens], kind="stable") if is_sorted else np.arange(len(tokens))
            parts = np.split(order, range(size, len(order), size))
            kept[id(tokens)] = order, [padded([tokens[i] for i in part], **padding) for part in parts]
        order, batches = kept[id(tokens)]
        features = np.concatenate([run(*batch) for batch in batches])
        return features[np.argsort(order)]

    return forward


def load_torch(job, **options):
    """The network in transformers, without dropout."""
    from transformers import AutoModel

    return AutoModel.from_pretrained(job["weights"], **options).eval()


def pooled(job, model, batch):
    """Features of a padded batch: the mean over tokens, or the first token."""
    hidden = model(**batch).last_hidden_state
    if job["pooling"] == "cls":
        return hidden[:, 0]
    mask = batch["attention_mask"][..., None].to(hidden.dtype)
    return (hidden * mask).sum(1) / mask.sum(1)


def pytorch(job, is_sorted):
    import torch

    model = load_torch(job)

    @torch.inference_mode()
    def run(ids, mask):
        batch = {"input_ids": torch.from_numpy(ids), "attention_mask": torch.from_numpy(mask)}
        return pooled(job, model, batch).numpy()

    return in_batches(run, SORTED_BATCH if is_sorted else job["batch_size"], is_sorted)


def onnx(job, is_sorted):
    import onnxruntime
    import torch

    model = load_torch(job, attn_implementation="eager")

    class Pooled(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.model = model

        def forward(self, input_ids, attention_mask):
            return pooled(job, self.model, {"input_ids": input_ids, "attention_mask": attention_mask})

    path, names = f"{job['folder']}/bert.onnx", ["input_ids", "attention_mask"]
    axes = {name: {0: "batch", 1: "tokens"} for name in names}
    example = tuple(torch.ones(2, 8, dtype=torch.int64) for _ in names)
    torch.onnx.export(Pooled(), example, path, input_names=names, dynamic_axes=axes, dynamo=False)
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])

    def run(ids, mask):
        return session.run(None, dict(zip(names, (ids, mask), strict=True)))[0]

    return in_batches(run, SORTED_BATCH if is_sorted else job["batch_size"], is_sorted)


def load_keras(job):
    """KerasHub's network and the function that pools its outputs: a model of ids and mask."""
    import keras
    import keras_hub

    backbone = keras_hub.models.BertBackbone.from_preset(job["weights"])
    hidden, mask = backbone.output["sequence_output"], backbone.input["padding_mask"]
    if job["pooling"] == "cls":
        features = hidden[:, 0]
    else:
        weight = keras.ops.cast(mask, "float32")[..., None]
        features = keras.ops.sum(hidden * weight, 1) / keras.ops.sum(weight, 1)
    return backbone, keras.Model(backbone.input, features)


def keras_inputs(ids, mask):
    """What KerasHub's BERT takes."""
    return {"token_ids": ids, "padding_mask": mask, "segment_ids": np.zeros_like(ids)}


def keras_predict(job, is_sorted):
    _, model = load_keras(job)
    if is_sorted:
        model.compile(jit_compile=False)  # XLA would compile each length for minutes
        return in_batches(
            lambda ids, mask: np.asarray(model.predict_on_batch(keras_inputs(ids, mask))), SORTED_BATCH, True, step=STEP
        )
    return in_batches(
        lambda ids, mask: model.predict(keras_inputs(ids, mask), batch_size=job["batch_size"], verbose=0),
        COUNT,
        False,
        length=job["max_tokens"],
    )


def tltrain(job):
    from tltrain.cache import forward
    from tltrain.config import from_dict
    from tltrain.data import packing, pipeline
    from tltrain.experiment.train import initial_variables
    from tltrain.runtime.process import Clock
    from tltrain.training import setup

    fixed = setup.load(from_dict(job["config"]), Clock())
    variables, _ = initial_variables(fixed.config, fixed.model)
    split = fixed.data.splits["train"]
    rows = pipeline.tokens(split, pipeline.Corrupt(split, 0.0, print))
    lengths = rows.lengths[:COUNT]

    def all_batches(_):  # their first part is what the others are given
        planned = list(packing.passes(lengths, fixed.mesh.size))
        batches = pipeline.from_tokens(rows, split.labels, planned, fixed.mesh.size)
        features = np.zeros((COUNT, fixed.model.backbone.hidden_size), np.float32)
        for batch in forward.activations(fixed, 0, fixed.num_stages, variables, batches):
            features[batch["index"][batch["mask"]]] = np.asarray(batch["inputs"])[batch["mask"]]
        return features

    layers = [tree for name, tree in variables["params"]["backbone"].items() if name.startswith("layer_")]
    per_token = sum(leaf.size for tree in layers for leaf in matrices(tree))
    attention = 2 * len(layers) * fixed.model.backbone.hidden_size * np.square(lengths).mean()
    all_batches.gflop = 2 * (per_token * lengths.mean() + attention) / 1e9
    return all_batches


def matrices(tree):
    """The kernels of dense layers."""
    import jax

    return [leaf for leaf in jax.tree.leaves(tree) if leaf.ndim == 2]


LIBRARIES = {
    "tltrain": tltrain,
    "keras": lambda job: keras_predict(job, is_sorted=False),
    "keras_sorted": lambda job: keras_predict(job, is_sorted=True),
    "onnxruntime": lambda job: onnx(job, is_sorted=False),
    "onnxruntime_sorted": lambda job: onnx(job, is_sorted=True),
    "torch": lambda job: pytorch(job, is_sorted=False),
    "torch_sorted": lambda job: pytorch(job, is_sorted=True),
}
