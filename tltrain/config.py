"""The keys of an experiment: each once, in `default`, with its meaning and unit; and what values they may take."""

import difflib
import json
import math
from collections.abc import Callable
from typing import Any

from ml_collections import ConfigDict, config_dict

from tltrain.errors import ConfigError

PHASES = ("probe", "finetune")


def default() -> ConfigDict:
    """Every key of a run, at the values of the classic tutorial. A config file changes what differs."""
    config = ConfigDict()
    config.seed = 0  # of initial weights, order of examples, augmentation and dropout
    config.batch_size = 32  # examples a step, over all devices
    config.parallel = "jit"  # "jit" | "pmap": how the step is spread over the local devices

    config.data = data = ConfigDict()
    data.source = "tfds:cats_vs_dogs"  # "tfds:NAME" | "folder:PATH" with one sub-folder a class
    data.data_dir = ""  # where TFDS keeps its data sets; "": TFDS' own default
    data.splits = ("train[:80%]", "train[80%:]")  # (train, val) or (train, val, test)
    data.image_size = (224, 224)  # height and width in pixels that the backbone sees
    data.resize = "stretch"  # "stretch": aspect ratio not kept | "crop": keep it, cut the longer side
    data.pixels = "backbone"  # "backbone": as it was trained | "unit": the /255 of many tutorials, wrong for all here
    data.max_corrupt = 0.001  # share of unreadable images above which the run stops
    data.max_memory_gib = 8.0  # GiB of encoded images that a TFDS split may hold in memory
    data.augment = augment = ConfigDict()  # strengths; a phase turns them on with its own `augment`
    augment.horizontal_flip = True  # mirror left to right, every other image
    augment.vertical_flip = False  # mirror top to bottom, every other image
    augment.min_area = 0.7  # smallest share of the image that a random crop keeps; 1: no crop
    augment.rotation = 10.0  # degrees, at most, to either side
    augment.color = 0.1  # largest relative change of brightness, contrast and saturation

    config.model = model = ConfigDict()
    model.backbone = "mobilenet_v2"  # a name in tltrain.models.zoo
    model.weights = "imagenet"  # "imagenet" | path of a Keras .h5 | "random"
    model.head = "auto"  # "sigmoid": one unit, two classes | "softmax" | "auto": sigmoid where there are two
    model.dropout = 0.0  # share of pooled features zeroed in training
    model.batch_norm_momentum = config_dict.placeholder(float)  # share of the old statistics; None: the backbone's own
    model.dtype = "float32"  # "float32" | "bfloat16": of activations; parameters are float32

    config.loss = loss = ConfigDict()
    loss.label_smoothing = 0.0  # share of the target spread evenly over the classes
    loss.class_weights = config_dict.placeholder(object)  # None | "auto": inverse frequency | {class name: weight}

    config.probe = _phase(epochs=5, learning_rate=1e-3, freeze_until="all", augment=False)
    config.finetune = _phase(epochs=0, learning_rate=1e-5, freeze_until="block_12", augment=True)

    config.features = features = ConfigDict()
    features.enabled = "auto"  # "auto" | "on" | "off": compute frozen stages once and store their activations
    features.dtype = "model"  # "model": as the activations are | "bfloat16": half the space, rounded
    features.augment_views = 0  # augmented views stored of each training image, used in turn by epoch; 0: none
    features.dir = ""  # where they are stored; "": below the cache folder of tltrain

    config.checkpoint = checkpoint = ConfigDict()
    checkpoint.every_steps = 0  # save within an epoch too, every so many steps; 0: at the end of each epoch alone
    checkpoint.keep = 2  # newest checkpoints kept of each phase, beside the best one
    checkpoint.best = "accuracy"  # "accuracy" | "loss" on val: what makes a checkpoint the best one

    config.log = log = ConfigDict()
    log.every_steps = 50  # steps between two lines of metrics.jsonl within an epoch
    log.tensorboard = True  # write TensorBoard events
    log.wandb_project = ""  # name of a project of Weights & Biases to log to as well; "": none
    return config


def _phase(epochs: int, learning_rate: float, freeze_until: str, augment: bool) -> ConfigDict:
    phase = ConfigDict()
    phase.epochs = epochs  # passes over the train split; 0 skips the phase
    phase.freeze_until = freeze_until  # name of the last frozen stage | "all" | None: nothing is frozen
    phase.batch_norm = "inference"  # of trainable stages, "inference": stored statistics | "train": of the batch
    phase.augment = augment  # random augmentation of the training images
    phase.optimizer = "adam"  # "adam" | "adamw" | "sgd"
    phase.learning_rate = learning_rate  # at its peak, a step
    phase.schedule = "constant"  # "constant" | "cosine": to zero at the last step
    phase.warmup_epochs = 0.0  # epochs of linear warm-up from zero
    phase.momentum = 0.9  # of sgd
    phase.weight_decay = 0.0  # of adamw (decoupled) and sgd (L2), on kernels alone
    phase.clip_norm = 0.0  # largest global norm of the trainable gradients; 0: not clipped
    return phase


def _one_of(*values):
    return lambda v: v in values, " or ".join(repr(v) for v in values)


def _number(low, high, integer=False):
    kind = int if integer else (int, float)
    bounds = f">= {low}" if high == math.inf else f"from {low} to {high}"

    def holds(v):
        return isinstance(v, kind) and not isinstance(v, bool) and low <= v <= high and math.isfinite(v)

    return holds, f"{'an integer' if integer else 'a number'} {bounds}"


_BOOL = (lambda v: isinstance(v, bool), "True or False")
_TEXT = (lambda v: isinstance(v, str), "a string")
_SPLITS = (
    lambda v: isinstance(v, tuple) and len(v) in (2, 3) and all(isinstance(s, str) for s in v),
    "a tuple of two or three split expressions, (train, val) or (train, val, test)",
)
_SIZE = (
    lambda v: isinstance(v, tuple) and len(v) == 2 and all(isinstance(n, int) and 32 <= n <= 4096 for n in v),
    "a tuple (height, width), each from 32 to 4096 pixels",
)
_SOURCE = (
    lambda v: isinstance(v, str) and v.split(":", 1)[0] in ("tfds", "folder") and bool(v.partition(":")[2]),
    "'tfds:NAME' or 'folder:PATH'",
)
_WEIGHT_OF_CLASS = (
    lambda v: v is None or v == "auto" or (_is_dict(v) and all(_number(0, math.inf)[0](w) for w in v.values())),
    "None, 'auto' or a dict of class name to weight",
)


def _is_dict(value) -> bool:
    return isinstance(value, dict | ConfigDict)


_RULES: dict[str, tuple[Callable[[Any], bool], str]] = {
    "seed": _number(0, 2**31 - 1, integer=True),
    "batch_size": _number(1, 2**20, integer=True),
    "parallel": _one_of("jit", "pmap"),
    "data.source": _SOURCE,
    "data.data_dir": _TEXT,
    "data.splits": _SPLITS,
    "data.image_size": _SIZE,
    "data.resize": _one_of("stretch", "crop"),
    "data.pixels": _one_of("backbone", "unit"),
    "data.max_corrupt": _number(0, 1),
    "data.max_memory_gib": _number(0, math.inf),
    "data.augment.horizontal_flip": _BOOL,
    "data.augment.vertical_flip": _BOOL,
    "data.augment.min_area": _number(0.01, 1),
    "data.augment.rotation": _number(0, 180),
    "data.augment.color": _number(0, 1),
    "model.backbone": _TEXT,
    "model.weights": (lambda v: isinstance(v, str) and bool(v), "'imagenet', 'random' or the path of a Keras .h5"),
    "model.head": _one_of("auto", "sigmoid", "softmax"),
    "model.dropout": _number(0, 0.99),
    "model.batch_norm_momentum": (lambda v: v is None or _number(0, 1)[0](v), "None or a number from 0 to 1"),
    "model.dtype": _one_of("float32", "bfloat16"),
    "loss.label_smoothing": _number(0, 0.99),
    "loss.class_weights": _WEIGHT_OF_CLASS,
    "features.enabled": _one_of("auto", "on", "off"),
    "features.dtype": _one_of("model", "bfloat16"),
    "features.augment_views": _number(0, math.inf, integer=True),
    "features.dir": _TEXT,
    "checkpoint.every_steps": _number(0, math.inf, integer=True),
    "checkpoint.keep": _number(1, math.inf, integer=True),
    "checkpoint.best": _one_of("accuracy", "loss"),
    "log.every_steps": _number(1, math.inf, integer=True),
    "log.tensorboard": _BOOL,
    "log.wandb_project": _TEXT,
}
_PHASE_RULES = {
    "epochs": _number(0, math.inf, integer=True),
    "freeze_until": (lambda v: v is None or isinstance(v, str), "a stage name, 'all' or None"),
    "batch_norm": _one_of("inference", "train"),
    "augment": _BOOL,
    "optimizer": _one_of("adam", "adamw", "sgd"),
    "learning_rate": _number(0, math.inf),
    "schedule": _one_of("constant", "cosine"),
    "warmup_epochs": _number(0, math.inf),
    "momentum": _number(0, 1),
    "weight_decay": _number(0, math.inf),
    "clip_norm": _number(0, math.inf),
}
RULES = _RULES | {f"{phase}.{key}": rule for phase in PHASES for key, rule in _PHASE_RULES.items()}


def flatten(config: ConfigDict | dict, prefix: str = "") -> dict[str, Any]:
    """`{"data.source": ...}` of a nested config; the dict of `loss.class_weights` is one value."""
    flat: dict[str, Any] = {}
    for key, value in config.items():
        name = f"{prefix}{key}"
        if _is_dict(value) and name != "loss.class_weights":
            flat |= flatten(value, f"{name}.")
        else:
            flat[name] = value
    return flat


def unknown(key: str) -> str | None:
    """What is wrong with the name `key`, with the nearest known one; None where it is a key or a group of keys."""
    groups = {name[:i] for name in RULES for i in range(len(name)) if name[i] == "."}
    if key in RULES or key in groups:
        return None
    leaf = key.rpartition(".")[2]
    same_leaf = [name for name in RULES if name.rpartition(".")[2] == leaf]
    near = difflib.get_close_matches(key, [*RULES, *groups], n=1, cutoff=0.6) or same_leaf
    return f"config has no key {key!r}" + (f", did you mean {near[0]!r}?" if near else "")


def validate(config: ConfigDict) -> None:
    """Checks names, types, ranges and rules between keys.

    Raises:
        ConfigError: names every problem at once: the key, its value and what is allowed.
    """
    flat = flatten(config)
    problems = [message for key in flat if (message := unknown(key))]
    problems += [f"{key} is missing" for key in RULES if key not in flat]
    problems += [
        f"{key} = {flat[key]!r}, allowed: {allowed}"
        for key, (holds, allowed) in RULES.items()
        if key in flat and not holds(flat[key])
    ]
    if not problems:
        problems = _conflicts(config)
    if problems:
        count = "a problem" if len(problems) == 1 else f"{len(problems)} problems"
        raise ConfigError("; ".join([f"the config has {count}", *problems]))


def _conflicts(config) -> list[str]:
    problems = []
    if not any(config[phase].epochs for phase in PHASES):
        problems.append("probe.epochs = 0 and finetune.epochs = 0, allowed: at least one of them above 0")
    for name in PHASES:
        phase = config[name]
        if phase.optimizer == "adam" and phase.weight_decay:
            problems.append(f"{name}.weight_decay = {phase.weight_decay}, allowed: 0 with adam; use adamw for decay")
        if phase.warmup_epochs > phase.epochs > 0:
            problems.append(f"{name}.warmup_epochs = {phase.warmup_epochs}, allowed: at most {name}.epochs")
        if config.features.enabled == "on" and not config.features.augment_views and phase.augment and phase.epochs:
            problems.append(
                f"features.enabled = 'on' and {name}.augment = True, allowed: one of them, "
                "or both with features.augment_views > 0"
            )
    if config.data.source.startswith("folder:") and config.data.data_dir:
        problems.append(f"data.data_dir = {config.data.data_dir!r}, allowed: '' with a folder, whose path is in source")
    return problems


def to_json(config: ConfigDict) -> str:
    """The resolved config as JSON, keys sorted; tuples become lists."""
    return json.dumps(config.to_dict(), indent=2, sort_keys=True)


def from_dict(stored: dict) -> ConfigDict:
    """The config that `to_json` wrote, as read from JSON; a key that is newer than it has its default.

    Raises:
        ConfigError: it has a key that is not known.
    """
    config = default()
    for key, value in flatten(stored).items():
        if message := unknown(key):
            raise ConfigError(f"{message}; in a config.json; read it with the version of tltrain that wrote it")
        config.update_from_flattened_dict({key: tuple(value) if isinstance(value, list) else value})
    return config


def differences(config: ConfigDict, stored: dict) -> list[str]:
    """`key: stored -> given` for each key in which `stored`, as read from JSON, differs."""
    given, before = flatten(json.loads(to_json(config))), flatten(stored)
    keys = sorted(given.keys() | before.keys())
    return [f"{key}: {before.get(key)!r} -> {given.get(key)!r}" for key in keys if given.get(key) != before.get(key)]
