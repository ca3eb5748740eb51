"""What the jobs in Keras share."""

import time

import keras


def make_head(num_classes):
    """A dense layer, one output for two classes, and its loss."""
    if num_classes == 2:
        return keras.layers.Dense(1, "sigmoid"), "binary_crossentropy"
    return keras.layers.Dense(num_classes, "softmax"), "sparse_categorical_crossentropy"


def make_optimizer(phase, steps_per_epoch):
    """That of `phase` of a config."""
    rate, warmup = phase["learning_rate"], round(phase["warmup_epochs"] * steps_per_epoch)
    if phase["schedule"] == "cosine":
        steps = phase["epochs"] * steps_per_epoch - warmup
        options = {"warmup_target": rate, "warmup_steps": warmup} if warmup else {}
        rate = keras.optimizers.schedules.CosineDecay(0.0 if warmup else rate, steps, **options)
    options = {"weight_decay": phase["weight_decay"] or None, "global_clipnorm": phase["clip_norm"] or None}
    return keras.optimizers.Adam(rate, **options)


class Timer(keras.callbacks.Callback):
    """Seconds of the training part of each epoch."""

    def __init__(self):
        super().__init__()
        self.seconds, self.running = [], False

    def on_epoch_begin(self, epoch, logs=None):
        self.started, self.running = time.perf_counter(), True

    def on_test_begin(self, logs=None):
        if self.running:
            self.seconds.append(time.perf_counter() - self.started)
            self.running = False
