"""Where to cut: cats and dogs fine-tuned from five depths, after one and the same probe.

python -m tltrain.sweep --config configs/cats_dogs_ablation.py --workdir runs/ablation --seeds 3
Two CPU cores and 2,000 of the images: 12 minutes. Val accuracy over 3 seeds: frozen 0.982 +- 0.001, block_16 on 0.987
+- 0.001, and no better from there on down to block_10.
"""

from tltrain.config import default


def get_config():
    config = default()
    config.data.source = "tfds:cats_vs_dogs"
    config.probe.epochs = 5
    config.finetune.update(epochs=2, learning_rate=1e-5, augment=False)
    return config


def sweep():
    for stage in ("Conv_1", "block_15", "block_14", "block_12", "block_9"):
        yield {"finetune.freeze_until": stage}
