"""The table of a BERT of two layers and a file that fills it; what readers see of a backbone of the Hub."""

import jax
import numpy as np
from safetensors.numpy import save_file

from tltrain.models.backbone import HUGGING_FACE

WORDS, POSITIONS, TYPES, HIDDEN, INNER, LAYERS = 50, 16, 2, 8, 12, 2


class Bert:
    hub_prefixes = ("bert.",)
    hub_layouts = (HUGGING_FACE,)
    hub_unused = (r"embeddings\.position_ids", r"pooler\..*", r"cls\..*")
    weight_file = None

    def keras_layers(self):
        return []

    def hub_name(self, stage, layer):
        return f"encoder.layer.{stage.removeprefix('layer_')}.{layer}" if "_" in stage else f"{stage}.{layer}"


BERT = Bert()


def shapes(pooler=False):
    def of(**sizes):
        return {name: jax.ShapeDtypeStruct(size, np.float32) for name, size in sizes.items()}

    def dense(inputs, outputs):
        return of(kernel=(inputs, outputs), bias=(outputs,))

    norm = of(scale=(HIDDEN,), bias=(HIDDEN,))
    sizes = {"word_embeddings": WORDS, "position_embeddings": POSITIONS, "token_type_embeddings": TYPES}
    stages = {"embeddings": {name: of(embedding=(size, HIDDEN)) for name, size in sizes.items()} | {"LayerNorm": norm}}
    for i in range(LAYERS):
        names = ("attention.self.query", "attention.self.key", "attention.self.value", "attention.output.dense")
        stages[f"layer_{i}"] = {name: dense(HIDDEN, HIDDEN) for name in names} | {
            "attention.output.LayerNorm": norm,
            "intermediate.dense": dense(HIDDEN, INNER),
            "output.dense": dense(INNER, HIDDEN),
            "output.LayerNorm": norm,
        }
    if pooler:
        stages["pooler"] = {"dense": dense(HIDDEN, HIDDEN)}
    return {"params": stages, "batch_stats": {}}


def variables(pooler=False, seed=0):
    rng = np.random.default_rng(seed)
    return jax.tree.map(lambda leaf: rng.normal(0.5, 1, leaf.shape).astype(np.float32), shapes(pooler))


def arrays(pooler=True):
    """What a file of the Hub holds, by its own names."""
    found = {"embeddings.position_ids": np.arange(POSITIONS)[None]}
    for stage, layers in variables(pooler)["params"].items():
        for layer, leaves in layers.items():
            for leaf, array in leaves.items():
                name = f"{BERT.hub_name(stage, layer)}.{'bias' if leaf == 'bias' else 'weight'}"
                found[name] = np.ascontiguousarray(array.T) if leaf == "kernel" else array
    return found


def write(path, content=None):
    save_file(arrays() if content is None else content, path)
    return path


def same(ours, theirs):
    assert jax.tree.structure(ours) == jax.tree.structure(theirs)
    assert all(jax.tree.leaves(jax.tree.map(np.array_equal, ours, theirs)))
    return True
