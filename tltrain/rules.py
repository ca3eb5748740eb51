"""What each key of a config may be, and whether a name is a key."""

import difflib
import re
from collections.abc import Callable
from typing import Any

from ml_collections import ConfigDict

PHASES = ("probe", "finetune")
SOLVED = ("ridge", "logreg", "knn")  # optimizers that solve for the head, in place of training


def _one_of(*values):
    return lambda v: v in values, " or ".join(repr(v) for v in values)


def _number(low, high, integer=False):
    kind = int if integer else (int, float)

    def holds(v):
        return isinstance(v, kind) and not isinstance(v, bool) and low <= v <= high

    return holds, f"{'an integer' if integer else 'a number'} from {low} to {high}"


LARGEST = 1e38  # that float32 holds
_MOST = 2**31 - 1  # that int32 counts
_COUNT = _number(1, _MOST, integer=True)
_WHOLE = _number(0, _MOST, integer=True)
_EPOCHS = _number(0, 1_000_000, integer=True)
_BOOL = (lambda v: isinstance(v, bool), "True or False")
_TEXT = (lambda v: isinstance(v, str), "a string")
_SHA256 = (
    lambda v: isinstance(v, str) and bool(re.fullmatch("([0-9a-fA-F]{64})?", v)),
    "'' or the 64 hex digits that sha256sum prints",
)
_SPLITS = (
    lambda v: isinstance(v, tuple) and len(v) in (2, 3) and all(isinstance(s, str) for s in v),
    "a tuple of two or three split expressions, (train, val) or (train, val, test)",
)
_SIZE = (
    lambda v: (
        v is None or (isinstance(v, tuple) and len(v) == 2 and all(isinstance(n, int) and 32 <= n <= 4096 for n in v))
    ),
    "None or a tuple (height, width), each from 32 to 4096 pixels",
)
_RANDAUGMENT = (
    lambda v: (
        (isinstance(v, tuple) and len(v) == 2)
        and (_COUNT[0](v[0]) or (v == (0, 0) and not isinstance(v[0], bool)))
        and _number(0, 10)[0](v[1])
    ),
    "(0, 0), or a tuple (operations from 1 on, magnitude from 0 to 10)",
)
_SOURCE = (
    lambda v: isinstance(v, str) and v.split(":", 1)[0] in ("tfds", "folder", "table") and bool(v.partition(":")[2]),
    "'tfds:NAME', 'folder:PATH' or 'table:PATH'",
)
_COLUMN = (lambda v: isinstance(v, str) and bool(v), "the name of a column")
_COLUMNS = (
    lambda v: isinstance(v, tuple) and len(v) in (1, 2) and all(map(_COLUMN[0], v)) and len(set(v)) == len(v),
    "a tuple of the names of one or two columns",
)
_NAMES = (
    lambda v: isinstance(v, tuple) and bool(v) and all(map(_COLUMN[0], v)) and len(set(v)) == len(v),
    "a tuple of names of layers, each once, or ('all',)",
)
_WEIGHTS = (
    lambda v: isinstance(v, str) and v not in ("", "random:", "hf:", "random:hf:"),
    "'pretrained', 'imagenet', 'random', the path of a Keras .h5 or .keras, of an .npz of Flax, of a "
    "model.safetensors or its folder, 'hf:OWNER/NAME[@REVISION]', or 'random:' and one of the last two, whose sizes "
    "and tokens alone are taken",
)
_WEIGHT_OF_CLASS = (
    lambda v: v is None or v == "auto" or (is_dict(v) and all(_number(0, LARGEST)[0](w) for w in v.values())),
    "None, 'auto' or a dict of class name to weight",
)


def is_dict(value: Any) -> bool:
    """Whether `value` is a group of keys, or a value that is a dict."""
    return isinstance(value, dict | ConfigDict)


def shown(value: Any) -> str:
    """`value` in a line that is not long."""
    if is_dict(value):
        value = {key: value[key] for key in value}
    try:
        text = repr(value).replace("\n", " ")
    except ValueError:  # Python prints no integer of so many digits
        text = "a huge integer"
    return text if len(text) <= 80 else f"{text[:60]} ... {text[-15:]}"


_RULES: dict[str, tuple[Callable[[Any], bool], str]] = {
    "seed": _WHOLE,
    "batch_size": _number(1, 2**20, integer=True),
    "task": _one_of("auto", "classification", "multi_label", "regression"),
    "parallel": _one_of("jit", "pmap"),
    "data.source": _SOURCE,
    "data.data_dir": _TEXT,
    "data.splits": _SPLITS,
    "data.text": _COLUMNS,
    "data.image": _COLUMN,
    "data.label": _COLUMN,
    "data.split": _TEXT,
    "data.image_size": _SIZE,
    "data.max_tokens": _number(8, 8192, integer=True),
    "data.shots": _WHOLE,
    "data.resize": _one_of("stretch", "crop"),
    "data.pixels": _one_of("backbone", "unit"),
    "data.max_corrupt": _number(0, 1),
    "data.augment.horizontal_flip": _BOOL,
    "data.augment.vertical_flip": _BOOL,
    "data.augment.min_area": _number(0.01, 1),
    "data.augment.rotation": _number(0, 180),
    "data.augment.color": _number(0, 1),
    "data.augment.randaugment": _RANDAUGMENT,
    "model.backbone": _TEXT,
    "model.weights": _WEIGHTS,
    "model.sha256": _SHA256,
    "model.head": _one_of("auto", "sigmoid", "softmax"),
    "model.pool": _one_of("auto", "cls", "pooler", "mean", "map"),
    "model.dropout": _number(0, 0.99),
    "model.batch_norm_momentum": (lambda v: v is None or _number(0, 1)[0](v), "None or a number from 0 to 1"),
    "model.dtype": _one_of("float32", "bfloat16"),
    "loss.label_smoothing": _number(0, 0.99),
    "loss.class_weights": _WEIGHT_OF_CLASS,
    "features.enabled": _one_of("auto", "on", "off"),
    "features.dtype": _one_of("model", "bfloat16"),
    "features.augment_views": _EPOCHS,
    "features.dir": _TEXT,
    "checkpoint.every_steps": _WHOLE,
    "checkpoint.keep": _COUNT,
    "checkpoint.best": _one_of("accuracy", "loss"),
    "log.every_steps": _COUNT,
    "log.tensorboard": _BOOL,
    "log.wandb_project": _TEXT,
}
_PHASE_RULES = {
    "epochs": _EPOCHS,
    "patience": _EPOCHS,
    "freeze_until": (lambda v: v is None or isinstance(v, str), "a stage name, 'all', 'auto' or None"),
    "unfreeze_every_epochs": _EPOCHS,
    "train_only": _one_of("all", "batch_norm", "bias", "lora"),
    "lora.rank": _number(1, 4096, integer=True),
    "lora.alpha": _number(0.001, 1_000_000),
    "lora.targets": _NAMES,
    "batch_norm": _one_of("inference", "train"),
    "remat": _BOOL,
    "augment": _BOOL,
    "mixup": _number(0, 100),
    "cutmix": _number(0, 100),
    "optimizer": _one_of("adam", "adamw", "sgd", *SOLVED),
    "learning_rate": _number(0, LARGEST),
    "layer_decay": _number(0.01, 1),
    "schedule": _one_of("constant", "cosine"),
    "warmup_epochs": _number(0, LARGEST),
    "momentum": _number(0, 1),
    "weight_decay": _number(0, LARGEST),
    "neighbors": _COUNT,
    "l2_sp": _number(0, LARGEST),
    "ema": _number(0, 0.999999),
    "clip_norm": _number(0, LARGEST),
}
RULES = _RULES | {f"{phase}.{key}": rule for phase in PHASES for key, rule in _PHASE_RULES.items()}
_GROUPS = {name[:i] for name in RULES for i in range(len(name)) if name[i] == "."}


def holds(key: str, value: Any) -> bool:
    """Whether `value` is one that `key` may have."""
    try:
        return RULES[key][0](value)
    except Exception:  # an object compares as it likes: an array has no truth
        return False


def unknown(key: str) -> str | None:
    """What is wrong with the name `key`, with the nearest known one; None where it is a key or a group of keys."""
    if key in RULES or key in _GROUPS:
        return None
    leaf = key.rpartition(".")[2]
    same_leaf = [name for name in RULES if name.rpartition(".")[2] == leaf]
    near = difflib.get_close_matches(key, [*RULES, *_GROUPS], n=1, cutoff=0.6) or same_leaf
    return f"config has no key {key!r}" + (f", did you mean {near[0]!r}?" if near else "")
