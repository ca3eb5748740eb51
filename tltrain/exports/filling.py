"""Layers of Keras that get the weights of a run: each array once, and each layer all of its own."""

import re
from typing import Any

import numpy as np

from tltrain.errors import WeightsError
from tltrain.experiment.finished import Finished

Arrays = dict[str, dict[str, np.ndarray]]  # of each layer, by its name, those of its weights, by theirs
_KEPT_BY_KERAS = ("count",)  # weights that no file and no leaf has


def fill(run: Finished, model: Any, arrays: Arrays) -> None:
    """Sets all weights of the Keras model `model` to `arrays`.

    Raises:
        WeightsError: they are not those that its layers have, by name and shape.
    """
    layers = {layer.name: layer for layer in layers_of(model)}
    if other := sorted(layers.keys() ^ arrays.keys()):
        raise misfit(run, other[0])
    for name, layer in layers.items():
        # where a weight has no name of its own, Keras numbers it through a session: `variable_3`
        weights = {re.sub(r"_\d+$", "", w.name): w for w in layer.weights if w.name not in _KEPT_BY_KERAS}
        if weights.keys() != arrays[name].keys():
            raise misfit(run, f"{name}: {', '.join(weights)}")
        for key, weight in weights.items():
            if tuple(weight.shape) != arrays[name][key].shape:
                raise misfit(run, f"{name}/{key}")
            weight.assign(arrays[name][key])
        if hasattr(layer, "finalize_state"):  # of Normalization, which keeps what follows from its weights
            layer.finalize_state()


def layers_of(model: Any) -> list[Any]:
    """The layers with weights of the Keras model `model`, in order; those of a model within it in its place."""
    layers = (layers_of(layer) if hasattr(layer, "layers") else [layer] for layer in model.layers if layer.weights)
    return [layer for part in layers for layer in part]


def misfit(run: Finished, place: str) -> WeightsError:
    """What to raise where the network of Keras is another than that of `run`, at `place`."""
    return WeightsError(
        f"{run.config.model.backbone!r} is not the network that Keras builds; at {place}; export it as stablehlo"
    )
