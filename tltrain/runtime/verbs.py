"""The verbs, each with what it does and the arguments of an example, for the list of verbs and for every `--help`."""

from typing import NamedTuple


class Verb(NamedTuple):
    """The module `tltrain.NAME`, whose `main(argv)` returns an exit code."""

    what: str
    example: str


VERBS = {
    "main": Verb(
        "Trains what a config describes; the same command goes on where it stopped.",
        "--config configs/cats_dogs.py --config.seed=1 --config.finetune.freeze_until=block_9",
    ),
    "doctor": Verb("Says what would go wrong in a run, before it costs hours.", "--config configs/cats_dogs.py"),
    "find_lr": Verb("Finds the learning rates a phase bears.", "--config configs/cats_dogs.py --phase finetune"),
    "sweep": Verb(
        "Runs every arm of a config with every seed, and makes their table.",
        "--config configs/cats_dogs_ablation.py --workdir runs/ablation --seeds 3",
    ),
    "report": Verb("Writes the page of a finished run, or of several side by side.", "runs/cats_dogs runs/mine"),
    "predict": Verb(
        "Says what the best model of a finished run makes of files, such as images.",
        "--workdir runs/cats_dogs photos/ a.jpg --output predictions.csv",
    ),
    "evaluate": Verb(
        "Evaluates the best model of a finished run on a split or a folder.",
        "--workdir runs/cats_dogs --source folder:other_photos --split train",
    ),
    "export": Verb(
        "Writes a finished run as files that need no tltrain.", "--workdir runs/cats_dogs --format keras,onnx"
    ),
    "features": Verb("Shows, removes or computes stored activations of frozen stages.", "--list"),
}
