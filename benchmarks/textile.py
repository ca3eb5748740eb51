"""The tutorial's job on the images of the quickstart, which come with its installation: 1,600 to train on, 400 val."""

import runpy
from pathlib import Path

QUICKSTART = Path(__file__).parent.parent / "configs" / "quickstart.py"


def get_config():
    config = runpy.run_path(str(QUICKSTART))["get_config"]()
    config.data.image_size = (224, 224)
    config.model.batch_norm_momentum = None
    config.probe.update(epochs=5, schedule="constant")
    config.finetune.update(
        batch_norm="inference", learning_rate=1e-5, schedule="constant", warmup_epochs=0.0, clip_norm=0.0
    )
    return config
