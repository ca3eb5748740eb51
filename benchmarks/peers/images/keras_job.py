"""The tutorial's job in Keras, on the backend that $KERAS_BACKEND names: one process, one JSON line at its end.

Modes: `fit` runs the frozen base in every step, as the tutorial has it; `features` runs it once and trains the head on
its outputs; `finetune` does that and then trains the top of the base.
"""

import json
import sys

import keras
import numpy as np
import tensorflow as tf
import tensorflow_datasets as tfds
from keras_fit import Timer, make_head, make_optimizer


def main(job):
    keras.utils.set_random_seed(job["seed"])
    train, val = splits(job)
    base = make_base(job)
    head, loss = make_head(job["num_classes"])
    base.trainable = False
    if job["mode"] == "fit":
        model = keras.Sequential([base, keras.layers.GlobalAveragePooling2D(), head])
        model.compile(make_optimizer(job["probe"], len(train)), loss, metrics=["accuracy"])
        model.fit(train, validation_data=val, epochs=job["probe"]["epochs"], verbose=2)
        return {"probe": model.evaluate(val, verbose=0)[1]}
    extractor = keras.Sequential([base, keras.layers.GlobalAveragePooling2D()])
    (train_x, train_y), (val_x, val_y) = features(extractor, train), features(extractor, val)
    probe = keras.Sequential([head])
    probe.compile(make_optimizer(job["probe"], len(train)), loss, metrics=["accuracy"])
    data = {"validation_data": (val_x, val_y), "batch_size": job["batch_size"]}
    probe.fit(train_x, train_y, epochs=job["probe"]["epochs"], verbose=2, **data)
    result = {"probe": probe.evaluate(val_x, val_y, verbose=0)[1]}
    if job["mode"] == "finetune":
        result |= finetune(job, base, head, loss, train, val)
    return result


def splits(job):
    """Train and val as `tf.data`; TFDS where the job comes from there, else folders of images."""
    if job["tfds"]:
        train, val = tfds.load(
            job["tfds"], split=job["splits"], data_dir=job["data_dir"] or None, download=False, as_supervised=True
        )

        def resize(image, label):
            return tf.image.resize(image, job["image_size"]), label

        train, val = (split.map(resize, tf.data.AUTOTUNE) for split in (train, val))
        train, val = train.shuffle(1000).batch(job["batch_size"]), val.batch(job["batch_size"])
    else:
        options = {"image_size": job["image_size"], "batch_size": job["batch_size"], "label_mode": "int"}
        train, val = (
            keras.utils.image_dataset_from_directory(f"{job['folder']}/{name}", shuffle=name == "train", **options)
            for name in ("train", "val")
        )

    def scale(image, label):
        return keras.applications.mobilenet_v2.preprocess_input(image), label

    return [split.map(scale, tf.data.AUTOTUNE).prefetch(tf.data.AUTOTUNE) for split in (train, val)]


def make_base(job):
    base = keras.applications.MobileNetV2(input_shape=(*job["image_size"], 3), include_top=False, weights=None)
    arrays = np.load(job["weights"])
    for layer in base.layers:
        if layer.weights:
            layer.set_weights([arrays[f"{layer.name}/{i}"] for i in range(len(layer.weights))])
    return base


def features(extractor, split):
    pairs = [(extractor.predict_on_batch(images), labels.numpy()) for images, labels in split]
    return [np.concatenate(part) for part in zip(*pairs, strict=True)]


def finetune(job, base, head, loss, train, val):
    first = next(i for i, layer in enumerate(base.layers) if layer.name.startswith(job["trainable_from"] + "_"))
    base.trainable = True
    for layer in base.layers[:first]:
        layer.trainable = False
    model = FineTuned(base, head)
    model.compile(make_optimizer(job["finetune"], len(train)), loss, metrics=["accuracy"])
    timer = Timer()
    model.fit(train, validation_data=val, epochs=job["finetune"]["epochs"], verbose=2, callbacks=[timer])
    return {"finetune": model.evaluate(val, verbose=0)[1], "finetune_epochs": timer.seconds}


class FineTuned(keras.Model):
    """`head` on `base`, whose BatchNorm stays in inference mode.

    The guide's `base(inputs, training=False)` in a functional model does not do that in Keras 3.15: `fit` hands its own
    `training` on to the nodes of the graph, the statistics move, and val accuracy falls.
    """

    def __init__(self, base, head):
        super().__init__()
        self.base, self.pool, self.head = base, keras.layers.GlobalAveragePooling2D(), head

    def call(self, x):
        return self.head(self.pool(self.base(x, training=False)))


if __name__ == "__main__":
    print(json.dumps(main(json.loads(sys.argv[1]))))
