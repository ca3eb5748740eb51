"""Film reviews of the IMDB (Maas et al. 2011), good or bad, by BERT: the classic tutorial of text.

python -m tltrain.main --config configs/imdb.py
TFDS imdb_reviews, 25,000 reviews to train on and 25,000 to test with; the weights are 440 MB of the Hugging Face Hub.
"""

from tltrain.config import default


def get_config():
    config = default()
    config.data.source = "tfds:imdb_reviews"
    config.data.splits = ("train[:90%]", "train[90%:]", "test")
    config.data.max_tokens = 256
    config.model.backbone = "bert_base_uncased"
    config.probe.update(epochs=5, schedule="cosine")
    config.finetune.update(
        epochs=2,
        freeze_until="layer_9",
        optimizer="adamw",
        weight_decay=0.01,
        learning_rate=5e-5,
        schedule="cosine",
        warmup_epochs=0.2,
        clip_norm=1.0,
    )
    return config
