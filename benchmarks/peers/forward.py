"""Images a second of the frozen base with pooling, batches of images in memory: one process, one JSON line.

The first argument names the library, the second holds the job; `tltrain` runs in its own environment.
"""

import json
import sys
import time

import numpy as np


def main(library, job):
    count = 64 if library == "keras_jax" else 512
    images = np.random.default_rng(0).integers(0, 256, (count, *job["image_size"], 3), np.uint8)
    check = images[:32]
    run = {
        "tltrain": tltrain,
        "keras": keras_predict,
        "keras_jax": keras_predict,
        "onnxruntime": onnx,
        "torch": pytorch,
    }
    forward = run[library](job)
    features = forward(check)
    np.save(f"{job['scratch']}/features_{library}.npy", features)
    seconds = []
    for _ in range(5):
        started = time.perf_counter()
        forward(images)
        seconds.append(time.perf_counter() - started)
    result = {"images_per_second": count / float(np.median(seconds))}
    if library == "tltrain":
        result |= {"peak_gflops": peak(), "image_gflop": forward.gflop}
    return result


def scaled(images):
    """NumPy batches as the other libraries get them, scaled beforehand: they are not timed for it."""
    return images.astype(np.float32) / 127.5 - 1


class Ready:
    """Calls `function` with scaled images, which are scaled once."""

    def __init__(self, function, layout="nhwc"):
        self.function, self.layout, self.images, self.ready = function, layout, None, None

    def __call__(self, images):
        if images is not self.images:
            self.images, self.ready = images, scaled(images)
            if self.layout == "nchw":
                self.ready = np.ascontiguousarray(self.ready.transpose(0, 3, 1, 2))
            self.function(self.ready)
        return self.function(self.ready)


def keras_predict(job):
    import keras
    from keras_job import make_base

    model = keras.Sequential([make_base(job), keras.layers.GlobalAveragePooling2D()])
    return Ready(lambda x: model.predict(x, batch_size=job["batch_size"], verbose=0))


def pytorch(job):
    import torch
    from torch_mobilenet import make_base, pool

    base = make_base(job["weights"])

    @torch.inference_mode()
    def forward(images):
        batches = torch.from_numpy(images).permute(0, 3, 1, 2).split(job["batch_size"])
        return np.concatenate([pool(base(x.contiguous(memory_format=torch.channels_last))).numpy() for x in batches])

    return Ready(forward)


def onnx(job):
    import onnxruntime
    import torch
    from torch_mobilenet import make_base

    model = torch.nn.Sequential(make_base(job["weights"]), torch.nn.AdaptiveAvgPool2d(1), torch.nn.Flatten())
    path = f"{job['scratch']}/mobilenet.onnx"
    example = torch.zeros(job["batch_size"], 3, *job["image_size"])
    torch.onnx.export(model, example, path, input_names=["images"], dynamo=False)
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])

    def forward(images):
        batches = np.split(images, len(images) // job["batch_size"])
        return np.concatenate([session.run(None, {"images": batch})[0] for batch in batches])

    return Ready(forward, "nchw")


def tltrain(job):
    import jax

    from tltrain.cache import forward
    from tltrain.config import default
    from tltrain.models import zoo
    from tltrain.models.classifier import Shapes, run_frozen
    from tltrain.runtime import parallel
    from tltrain.weights import keras_weights

    model = zoo.create(default(), 1)
    shapes = {name: tree["backbone"] for name, tree in zoo.shapes(model).items()}
    loaded = keras_weights.load(job["weights_file"], model.backbone.keras_layers(), shapes)
    variables = zoo.init(model, 0, loaded.variables)
    mesh = parallel.make_mesh(job["batch_size"])
    last = len(model.backbone.stages)
    shapes = Shapes.of(jax.ShapeDtypeStruct((job["batch_size"], *job["image_size"], 3), np.uint8))
    program = forward.Program(model, 0, last, shapes, mesh)
    run = forward.compiled(program)
    constants = forward.constants(program, variables)

    def one_batch(images):
        return np.asarray(run(constants, parallel.put(images, mesh)))

    def all_batches(images):
        batches = np.split(images, len(images) // job["batch_size"])
        return np.concatenate(list(forward.in_order(one_batch, zip(batches, strict=True), mesh)))

    one = jax.ShapeDtypeStruct((1, *job["image_size"], 3), np.uint8)
    whole = jax.jit(lambda variables, x: run_frozen(model, variables, x, 0, last)).lower(variables, one)
    all_batches.gflop = whole.cost_analysis()["flops"] / 1e9
    return all_batches


LIBRARIES = {
    "tltrain": tltrain,
    "keras": keras_predict,
    "keras_jax": keras_predict,
    "onnxruntime": onnx,
    "torch": pytorch,
}


def peak():
    """GFLOP/s, float32, of the fastest matrix product at hand, for 2048 x 2048 matrices."""
    import jax

    a = np.random.default_rng(0).normal(size=(2048, 2048)).astype(np.float32)
    product, on_device = jax.jit(jax.numpy.matmul), jax.device_put(a)

    def rate(multiply):
        seconds = []
        for _ in range(8):
            started = time.perf_counter()
            multiply()
            seconds.append(time.perf_counter() - started)
        return 2 * 2048**3 / min(seconds) / 1e9

    return max(rate(lambda: a @ a), rate(lambda: product(on_device, on_device).block_until_ready()))


if __name__ == "__main__":
    print(json.dumps(main(sys.argv[1], json.loads(sys.argv[2]))))
