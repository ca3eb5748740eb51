"""Few-shot: 1, 2, 5, 10 and 50 cats and dogs each, five draws; a trained probe and three that are solved for.

python -m tltrain.sweep --config configs/few_shot.py --workdir runs/few_shot --seeds 5
Two CPU cores and 2,000 of the images. Val accuracy over 5 draws, in percent, mean +- standard deviation:

examples a class   adam            ridge           logreg          knn
               1   85.80 +- 7.22   81.85 +- 16.55  81.85 +- 16.55  87.50 +- 3.10
               2   91.70 +- 2.99   89.10 +- 8.19   89.25 +- 8.20   89.25 +- 5.50
               5   94.45 +- 1.05   96.50 +- 0.79   96.45 +- 0.99   89.80 +- 3.84
              10   95.25 +- 0.40   97.50 +- 0.50   97.50 +- 0.47   91.75 +- 2.24
              50   97.60 +- 0.55   97.80 +- 0.82   97.70 +- 0.21   95.00 +- 1.29
"""

from tltrain.config import default


def get_config():
    config = default()
    config.data.source = "tfds:cats_vs_dogs"
    config.probe.update(epochs=20, learning_rate=1e-2)
    return config


def sweep():
    for shots in (1, 2, 5, 10, 50):
        yield {"data.shots": shots, "probe.optimizer": "adam"}
        yield {"data.shots": shots, "probe.optimizer": "ridge", "probe.epochs": 1, "probe.weight_decay": 10.0}
        yield {"data.shots": shots, "probe.optimizer": "logreg", "probe.epochs": 1}
        yield {"data.shots": shots, "probe.optimizer": "knn", "probe.epochs": 1}
