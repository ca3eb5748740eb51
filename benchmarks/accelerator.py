"""Images a second of the frozen forward pass, the probe step and the fine-tune step, from NumPy batches.

    python benchmarks/accelerator.py tltrain     # on a GPU, a TPU, or a CPU with --sizes 32
    python benchmarks/accelerator.py tltrain --backbones vit_base_16
    python benchmarks/accelerator.py torch       # MobileNetV2 in PyTorch with torch.compile, in its environment

MobileNetV2 in float32 and bfloat16, transformers in bfloat16, at 224x224, random weights. The probe step starts at
stored pooled features, the fine-tune step at the stored activations after the stage in `BACKBONES`, as runs of tltrain
do; for PyTorch they are given likewise. `of peak` is the shortest possible time over the time taken: the operations, as
XLA counts them, at the rate of a large matrix product of the same dtype, or the inputs and results at the rate of a
large copy, whichever takes longer.
"""

import argparse
import statistics
import time

import numpy as np

BACKBONES = {  # the last frozen stage of the fine-tune, and the dtypes
    "mobilenet_v2": ("block_12", ("float32", "bfloat16")),
    "vit_small_16": ("layer_8", ("bfloat16",)),
    "vit_base_16": ("layer_8", ("bfloat16",)),
    "dinov2_small": ("layer_8", ("bfloat16",)),
}
SIZES = (32, 64, 128, 256, 512, 1024)


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("library", choices=("tltrain", "torch"))
    parser.add_argument("--sizes", type=int, nargs="+", default=SIZES, help="batch sizes")
    parser.add_argument("--backbones", nargs="+", choices=BACKBONES, help="default: all; in torch mobilenet_v2")
    arguments = parser.parse_args()
    steps = tltrain_steps if arguments.library == "tltrain" else torch_steps
    backbones = arguments.backbones or (list(BACKBONES) if arguments.library == "tltrain" else ["mobilenet_v2"])
    print("| backbone | what | dtype | batch | img/s | of peak |\n|---|---|---|---|---|---|")
    for backbone in backbones:
        cut, dtypes = BACKBONES[backbone]
        for dtype in dtypes:
            for size in arguments.sizes:
                for name, step, limit_seconds in steps(backbone, cut, dtype, size):
                    seconds = median_seconds(step)
                    share = "" if limit_seconds is None else f"{limit_seconds / seconds:.0%}"
                    print(f"| {backbone} | {name} | {dtype} | {size} | {size / seconds:.0f} | {share} |", flush=True)


def median_seconds(step):
    """Of calls of `step`, which ends when its result is there; the first two only warm up."""
    step(), step()
    seconds = []
    while len(seconds) < 5 or (sum(seconds) < 2 and len(seconds) < 50):
        started = time.perf_counter()
        step()
        seconds.append(time.perf_counter() - started)
    return statistics.median(seconds)


def batches(size, activations, features):
    """Images, the activations of shape `activations` at the cut, pooled features, and labels, as NumPy arrays."""
    rng = np.random.default_rng(0)
    images = rng.integers(0, 256, (size, 224, 224, 3), np.uint8)
    stored = rng.normal(size=(size, *activations)).astype(np.float32)
    pooled = rng.normal(size=(size, features)).astype(np.float32)
    return images, stored, pooled, rng.integers(0, 2, size).astype(np.int32)


def tltrain_steps(backbone, cut, dtype, size):
    """Name, step and the shortest possible seconds, of each."""
    import functools

    import jax
    import jax.numpy as jnp

    from tltrain.cache import forward
    from tltrain.config import default
    from tltrain.models import freeze, zoo
    from tltrain.models.classifier import Shapes, run_frozen
    from tltrain.runtime import parallel
    from tltrain.training import optim, steps
    from tltrain.training.tasks.classification import Classification

    config = default()
    config.model.update(backbone=backbone, weights="random", dtype=dtype)
    config = zoo.resolved(config)
    task = Classification.of(config, ("cat", "dog"), None)
    model = zoo.create(config, task.num_outputs)
    mesh = parallel.make_mesh(size)
    variables = jax.tree.map(jnp.asarray, zoo.init(model, 0, None))
    last, peaks = len(model.backbone.stages), device_peaks(dtype)

    one = jax.ShapeDtypeStruct((1, 224, 224, 3), np.uint8)

    def shape(stop):
        return jax.eval_shape(lambda v, x: run_frozen(model, v, x, 0, stop), variables, one).shape[1:]

    images, stored, pooled, label = batches(size, shape(freeze.cut(model.backbone.stages, cut)), *shape(last))
    lowered = jax.jit(lambda v, x: run_frozen(model, v, x, 0, last)).lower(variables, one)
    flops = size * lowered.cost_analysis()["flops"]  # of a whole batch on CPU they are hidden in loops

    program = forward.Program(model, 0, last, Shapes.of(images), mesh)
    run = forward.compiled(program)
    frozen = forward.constants(program, variables)
    yield (
        "frozen forward",
        lambda: run(frozen, parallel.put(images, mesh)).block_until_ready(),
        limit(run, flops, peaks),
    )

    for name, until, inputs in (("probe step", "all", pooled), ("fine-tune step", cut, stored.astype(dtype))):
        plan = freeze.plan(model.backbone.stages, until)
        tx = optim.make(config.probe, optim.make_schedule(config.probe, 100), plan, plan)
        state = steps.create_state(variables["params"], variables["batch_stats"], tx, plan, ema=0.0)
        state = parallel.replicate(jax.tree.map(np.asarray, state), mesh)  # arrays of its own, which a step may reuse
        recipe = steps.recipe(config, "probe", task, plan, plan.cut)
        step = functools.partial(steps.train_step, model=model, tx=tx, recipe=recipe)
        mask, index = np.ones(size, bool), np.arange(size, dtype=np.int32)
        batch = {"inputs": inputs, "label": label, "mask": mask, "index": index}
        compiled = parallel.compile_step(step, state, batch, mesh, "jit", donate=True)
        held = [state]

        def train(compiled=compiled, held=held, batch=batch):
            held[0], metrics = compiled(held[0], parallel.put(batch, mesh))
            jax.block_until_ready((held[0], metrics))

        yield name, train, limit(compiled, compiled.cost_analysis()["flops"], peaks)


def device_peaks(dtype):
    """FLOP/s of a matrix product, and bytes/s of a copy, of this device."""
    import jax
    import jax.numpy as jnp

    n = 8192 if jax.default_backend() != "cpu" else 2048
    a, flat = jnp.ones((n, n), dtype), jnp.ones(n * n * 4, jnp.float32)
    product, copy = jax.jit(jnp.matmul), jax.jit(jnp.negative)
    flops = 2 * n**3 / median_seconds(lambda: product(a, a).block_until_ready())
    return flops, 2 * flat.nbytes / median_seconds(lambda: copy(flat).block_until_ready())


def limit(compiled, flops, peaks):
    """The shortest possible seconds of a compiled program: its operations, or to read its inputs and write its results.

    What a step hands on unchanged costs nothing.
    """
    memory = compiled.memory_analysis()
    moved = memory.argument_size_in_bytes + memory.output_size_in_bytes - 2 * memory.alias_size_in_bytes
    return max(flops / peaks[0], moved / peaks[1])


def torch_steps(backbone, cut, dtype, size):
    """Name and step of each; what is the least possible is the same for both libraries, so it is not repeated."""
    import torch
    import torchvision

    device = "cuda" if torch.cuda.is_available() else "cpu"
    layout = torch.channels_last
    if backbone != "mobilenet_v2":
        raise SystemExit(f"{backbone} is measured in tltrain alone")
    base = torchvision.models.mobilenet_v2(weights=None).features.to(device, memory_format=layout).eval()
    first = int(cut.removeprefix("block_")) + 2  # after the stem and expanded_conv, then past the cut
    top, head = base[first:], torch.nn.Linear(1280, 1).to(device)
    images, maps, pooled, label = batches(size, (14, 14, 96), 1280)
    low = torch.autocast(device, torch.bfloat16, enabled=dtype == "bfloat16")

    def sent(array):
        return torch.from_numpy(array).to(device, non_blocking=True)

    def nchw(array):
        return sent(array).permute(0, 3, 1, 2).contiguous(memory_format=layout)

    def finish():
        if device == "cuda":
            torch.cuda.synchronize()

    whole = torch.compile(lambda x: base(x.float() / 127.5 - 1).mean((2, 3)))

    def forward():
        with torch.inference_mode(), low:
            whole(nchw(images))
        finish()

    yield "frozen forward", forward, None

    models = {
        "probe step": (head.parameters(), torch.compile(head), lambda: sent(pooled)),
        "fine-tune step": (
            [*top.parameters(), *head.parameters()],
            torch.compile(lambda x: head(top(x).float().mean((2, 3)))),
            lambda: nchw(maps),
        ),
    }
    for name, (parameters, model, inputs) in models.items():
        optimizer = torch.optim.Adam(parameters, 1e-3, fused=device == "cuda")

        def train(model=model, inputs=inputs, optimizer=optimizer):
            optimizer.zero_grad()
            with low:
                logits = model(inputs())
            target = sent(label).float()
            torch.nn.functional.binary_cross_entropy_with_logits(logits[:, 0].float(), target).backward()
            optimizer.step()
            finish()

        yield name, train, None


if __name__ == "__main__":
    main()
