"""The pixels as the backbone would see them, against those it was trained on.

The first BatchNorm layer of a pretrained backbone remembers mean and variance of what the first convolution made of
ImageNet in the right scaling. The same convolution over a sample of the images, under each scaling one might have,
shows which of them is the right one.
"""

from collections.abc import Iterator

import jax
import jax.numpy as jnp
import numpy as np

from tltrain import config as config_lib
from tltrain.checks.case import Case
from tltrain.checks.finding import Finding, advice, fine, problem
from tltrain.checks.settings import norms
from tltrain.data.kinds.images import Images
from tltrain.errors import ConfigError, DataError
from tltrain.models import zoo
from tltrain.models.image_backbone import ImageBackbone, scale_pixels

# how many times nearer another scaling must be before it is called the right one: of 128 cats and dogs or fabrics the
# right one is 1.7 to 3.8 times nearer than /255, 2.2 to 5.5 times nearer than values scaled twice, and of the cats and
# dogs, which have colours, 1.27 to 1.37 times nearer than swapped channels
_CLEARLY, _SLIGHTLY = 1.5, 1.15
SWAPPED, STRETCHED = "red and blue swapped", "stretched to 0..255"
_MIN_SAMPLE = 64  # images, of fewer the statistics vary as much as swapped channels differ


def check_pixels(case: Case) -> Iterator[Finding]:
    """Range and mean of a sample, and the scaling that fits the backbone's statistics."""
    if not isinstance(case.data.kind, Images):
        return
    sample, backbone = case.sample, _as_trained(case.config)
    assert isinstance(backbone, ImageBackbone), "it takes images"
    low, high = (round(n) for n in np.percentile(sample, (0.1, 99.9)))
    mean = ", ".join(f"{n:.0f}" for n in sample.mean((0, 1, 2)))
    yield fine(f"{len(sample)} training images as the backbone gets them: values {low} to {high}, mean RGB {mean}")
    if case.config.data.pixels != "backbone":
        yield problem(
            f"data.pixels = {case.config.data.pixels!r}, but {case.config.model.backbone} was trained on "
            f"{backbone.pixels!r}: MobileNetV2 ends at 0.978 of cats and dogs with it, 0.982 without; leave "
            "data.pixels at 'backbone'",
            ConfigError.exit_code,
        )
    if case.loaded is None:
        yield fine("the weights are random: there are no statistics of a training to compare with")
    elif not norms(backbone):
        yield fine("the backbone has no BatchNorm to compare with: only the range of the values was looked at")
    else:
        yield from _fit(case, distances(backbone, case.loaded.variables, sample, case.model.backbone.pixels))


def _as_trained(config):
    """The backbone with its own scaling, which it may have from files beside its weights."""
    config = config_lib.copied(config)
    config.data.pixels = "backbone"
    return zoo.create(config, 1).backbone


def _fit(case, found):
    shown = ", ".join(f"{name} {distance:.2f}" for name, distance in found.items())
    measured = f"distance to the statistics of the first BatchNorm layer (0: as in its training): {shown}"
    ours, best = found["as configured"], min(found, key=found.__getitem__)
    if best == STRETCHED and found[best] * _CLEARLY < ours:
        yield problem(
            f"the values of the files are scaled already, or of fewer bits; {measured}; save them as 0..255",
            DataError.exit_code,
        )
    elif found[best] * _CLEARLY < ours and case.config.data.pixels == "backbone":
        yield advice(f"the images fit better as {best}; {measured}; are the files what they should be?")
    elif found[SWAPPED] * _SLIGHTLY < ours and len(case.sample) >= _MIN_SAMPLE:
        yield advice(
            f"red and blue seem to be swapped in the files (or their subjects are bluer than most); {measured}; look "
            "at one in a viewer"
        )
    else:
        yield fine(measured)


def distances(backbone: ImageBackbone, variables: dict, sample: np.ndarray, pixels: str) -> dict[str, float]:
    """How far the activations before the first BatchNorm layer are from those of its training, by scaling.

    Args:
        backbone: has a BatchNorm layer in its first stage.
        variables: `params` and `batch_stats` as pretrained.
        sample: uint8 `[N, H, W, 3]`, RGB.
        pixels: the scaling that the run would use.

    Returns:
        The mean over channels of the 2-Wasserstein distance between two normal distributions, that of the sample and
        that of the running statistics, in units of the running standard deviation.
    """
    norm = norms(backbone)[0]
    stage, layer = norm.path[0], norm.path[1:]
    # with momentum 0 the "running" statistics after a training pass are those of the batch
    probe = backbone.clone(batch_norm_momentum=0.0, axis_name=None, dtype=jnp.float32)

    def leaf(stats):
        for key in (stage, *layer):
            stats = stats[key]
        return stats["mean"], jnp.sqrt(stats["var"] + norm.epsilon)

    @jax.jit
    def distance(x):
        _, updated = probe.apply(variables, x, True, 0, probe.stages.index(stage) + 1, mutable=["batch_stats"])
        (mean, std), (right_mean, right_std) = leaf(updated["batch_stats"]), leaf(variables["batch_stats"])
        return jnp.sqrt(((mean - right_mean) / right_std) ** 2 + (std / right_std - 1) ** 2).mean()

    def scaled(kind):
        return lambda x: scale_pixels(x, kind, jnp.float32)

    ours, top = scaled(pixels), int(sample.max())
    ways = {
        "as configured": ours,
        SWAPPED: lambda x: ours(x[..., ::-1]),
        "scaled twice": lambda x: ours(x / 255),
        **({STRETCHED: lambda x: ours(x * (255 / top))} if 0 < top < 255 else {}),
        **{f"{kind!r}": scaled(kind) for kind in ("tf", "unit", "caffe") if kind != pixels},
    }
    x = jnp.asarray(sample, jnp.float32)
    return {name: float(distance(way(x))) for name, way in ways.items()}
