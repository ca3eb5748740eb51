"""What a backbone is: an ordered list of named stages that can be run in part."""

import functools
import itertools
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, ClassVar, Self

import flax.linen as nn
import jax
import jax.numpy as jnp
from ml_collections import ConfigDict

from tltrain import hub
from tltrain.data.kinds.kind import Kind
from tltrain.runtime.parallel import AXIS

# how a library calls arrays: substitutions (pattern, replacement), one after the other, on the names of the Hub's own;
# "[1]" in a replacement is the second third of an array along its first axis: query, key and value are often one
Layout = tuple[tuple[str, str], ...]
HUGGING_FACE: Layout = ()

_SCANNED = 4  # fewer stages are compiled one by one: a loop costs a copy of their parameters and of their gradients

KERAS_FILES = "https://storage.googleapis.com/tensorflow/keras-applications"


@dataclass(frozen=True)
class WeightFile:
    """A published file of pretrained weights: where it is, and what it must be.

    `sha256` or `md5` is the strongest hash that is published; `num_bytes` is None where no size is.
    """

    url: str
    sha256: str | None = None
    num_bytes: int | None = None
    md5: str | None = None

    @property
    def checksum(self) -> tuple[str, str]:
        """The algorithm and hex digest of the strongest hash."""
        return ("sha256", self.sha256) if self.sha256 else ("md5", self.md5 or "")


@dataclass(frozen=True)
class KerasLayer:
    """Where the arrays of one Keras layer belong: `path` below `params` and `batch_stats`, `class_name` in Keras.

    `name` is None where Keras numbers layers of the class through a session (`conv2d_57`): their order decides.
    `old_name` is that of Keras 2 where it had another, in which there may be slashes.
    """

    name: str | None
    class_name: str
    path: tuple[str, str]
    old_name: str | None = None


class Backbone(nn.Module):
    """The contract of every backbone.

    A subclass says what kind of examples it takes and implements `stage_factories` and `example`; stages and layers
    carry the names of the library its weights come from. Variables: `params` and `batch_stats`, each
    `{stage: {layer: {leaf: array}}}`. Layers are called in the order of `model.layers` in Keras, which is that of its
    graph by depth: files that give layers no names of their own are read by it.
    """

    dtype: jnp.dtype = jnp.float32  # of activations
    axis_name: str | None = None  # over which batch statistics are averaged; None: over none
    remat: bool = False  # whether a backward pass computes what is within a stage again, and keeps what is between
    scan: bool = False  # whether stages that are `alike` are one loop, which is compiled once
    weight_file: WeightFile | None = None  # of this variant, without top; None: not published

    kind: ClassVar[type[Kind]]
    alike: ClassVar[bool] = False  # whether stages of one maker in a row have equal shapes, and parameters alone
    hub_prefixes: ClassVar[tuple[str, ...]] = ()  # that may stand before all names of a file of the Hub: "bert."
    hub_layouts: ClassVar[tuple[Layout, ...]] = (HUGGING_FACE,)  # of files with its weights
    hub_unused: ClassVar[tuple[str, ...]] = ()  # patterns of what files of the Hub may hold and no stage uses

    def resolve(self, config: ConfigDict) -> None:
        """Gives keys of the whole `config` that leave something to the backbone its own values.

        Raises:
            ConfigError: a value that the backbone cannot have.
        """

    def configured(self, config: ConfigDict) -> Self:
        """The same with what the whole `config` says of it."""
        return self.clone(dtype=jnp.dtype(config.model.dtype), axis_name=AXIS)

    def facts(self) -> dict[str, Any]:
        """What activations depend on beside rows, variables and the order of stages, as JSON."""
        return {}

    def files(self, config: ConfigDict) -> dict[str, str]:
        """Small files of the weights, by name, that the network is made by: a run keeps them."""
        return {}

    def check(self, kind: Any) -> None:
        """Raises WeightsError where rows of `kind`, made by files of the weights, are not for this network."""

    def check_files(self, files: hub.Pretrained) -> None:
        """Raises WeightsError where files beside weights, which are about to be read, are of another network."""

    def example(self) -> Any:
        """Shapes of a batch of one, as small as may be, of what the first stage takes."""
        raise NotImplementedError

    def prepare(self, rows: Any) -> Any:
        """Rows of examples, as their kind makes them, as the first stage takes them."""
        return cast(rows, self.dtype)

    def pool(self, x: Any) -> jax.Array:
        """Features, float32 `[B, C]`, of what the last stage gives."""
        return x.astype(jnp.float32)

    def stage_factories(self) -> dict[str, Callable[..., nn.Module]]:
        """Stage name -> what makes its module from `name=`, in forward order."""
        raise NotImplementedError

    def keras_name(self, stage: str, layer: str) -> str | None:
        """What Keras calls `layer` of `stage`; None where it only numbers it."""
        return f"{stage}_{layer}"

    def old_keras_name(self, stage: str, layer: str) -> str | None:
        """What Keras 2 called `layer` of `stage`, and files of its time do; None where it is the name of today."""
        return None

    def hub_name(self, stage: str, layer: str) -> str | None:
        """What files of the Hugging Face Hub call `layer` of `stage`; None where its weights are Keras'.

        Its arrays are called `weight` and `bias` there, and kernels are transposed; an array that is learned as it is
        has no name of its own.
        """
        return None

    def keras_layers(self) -> tuple[KerasLayer, ...]:
        """The layers with weights, in the order in which they are called."""
        return _keras_layers(self)

    @property
    def stages(self) -> tuple[str, ...]:
        """Stage names in forward order."""
        return tuple(self.stage_factories())

    @nn.compact
    def __call__(self, x: Any, train: bool = False, start: int = 0, stop: int | None = None) -> Any:
        """Runs stages `[start, stop)` on what `prepare` gives, or on the activations before stage `start`.

        `train` lets BatchNorm normalise by the batch and move its statistics; without it they are used as they are.
        """
        factories = list(self.stage_factories().items())[start:stop]
        for make, group in itertools.groupby(factories, key=lambda factory: factory[1]):
            names = [name for name, _ in group]
            if self.scan and self.alike and len(names) >= _SCANNED and not self.is_initializing():
                x = self._scanned(make, names, x, train)
                continue
            for name in names:
                stage = nn.remat(_run, static_argnums=2) if self.remat else _run
                x = stage(make(name=name), x, train)
        return x

    def _scanned(self, make, names, x, train):
        """Stages that are alike; a step of the loop takes the parameters of its own from a copy of all."""
        stage = make(parent=None)

        def run(x, params):
            return stage.apply({"params": params}, x, train), None

        params = [self.variables["params"][name] for name in names]
        stacked = jax.tree.map(lambda *leaves: jnp.stack(leaves), *params)
        return jax.lax.scan(jax.checkpoint(run, prevent_cse=False) if self.remat else run, x, stacked)[0]


@functools.cache  # runs of a sweep read the weights of one backbone again and again
def _keras_layers(backbone):
    classes: dict[tuple[str, str], str] = {}

    def note(call, arguments, options, context):
        if context.method_name == "__call__" and (kind := getattr(context.module, "keras_class", None)):
            classes[context.module.path] = kind
        return call(*arguments, **options)

    with nn.intercept_methods(note):
        # in training, for there no normalisation is folded into a convolution before the call
        jax.eval_shape(functools.partial(backbone.init, train=True), jax.random.key(0), backbone.example())
    return tuple(
        KerasLayer(backbone.keras_name(*path), kind, path, backbone.old_keras_name(*path))
        for path, kind in classes.items()
    )


def _run(stage, x, train):
    return stage(x, train)


def cast(tree: Any, dtype: jnp.dtype) -> Any:
    """`tree` with its floating arrays of `dtype`; integers, as ids and lengths are, stay."""
    return jax.tree.map(lambda x: x.astype(dtype) if jnp.issubdtype(x.dtype, jnp.floating) else x, tree)
