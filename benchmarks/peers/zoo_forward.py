"""Images a second of one backbone with pooling, random weights, in one library: one process, one JSON line.

Arguments: the library, the backbone's name, the batch sizes. Batches of images are in memory.
"""

import json
import statistics
import sys
import time

import numpy as np

SECONDS = 2.0  # of a measurement, at least
REPEATS = 3


def main(library, name, batch_sizes):
    rates, first = {}, {}
    for size in batch_sizes:
        run, shape, dtype = {"tltrain": tltrain}.get(library, keras)(name, size)
        batches = list(np.random.default_rng(0).integers(0, 256, (2, size, *shape, 3)).astype(dtype))
        first[size] = timed(run, batches[:1])
        count = max(2, 2 * round(SECONDS / timed(run, batches)))
        rates[size] = size * count / statistics.median(timed(run, batches * (count // 2)) for _ in range(REPEATS))
    return {"images_per_second": rates, "first_batch_seconds": first}


def timed(run, batches):
    started = time.perf_counter()
    run(batches)
    return time.perf_counter() - started


def keras(name, batch_size):
    from keras import applications

    shape = (299, 299) if name in ("inception_v3", "xception") else (224, 224)
    model = getattr(applications, KERAS[name])(include_top=False, weights=None, pooling="avg", input_shape=(*shape, 3))

    def run(batches):
        for batch in batches:
            model.predict_on_batch(batch)

    return run, shape, np.float32


KERAS = {
    "vgg16": "VGG16",
    "resnet50": "ResNet50",
    "resnet50_v2": "ResNet50V2",
    "inception_v3": "InceptionV3",
    "xception": "Xception",
    "mobilenet_v1": "MobileNet",
    "mobilenet_v2": "MobileNetV2",
    "densenet121": "DenseNet121",
    "efficientnet_b0": "EfficientNetB0",
}


def tltrain(name, batch_size):
    from tltrain import forward, parallel
    from tltrain.config import default
    from tltrain.models import zoo

    config = default()
    config.model.backbone = name
    shape = zoo.resolved(config).data.image_size
    model = zoo.create(config, 2)
    mesh = parallel.make_mesh(batch_size)
    stop = len(model.backbone.stages)
    program = forward.Program(model, 0, stop, (batch_size, *shape, 3), np.dtype(np.uint8), mesh)
    compiled = forward.compiled(program)
    constants = forward.constants(program, zoo.init(model, 0, None))

    def one_batch(batch):
        return np.asarray(compiled(constants, parallel.put(batch, mesh)))

    def run(batches):
        for _ in forward.in_order(one_batch, ((batch,) for batch in batches), mesh):
            pass

    return run, shape, np.uint8


if __name__ == "__main__":
    print(json.dumps(main(sys.argv[1], sys.argv[2], [int(size) for size in sys.argv[3:]])))
