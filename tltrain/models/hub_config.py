"""What the small files beside weights from the Hub say of them: sizes, pooling, pixels, which arrays there are."""

import json
from collections.abc import Callable, Collection, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from tltrain import hub
from tltrain.errors import WeightsError, foreign_errors
from tltrain.rules import shown

_SIZE = (1, 2**20)  # from the least to the most that a number may be: an integer where these are
_SIDE = (1, 4096)  # pixels of an image
_ALLOWED = {"num_layers": (1, 1000), "num_types": (0, 2**20), "epsilon": (0.0, 1.0)}  # of fields that are no sizes


class Pixels(NamedTuple):
    """How images were made ready for a network: `mean` and `std` of red, green and blue in 0..1, `size` in pixels.

    `size` is (height, width), None where it is not said.
    """

    mean: tuple[float, ...]
    std: tuple[float, ...]
    size: tuple[int, int] | None


def read(
    weights: str,
    families: Collection[str],
    activations: Collection[str],
    fields: Callable[[dict[str, Any]], dict[str, Any]],
) -> dict[str, Any]:
    """What `fields` makes of the `config.json` that belongs to `model.weights`, of a `model_type` of `families`.

    Raises:
        WeightsError: there is no such file, or it is of another family, or with none of the `activations`.
    """
    path = _config_of(weights)
    with foreign_errors(WeightsError, f"cannot read {path}", "fetch it again"):
        said = json.loads(path.read_text())
        if (family := said.get("model_type")) not in families:
            raise WeightsError(
                f"{path} is of a {family!r}; allowed with this model.backbone: {', '.join(families)}; take another"
            )
        found = fields(said)
        if (name := found.get("activation", "gelu")) not in activations:
            raise WeightsError(f"{path} has activation {name!r}; allowed: {', '.join(activations)}; take other weights")
        features, heads = found.get("hidden_size", 0), found.get("num_heads", 1)
        if features % heads:
            raise WeightsError(f"{path} divides {features} features among {heads} heads; fetch it again")
        return found


def renamed(said: Mapping[str, Any], names: Mapping[str, str]) -> dict[str, Any]:
    """The values of `said` that have one of `names`, under what that maps to; raises ValueError as `number`."""
    return {
        field: said[name] if field == "activation" else number(name, said[name], _ALLOWED.get(field, _SIZE))
        for name, field in names.items()
        if name in said
    }


def number(name: str, value: Any, allowed: tuple[float, float] = _SIZE) -> Any:
    """The `value` of `name` in a file: a number `allowed`, of the type of these; raises ValueError where it is none."""
    low, high = allowed
    kinds = int if isinstance(low, int) else (int, float)
    if not isinstance(value, kinds) or isinstance(value, bool) or not low <= value <= high:
        kind = "an integer" if isinstance(low, int) else "a number"
        raise ValueError(f"{name} = {shown(value)}, allowed: {kind} from {low} to {high}")
    return value


def pixels_of(weights: str) -> tuple[Path, Pixels] | None:
    """As `pixels_in` of the files beside `model.weights`."""
    return pixels_in(_files(weights, False))


def pixels_in(files: hub.Pretrained) -> tuple[Path, Pixels] | None:
    """What files beside weights say of pixels, and which one: `preprocessor_config.json`, or the config of timm.

    None: there is no such file. Raises WeightsError where it cannot be read.
    """
    for path, read in ((files.preprocessor, _of_transformers), (files.config, _of_timm)):
        if path is not None:
            with foreign_errors(WeightsError, f"cannot read {path}", "fetch it again"):
                if found := read(json.loads(path.read_text())):
                    return path, found
    return None


def _of_transformers(said):
    size = said.get("crop_size") if said.get("do_center_crop", "crop_size" in said) else said.get("size")
    if isinstance(size, dict):
        size = (size["height"], size["width"]) if "height" in size else None  # the shortest edge alone is no size
    elif size is not None:
        size = (size, size)
    if not said.get("do_normalize", True):
        said = said | {"image_mean": (0, 0, 0), "image_std": (1, 1, 1)}
    factor = said.get("rescale_factor", 1 / 255) if said.get("do_rescale", True) else 1
    most = round(factor * 255, 6)  # that a pixel can be before it is normalised
    return _pixels(*([value / most for value in said[name]] for name in ("image_mean", "image_std")), size)


def _of_timm(said):
    made = said.get("pretrained_cfg", {})
    return _pixels(made["mean"], made["std"], made["input_size"][1:]) if "mean" in made else None


def _pixels(mean, std, size):
    sides = size and tuple(number("size", side, _SIDE) for side in size)
    return Pixels(tuple(map(float, mean)), tuple(map(float, std)), sides)


def text_of(weights: str) -> str:
    """The `config.json` that belongs to `model.weights`; raises WeightsError where there is none."""
    path = _config_of(weights)
    with foreign_errors(WeightsError, f"cannot read {path}", "fetch it again"):
        return path.read_text()


def _config_of(weights):
    path = _files(weights, False).config
    if path is None:
        raise WeightsError(f"no config.json beside the weights; {weights}; put it there, or name a backbone with sizes")
    return path


def pooling_of(weights: str) -> str:
    """How features were pooled in the training of `model.weights`: "mean" where sentence-transformers did, or "cls"."""
    path = _files(weights, False).pooling
    if path is None:
        return "cls"
    with foreign_errors(WeightsError, f"cannot read {path}", "set model.pool"):
        return "mean" if json.loads(path.read_text()).get("pooling_mode_mean_tokens") else "cls"


def has_pooler(weights: str) -> bool:
    """Whether the file of `model.weights` has a pooler, as Keras' have; True where it is still to be fetched."""
    place = hub.place_of(weights)
    if hub.is_random(weights) or place is None or not hub.is_here(place):
        return True
    path = _files(weights, True).weights
    if path is None or path.suffix != ".safetensors":
        return True
    with foreign_errors(WeightsError, f"cannot read {path}", "fetch it again"):
        return any("pooler." in name for name in json.loads(hub.header_of(path)))


def _files(weights, wanted):
    place = hub.place_of(weights)
    assert place is not None, "a resolved config names the place of its weights"
    return hub.files(place, wanted)
