"""Images a second of one backbone with pooling, random weights, in one library: one process, one JSON line.

Arguments: the library, the backbone's name there (of transformers, for torch and onnxruntime, its config as JSON), the
height of its images, the batch sizes. Batches are in memory.
"""

import json
import statistics
import sys
import tempfile
import time
from pathlib import Path

import numpy as np

SECONDS = 2.0  # of a measurement, at least
REPEATS = 3


def main(library, name, height, batch_sizes):
    rates = {}
    made = {"tltrain": tltrain, "torch": in_torch, "onnxruntime": in_onnxruntime}.get(library, keras)
    for size in batch_sizes:
        shape = (size, height, height, 3)
        run, dtype = made(name, shape)
        batches = list(np.random.default_rng(0).integers(0, 256, (2, *shape)).astype(dtype))
        run(batches[:1])  # compiles
        count = max(2, 2 * round(SECONDS / timed(run, batches)))
        rates[size] = size * count / statistics.median(timed(run, batches * (count // 2)) for _ in range(REPEATS))
    return {"images_per_second": rates}


def timed(run, batches):
    started = time.perf_counter()
    run(batches)
    return time.perf_counter() - started


def keras(name, shape):
    from keras import applications

    model = getattr(applications, name)(include_top=False, weights=None, pooling="avg", input_shape=shape[1:])

    def run(batches):
        for batch in batches:
            model.predict_on_batch(batch)

    return run, np.float32


def network(config):
    """That of transformers: scaled pixels `[B, 3, H, W]` to the first token, or what it pools."""
    import torch
    import transformers

    class Pooled(torch.nn.Module):
        def __init__(self):
            super().__init__()
            made = transformers.AutoConfig.for_model(**json.loads(config))
            self.model = transformers.AutoModel.from_config(made)  # sdpa, where it has attention

        def forward(self, x):
            found = self.model(x)
            is_map = found.last_hidden_state.ndim == 4
            return found.pooler_output if is_map else found.last_hidden_state[:, 0]

    return Pooled().eval().to(memory_format=torch.channels_last)


def in_torch(config, shape):
    import torch

    model = network(config)

    def run(batches):
        with torch.inference_mode():
            for batch in batches:
                x = torch.from_numpy(batch).permute(0, 3, 1, 2)  # channels last, as the images lie in memory
                model(x.float().div_(127.5).sub_(1)).numpy()

    return run, np.uint8


def in_onnxruntime(config, shape):
    import onnxruntime
    import torch

    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "model.onnx"
        example = torch.zeros(shape[0], 3, *shape[1:3])
        torch.onnx.export(network(config), (example,), path, dynamo=True, verbose=False)
        session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    (name,) = (given.name for given in session.get_inputs())

    def run(batches):
        for batch in batches:
            x = np.ascontiguousarray(batch.transpose(0, 3, 1, 2), np.float32) / np.float32(127.5) - np.float32(1)
            session.run(None, {name: x})

    return run, np.uint8


def tltrain(name, shape):
    import jax

    from tltrain.cache import forward
    from tltrain.config import default
    from tltrain.models import zoo
    from tltrain.models.classifier import Shapes
    from tltrain.runtime import parallel

    config = default()
    config.model.update(backbone=name, weights="random")
    model = zoo.create(zoo.resolved(config), 1)
    mesh = parallel.make_mesh(shape[0])
    shapes = Shapes.of(jax.ShapeDtypeStruct(shape, np.uint8))
    program = forward.Program(model, 0, len(model.backbone.stages), shapes, mesh)
    compiled = forward.compiled(program)
    constants = forward.constants(program, zoo.init(model, 0, None))

    def one_batch(batch):
        return np.asarray(compiled(constants, parallel.put(batch, mesh)))

    def run(batches):
        for _ in forward.in_order(one_batch, ((batch,) for batch in batches), mesh):
            pass

    return run, np.uint8


if __name__ == "__main__":
    print(json.dumps(main(sys.argv[1], sys.argv[2], int(sys.argv[3]), [int(size) for size in sys.argv[4:]])))
