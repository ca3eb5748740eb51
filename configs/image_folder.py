"""Your own images: one sub-folder a class, named after it, JPEG, PNG, WebP, BMP, GIF or TIFF.

python -m tltrain.main --config configs/image_folder.py --config.data.source=folder:PATH
Hardware and time: a laptop will do; configs/cats_dogs.py says the seconds for 2,000 images without augmentation.
Expected: the table at the end sets your accuracy beside the answer "always the largest class".
"""

from tltrain.config import default


def get_config():
    config = default()
    config.data.source = "folder:images"  # images/cat/*.jpg, images/dog/*.jpg, ...
    config.data.splits = ("train[:70%]", "train[70%:85%]", "train[85%:]")  # or sub-folders: ("train", "val", "test")
    config.loss.class_weights = "auto"  # classes of different size count the same
    config.probe.update(epochs=10, schedule="cosine")
    config.finetune.update(epochs=5, learning_rate=1e-4, warmup_epochs=1.0, schedule="cosine", clip_norm=1.0)
    return config
