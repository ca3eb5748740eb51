"""Your own table of texts and labels: .csv, .tsv, .jsonl or .parquet.

python -m tltrain.main --config configs/table.py --config.data.source=table:reviews.csv
"""

from tltrain.config import default


def get_config():
    config = default()
    config.data.source = "table:reviews.csv"  # columns "text" and "label"; or set data.text and data.label
    config.model.backbone = "minilm_l6"  # or "bert_base_uncased"; fetched from the Hugging Face Hub once
    config.finetune.update(epochs=2, freeze_until="layer_2", learning_rate=2e-4, schedule="cosine", warmup_epochs=0.3)
    return config
