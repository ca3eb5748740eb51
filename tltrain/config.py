"""The keys of an experiment: each once, in `default`, with its meaning and unit; and what they may be together."""

import json
from typing import Any

from ml_collections import ConfigDict, config_dict

from tltrain import conflicts, places
from tltrain.errors import ConfigError
from tltrain.rules import LARGEST, RULES, holds, is_dict, shown, unknown
from tltrain.rules import PHASES as PHASES  # part of what a config is
from tltrain.rules import SOLVED as SOLVED


class Keys(ConfigDict):
    """A group of keys; where a ConfigDict turns True into the number 1.0 in silence, it refuses."""

    def __setitem__(self, key: str, value: Any) -> None:
        """Raises TypeError where a key of floats would get what no float can be."""
        of_floats = key in self and self.get_type(key) is float
        if of_floats and isinstance(value, int) and (isinstance(value, bool) or abs(value) > LARGEST):
            raise TypeError(f"{key} = {shown(value)}, allowed: a number")
        super().__setitem__(key, Keys(value) if type(value) is ConfigDict else value)


def default() -> ConfigDict:
    """Every key of a run, at the values of the classic tutorial. A config file changes what differs."""
    config = Keys()
    config.seed = 0  # of initial weights, order of examples, augmentation and dropout
    config.batch_size = 32  # examples a step, over all devices
    config.task = "auto"  # "classification" | "multi_label" | "regression": what labels are | "auto": as they are
    config.parallel = "jit"  # "jit" (by shard_map) | "pmap": how the step is spread over the devices

    config.data = data = Keys()
    data.source = (
        "tfds:cats_vs_dogs"  # "tfds:NAME" | "folder:PATH", a sub-folder a class | "table:PATH", .csv and others
    )
    data.data_dir = ""  # where TFDS keeps its data sets; "": TFDS' own default
    data.splits = ("train[:80%]", "train[80%:]")  # (train, val) or (train, val, test)
    data.text = ("text",)  # columns of a table, or features of a TFDS set, that are the text: one, or two for pairs
    data.image = "file"  # column of a table that names the files of images, from its folder
    data.label = "label"  # column of a table, or feature of a TFDS set of text, that is the label
    data.split = ""  # column of a table that says to which split a row belongs; "": none
    data.max_tokens = 128  # of a text; what is longer is cut
    data.shots = 0  # training examples of each class, drawn by `seed`; 0: all there are
    data.image_size = config_dict.placeholder(tuple)  # height, width in pixels for the backbone; None: its own
    data.resize = "stretch"  # "stretch": aspect ratio not kept | "crop": keep it, cut the longer side
    data.pixels = "backbone"  # "backbone": as it was trained | "unit": the /255 of many tutorials, wrong for all here
    data.max_corrupt = 0.001  # share of unreadable examples above which the run stops
    data.augment = augment = Keys()  # strengths; a phase turns them on with its own `augment`
    augment.horizontal_flip = True  # mirror left to right, every other image
    augment.vertical_flip = False  # mirror top to bottom, every other image
    augment.min_area = 0.7  # smallest share of the image that a random crop keeps; 1: no crop
    augment.rotation = 10.0  # degrees, at most, to either side
    augment.randaugment = (0, 0)  # (operations an image, their magnitude 0..10) of RandAugment; (0, 0): none
    augment.color = 0.1  # largest relative change of brightness, contrast and saturation

    config.model = model = Keys()
    model.backbone = "mobilenet_v2"  # a name in tltrain.models.zoo
    model.weights = (
        "pretrained"  # the published ones | path of a file or folder | "hf:OWNER/NAME[@REVISION]" | "random"
    )
    model.sha256 = ""  # of the weight file, 64 hex digits: another file is refused; "": any file
    model.head = "auto"  # "sigmoid": one unit, two classes | "softmax" | "auto": sigmoid where there are two
    model.pool = "auto"  # of tokens, "cls": the first, by a pooler where there is one | "mean" | "map" | as was trained
    model.dropout = 0.0  # share of pooled features zeroed in training
    model.batch_norm_momentum = config_dict.placeholder(float)  # share of the old statistics; None: the backbone's own
    model.dtype = "float32"  # "float32" | "bfloat16": of activations; parameters are float32

    config.loss = loss = Keys()
    loss.label_smoothing = 0.0  # share of the target spread evenly over the classes
    loss.class_weights = config_dict.placeholder(object)  # None | "auto": rare ones count more | {class name: weight}

    config.probe = _phase(epochs=5, learning_rate=1e-3, freeze_until="all", augment=False)
    config.finetune = _phase(epochs=0, learning_rate=1e-5, freeze_until="auto", augment=True)

    config.features = features = Keys()
    features.enabled = "auto"  # "auto" | "on" | "off": compute frozen stages once and store their activations
    features.dtype = "model"  # "model": as the activations are | "bfloat16": half the space, rounded
    features.augment_views = 0  # augmented views stored of each training image, used in turn by epoch; 0: none
    features.dir = ""  # where they are stored; "": below the cache folder of tltrain

    config.checkpoint = checkpoint = Keys()
    checkpoint.every_steps = 0  # save within an epoch too, every so many steps; 0: at the end of each epoch alone
    checkpoint.keep = 2  # newest checkpoints kept of each phase, beside the best one
    checkpoint.best = "accuracy"  # "accuracy" | "loss" on val: what makes a checkpoint the best; see docs/train.md

    config.log = log = Keys()
    log.every_steps = 50  # steps between two lines of metrics.jsonl within an epoch
    log.tensorboard = True  # write TensorBoard events
    log.wandb_project = ""  # name of a project of Weights & Biases to log to as well; "": none
    return config


def _phase(epochs: int, learning_rate: float, freeze_until: str, augment: bool) -> ConfigDict:
    phase = Keys()
    phase.epochs = epochs  # passes over the train split; 0 skips the phase
    phase.patience = 0  # ends after so many epochs without a better one; schedules keep their planned length; 0: never
    phase.freeze_until = (
        freeze_until  # the last frozen stage | "all" | None: no stage | "auto": all but the last quarter
    )
    phase.unfreeze_every_epochs = 0  # one more stage trains every so many epochs, from the top; 0: all from the start
    phase.train_only = "all"  # of the stages after it: "all" | "batch_norm" | "bias" | "lora"; the head always
    phase.lora = lora = Keys()  # with train_only = "lora": factors that train beside kernels, which do not
    lora.rank = 8  # of their product: columns of the first, rows of the second
    lora.alpha = 16.0  # their product is added times alpha / rank
    lora.targets = ("query", "value")  # layers that get them, by name or its end | ("all",): see docs/train.md
    phase.batch_norm = "inference"  # of trainable stages, "inference": stored statistics | "train": of the batch
    phase.remat = False  # compute stages again in the backward pass: more time, less memory of a GPU or TPU
    phase.augment = augment  # random augmentation of the training images
    phase.mixup = 0.0  # alpha: two images and their labels are blended, the share drawn from Beta(alpha, alpha); 0: off
    phase.cutmix = 0.0  # alpha: a box of one image is pasted into another; with mixup, one of the two a step; 0: off
    phase.optimizer = "adam"  # "adam" | "adamw" | "sgd" | "ridge" | "logreg" | "knn": see docs/train.md of these three
    phase.learning_rate = learning_rate  # at its peak, a step
    phase.layer_decay = 1.0  # the rate of a stage is that of the one above it times this; the head has the whole rate
    phase.schedule = "constant"  # "constant" | "cosine": to zero at the last step
    phase.warmup_epochs = 0.0  # epochs of linear warm-up from zero
    phase.momentum = 0.9  # of sgd
    phase.weight_decay = 0.0  # of adamw (decoupled), sgd (L2), ridge and logreg (their penalty; 0: chosen), on kernels
    phase.neighbors = 20  # training examples that vote, of knn; all where there are fewer
    phase.l2_sp = 0.0  # pull of stages to where the phase began; weight_decay is then of the head alone; 0: none
    phase.ema = 0.0  # share of the old average a step keeps; the average is then the phase's model; 0: no average
    phase.clip_norm = 0.0  # largest global norm of the trainable gradients; 0: not clipped
    return phase


def mixes(phase: ConfigDict) -> bool:
    """Whether the training images of `phase` are mixed with each other."""
    return bool(phase.mixup or phase.cutmix)


def flatten(config: ConfigDict | dict, prefix: str = "") -> dict[str, Any]:
    """`{"data.source": ...}` of a nested config; a dict that is given for a key is its value."""
    flat: dict[str, Any] = {}
    for key, value in config.items():
        name = f"{prefix}{key}"
        if is_dict(value) and value and name not in RULES:
            flat |= flatten(value, f"{name}.")
        else:
            flat[name] = value
    return flat


def copied(config: ConfigDict) -> ConfigDict:
    """A config with equal values that shares nothing with `config`; `ConfigDict` copies no dict with dots in its keys.

    Raises:
        ConfigError: it has a key that is not known.
    """
    made = default()
    for key, value in flatten(config).items():
        _assign(made, key, value)
    return made


def _assign(config, key, value):
    if message := unknown(key):
        raise ConfigError(f"{message}; in the config; correct the name")
    group, _, name = key.rpartition(".")
    for part in group.split(".") if group else []:
        config = config[part]
    config[name] = value


def validate(config: ConfigDict) -> None:
    """Checks names, types, ranges and rules between keys.

    Raises:
        ConfigError: names every problem at once: the key, its value and what is allowed.
    """
    if found := problems(config):
        count = "a problem" if len(found) == 1 else f"{len(found)} problems"
        raise ConfigError("; ".join([f"the config has {count}", *found]))


def problems(config: ConfigDict) -> list[str]:
    """What `validate` names, a line each."""
    flat = flatten(config)
    found = [message for key in flat if (message := unknown(key))]
    groups = [key for key in flat if key not in RULES and not unknown(key)]
    found += [f"{key} = {shown(flat[key])}, allowed: the keys of default().{key}" for key in groups]
    found += [f"{key} is missing" for key in RULES if key not in flat and key.partition(".")[0] not in groups]
    found += [
        f"{key} = {shown(flat[key])}, allowed: {allowed}"
        for key, (_, allowed) in RULES.items()
        if key in flat and not holds(key, flat[key])
    ]
    return found or conflicts.between_keys(config)


def to_json(config: ConfigDict) -> str:
    """The resolved config as JSON, keys sorted; tuples become lists."""
    return json.dumps(config.to_dict(), indent=2, sort_keys=True)


def from_dict(stored: dict) -> ConfigDict:
    """The config that `to_json` wrote, as read from JSON, its paths absolute; a key newer than it has its default.

    Raises:
        ConfigError: it has a key that is not known.
    """
    config = default()
    for key, value in ((flat := flatten(stored)) | places.absolute(flat)).items():
        if message := unknown(key):
            raise ConfigError(f"{message}; in a config.json; read it with the version of tltrain that wrote it")
        _assign(config, key, tuple(value) if isinstance(value, list) else value)
    return config


def differences(config: ConfigDict, stored: dict) -> list[str]:
    """`key: stored -> given` for each key in which `stored`, as read from JSON, differs; see `from_dict`."""
    given, before = (flatten(json.loads(to_json(c))) for c in (config, default()))
    before |= flatten(stored)
    given, before = (flat | places.absolute(flat) for flat in (given, before))
    keys = sorted(given.keys() | before.keys())
    return [f"{key}: {before.get(key)!r} -> {given.get(key)!r}" for key in keys if given.get(key) != before.get(key)]
