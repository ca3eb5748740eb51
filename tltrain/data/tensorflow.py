"""The only place of tltrain that reads data with TensorFlow."""

import os
import sys
import threading
from typing import Any

from tltrain.places import cache_dir


def import_tensorflow() -> Any:
    """TensorFlow, imported on first use (seconds), silent, and kept off the accelerator, which is for JAX."""
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
    os.environ.setdefault("TF_ENABLE_ONEDNN_OPTS", "0")
    if not os.environ.get("HOME"):  # else Keras, which comes with it, makes a folder named ~
        os.environ.setdefault("KERAS_HOME", str(cache_dir() / "keras"))
    import tensorflow as tf

    tf.config.set_visible_devices([], "GPU")
    return tf


def begin_import() -> None:
    """Lets another thread import TensorFlow, if it is not there already."""
    if "tensorflow" not in sys.modules:
        threading.Thread(target=import_tensorflow, daemon=True).start()
