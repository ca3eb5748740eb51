"""The frozen base with pooling in each library, as a function of images in memory."""

import numpy as np


def examples(job, library):
    """Random images, uint8 `[N, H, W, 3]`; few for what is slow."""
    count = 64 if library == "keras_jax" else 512
    return np.random.default_rng(0).integers(0, 256, (count, *job["image_size"], 3), np.uint8)


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
    from tltrain.config import from_dict
    from tltrain.experiment.train import initial_variables
    from tltrain.models.classifier import run_frozen
    from tltrain.runtime.process import Clock
    from tltrain.training import setup

    fixed = setup.load(from_dict(job["config"]), Clock())
    variables, _ = initial_variables(fixed.config, fixed.model)
    last = fixed.num_stages

    def all_batches(images):
        batches = ({"inputs": batch} for batch in np.split(images, len(images) // job["batch_size"]))
        made = forward.activations(fixed, 0, last, variables, batches)
        return np.concatenate([np.asarray(batch["inputs"]) for batch in made])

    one = jax.ShapeDtypeStruct((1, *job["image_size"], 3), np.uint8)
    whole = jax.jit(lambda variables, x: run_frozen(fixed.model, variables, x, 0, last)).lower(variables, one)
    all_batches.gflop = whole.cost_analysis()["flops"] / 1e9
    return all_batches


LIBRARIES = {
    "tltrain": tltrain,
    "keras": keras_predict,
    "keras_jax": keras_predict,
    "onnxruntime": onnx,
    "torch": pytorch,
}
