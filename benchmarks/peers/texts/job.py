"""What `benchmarks/peers.py` runs for texts: its rows, and the job in words and files for the other libraries."""

import json

from tltrain import hub
from tltrain.models import freeze, zoo
from tltrain.training.setup import read_data
from tltrain.weights import reader

UNIT = "text"
JOBS = {
    "KerasHub fit": ("keras", "fit"),
    "KerasHub features first": ("keras", "features"),
    "transformers on PyTorch": ("torch", "fit"),
    "transformers on PyTorch features first": ("torch", "features"),
    "tltrain cold": ("tltrain", "cold"),
    "tltrain features stored": ("tltrain", "stored"),
    "KerasHub features first + fine-tune": ("keras", "finetune"),
    "transformers on PyTorch features first + fine-tune": ("torch", "finetune"),
    "tltrain cold + fine-tune": ("tltrain", "finetune"),
}
FORWARD = {
    "forward: KerasHub (padded to max_tokens)": "keras",
    "forward: KerasHub (sorted by length)": "keras_sorted",
    "forward: transformers on PyTorch": "torch",
    "forward: transformers on PyTorch (sorted by length)": "torch_sorted",
    "forward: onnxruntime": "onnxruntime",
    "forward: onnxruntime (sorted by length)": "onnxruntime_sorted",
    "forward: tltrain": "tltrain",
}


def export(config, scratch):
    """What the other libraries are told of the job; its texts, and the weights with their neighbours, as files."""
    data = read_data(config)
    for name in ("train", "val"):
        split = data.splits[name]
        rows = [{"text": split.read(i).decode(), "label": int(label)} for i, label in enumerate(split.labels)]
        (scratch / f"{name}.json").write_text(json.dumps(rows))
    model = zoo.create(config, len(data.class_names))
    folder = scratch / "weights"
    folder.mkdir()
    path = reader.path_of(config.model.weights, model.backbone)
    found = hub.files(hub.place_of(config.model.weights), weights=False)
    for target, name in ((path, hub.SAFETENSORS), (found.config, "config.json"), (found.tokenizer, "tokenizer.json")):
        (folder / name).symlink_to(target.resolve())
    stages = model.backbone.stages
    return {
        "folder": str(scratch),
        "num_classes": len(data.class_names),
        "max_tokens": config.data.max_tokens,
        "pooling": config.model.pool,
        "weights": str(folder),
        "num_frozen": freeze.cut(stages, config.finetune.freeze_until) - 1,  # layers, after the embeddings
    }
