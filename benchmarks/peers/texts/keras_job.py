"""The job on texts in KerasHub, batches padded to their longest; one JSON line at its end.

Modes: `fit` runs the frozen network in every step; `features` runs it once and trains the head on its outputs;
`finetune` does that and then trains its last layers.
"""

import json
import sys

import keras
import numpy as np
import tensorflow as tf
from keras_fit import Timer, make_head, make_optimizer
from libraries import SORTED_BATCH, keras_inputs, load_keras, padded, read_tokens


def main(job):
    keras.utils.set_random_seed(job["seed"])
    (train, train_y), (val, val_y) = (read_tokens(job, name) for name in ("train", "val"))
    backbone, base = load_keras(job)
    head, loss = make_head(job["num_classes"])
    base.trainable = False
    train_batches, val_batches = dataset(job, train, train_y, shuffle=True), dataset(job, val, val_y)
    if job["mode"] == "fit":
        model = keras.Sequential([base, head])
        compiled(model, job["probe"], loss, len(train_batches))
        model.fit(train_batches, validation_data=val_batches, epochs=job["probe"]["epochs"], verbose=2)
        return {"probe": model.evaluate(val_batches, verbose=0)[1]}
    train_x, val_x = features(base, train), features(base, val)
    train_y, val_y = np.asarray(train_y), np.asarray(val_y)
    probe = keras.Sequential([head])
    compiled(probe, job["probe"], loss, len(train_batches))
    data = {"validation_data": (val_x, val_y), "batch_size": job["batch_size"]}
    probe.fit(train_x, train_y, epochs=job["probe"]["epochs"], verbose=2, **data)
    result = {"probe": probe.evaluate(val_x, val_y, verbose=0)[1]}
    if job["mode"] == "finetune":
        base.trainable = True
        frozen = {f"transformer_layer_{i}" for i in range(job["num_frozen"])}
        for layer in backbone.layers:
            is_layer = layer.name.startswith("transformer_layer_")
            layer.trainable = is_layer and layer.name not in frozen
        model = keras.Sequential([base, head])
        compiled(model, job["finetune"], loss, len(train_batches))
        timer = Timer()
        epochs = job["finetune"]["epochs"]
        model.fit(train_batches, validation_data=val_batches, epochs=epochs, verbose=2, callbacks=[timer])
        result |= {"finetune": model.evaluate(val_batches, verbose=0)[1], "finetune_epochs": timer.seconds}
    return result


def compiled(model, phase, loss, steps_per_epoch):
    """Not by XLA, which would compile every length anew."""
    optimizer = make_optimizer(phase, steps_per_epoch)
    model.compile(optimizer, loss, metrics=["accuracy"], jit_compile=False)


def dataset(job, tokens, labels, shuffle=False):
    """Batches of inputs and labels."""
    ragged = tf.data.Dataset.from_tensor_slices((tf.ragged.constant(tokens, tf.int32), labels))
    pairs = ragged.shuffle(len(tokens)) if shuffle else ragged
    pairs = pairs.map(lambda ids, label: (ids, tf.ones_like(ids), label)).padded_batch(job["batch_size"])

    def inputs(ids, mask, label):
        return {"token_ids": ids, "padding_mask": mask, "segment_ids": tf.zeros_like(ids)}, label

    return pairs.map(inputs).prefetch(tf.data.AUTOTUNE)


def features(base, tokens):
    """Pooled features, computed in the order of lengths."""
    order = np.argsort([len(one) for one in tokens], kind="stable")
    parts = np.split(order, range(SORTED_BATCH, len(order), SORTED_BATCH))
    base.compile(jit_compile=False)
    made = [base.predict_on_batch(keras_inputs(*padded([tokens[i] for i in part]))) for part in parts]
    return np.concatenate(made)[np.argsort(order)]


if __name__ == "__main__":
    print(json.dumps(main(json.loads(sys.argv[1]))))
