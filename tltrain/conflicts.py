"""Which values of keys, each allowed by itself, contradict each other."""

from ml_collections import ConfigDict

from tltrain import hub
from tltrain.rules import PHASES, SOLVED

# keys that say how stages train, each where it does nothing
_OF_STAGES = {"train_only": "all", "layer_decay": 1.0, "l2_sp": 0.0, "unfreeze_every_epochs": 0, "remat": False}

# the keys of LoRA, each at its default
_OF_LORA = {"rank": 8, "alpha": 16.0, "targets": ("query", "value")}

# what a head is solved for with
_OF_SOLVED = {"freeze_until": "all", "epochs": 1, "augment": False, "mixup": 0.0, "cutmix": 0.0, "ema": 0.0}
_NEIGHBORS = 20  # the default, where nothing has them


def between_keys(config: ConfigDict) -> list[str]:
    """What of a config, whose keys have values that each may have, cannot be together, a line each."""
    problems = []
    if not any(config[phase].epochs for phase in PHASES):
        problems.append("probe.epochs = 0 and finetune.epochs = 0, allowed: at least one of them above 0")
    for name in PHASES:
        phase = config[name]
        if phase.optimizer == "adam" and phase.weight_decay:
            problems.append(f"{name}.weight_decay = {phase.weight_decay}, allowed: 0 with adam; use adamw for decay")
        problems += _of_solved(name, phase)
        if phase.optimizer not in SOLVED and phase.epochs and not phase.learning_rate:
            problems.append(f"{name}.learning_rate = {phase.learning_rate}, allowed: above 0; epochs = 0 skips a phase")
        if phase.warmup_epochs > phase.epochs > 0:
            problems.append(f"{name}.warmup_epochs = {phase.warmup_epochs}, allowed: at most {name}.epochs")
        if config.features.enabled == "on" and not config.features.augment_views and phase.augment and phase.epochs:
            problems.append(
                f"features.enabled = 'on' and {name}.augment = True, allowed: one of them, "
                "or both with features.augment_views > 0"
            )
        if (
            (phase.mixup or phase.cutmix)
            and phase.epochs
            and (config.features.enabled == "on" or config.features.augment_views)
        ):
            problems.append(
                f"{name}.mixup = {phase.mixup} and {name}.cutmix = {phase.cutmix}, allowed: 0 with "
                "features.enabled = 'on' or features.augment_views > 0: images are mixed, not what is stored of them"
            )
        problems += [
            f"{name}.{key} = {phase[key]!r}, allowed: {off!r} with freeze_until = 'all', where no stage trains"
            for key, off in _OF_STAGES.items()
            if phase.freeze_until == "all" and phase[key] != off
        ]
        if phase.train_only == "lora" and phase.l2_sp:
            problems.append(
                f"{name}.l2_sp = {phase.l2_sp}, allowed: 0.0 with train_only = 'lora', by which kernels stay"
            )
        problems += [
            f"{name}.lora.{key} = {phase.lora[key]!r}, allowed: {default!r} without {name}.train_only = 'lora'"
            for key, default in _OF_LORA.items()
            if phase.train_only != "lora" and phase.lora[key] != default
        ]
    problems += _of_no_steps(config)
    if config.probe.optimizer == "knn":
        problems += _of_neighbors(config)
    if config.model.sha256 and hub.is_random(config.model.weights):
        problems.append(
            f"model.sha256 with model.weights = {config.model.weights!r}, allowed: '', since no file is read"
        )
    if config.features.enabled == "off" and config.features.augment_views:
        problems.append(
            f"features.augment_views = {config.features.augment_views}, allowed: 0 with features.enabled = 'off', "
            "where nothing is stored"
        )
    scheme = config.data.source.partition(":")[0]
    if scheme != "tfds" and config.data.data_dir:
        problems.append(
            f"data.data_dir = {config.data.data_dir!r}, allowed: '' with a {scheme}, whose path is in source"
        )
    if scheme != "table" and config.data.split:
        problems.append(f"data.split = {config.data.split!r}, allowed: '' without a table, of which it is a column")
    return problems


def _of_solved(name: str, phase: ConfigDict) -> list[str]:
    """Of a phase alone: what a head that is solved for cannot have, and the keys of one where it is none."""
    problems = []
    if phase.optimizer in SOLVED and any(phase[key] != value for key, value in _OF_SOLVED.items()):
        wanted = ", ".join(f"{name}.{key} = {value!r}" for key, value in _OF_SOLVED.items())
        problems.append(f"{name}.optimizer = {phase.optimizer!r}, allowed: with {wanted}")
    if phase.optimizer == "ridge" and not phase.weight_decay:
        problems.append(f"{name}.weight_decay = 0 with ridge, allowed: above 0")
    if phase.optimizer == "knn" and phase.weight_decay:
        problems.append(f"{name}.weight_decay = {phase.weight_decay}, allowed: 0 with knn, which has no kernel")
    if phase.optimizer == "knn" and name != "probe":
        problems.append(f"{name}.optimizer = 'knn', allowed: as probe.optimizer alone")
    if phase.optimizer != "knn" and phase.neighbors != _NEIGHBORS:
        problems.append(f"{name}.neighbors = {phase.neighbors}, allowed: {_NEIGHBORS} without knn")
    return problems


def _of_no_steps(config: ConfigDict) -> list[str]:
    """What does nothing where heads are solved for in all phases there are."""
    optimizers = {config[name].optimizer for name in PHASES if config[name].epochs}
    problems = []
    if config.model.dropout and optimizers and optimizers <= set(SOLVED):
        problems.append(
            f"model.dropout = {config.model.dropout}, allowed: 0.0 with {' and '.join(sorted(optimizers))} alone, "
            "which drop no features"
        )
    if config.loss.label_smoothing and optimizers == {"ridge"}:
        problems.append(
            f"loss.label_smoothing = {config.loss.label_smoothing}, allowed: 0.0 with ridge alone, whose targets are "
            "1 and -1"
        )
    return problems


def _of_neighbors(config: ConfigDict) -> list[str]:
    """What else cannot be where the probe is of nearest neighbours."""
    problems = []
    if config.finetune.epochs:
        problems.append(
            f"finetune.epochs = {config.finetune.epochs}, allowed: 0 with probe.optimizer = 'knn', which leaves no "
            "kernel to start from"
        )
    return problems + [
        f"loss.{key} = {config.loss[key]!r}, allowed: {off!r} with probe.optimizer = 'knn', which minimises no loss"
        for key, off in {"label_smoothing": 0.0, "class_weights": None}.items()
        if config.loss[key] != off
    ]
