"""Backbones whose weights, with the small files beside them, come from the Hugging Face Hub."""

from collections.abc import Collection
from typing import Any, ClassVar, Self

from ml_collections import ConfigDict

from tltrain.errors import ConfigError
from tltrain.models import hub_config
from tltrain.models.backbone import Backbone
from tltrain.models.transformer import ACTIVATIONS


class HubBackbone(Backbone):
    """One of fixed sizes with a repository of its own, or one whose sizes are read beside any weights."""

    variant: str = ""  # the repository that has its weights, as "OWNER/NAME@REVISION"; "": any, by its sizes
    sha256: str | None = None  # of the weight file of `variant`

    needs_files: ClassVar[bool] = True  # whether rows are made by files beside the weights, as by a tokenizer
    families: ClassVar[Collection[str]] = ()  # the values of `model_type` in a config.json that it can be

    def resolve(self, config: ConfigDict) -> None:
        """The weights of the variant where a config names none; raises ConfigError where there are none."""
        model = config.model
        if model.weights not in ("pretrained", "imagenet", "random"):
            return
        if not self.variant:
            raise ConfigError(
                f"model.weights = {model.weights!r}, allowed with {model.backbone}: a path, 'hf:OWNER/NAME', or "
                "'random:' and one of these, since sizes and all else are read there"
            )
        if model.weights == "imagenet":
            raise ConfigError(
                f"model.weights = 'imagenet', allowed with {model.backbone}: 'pretrained', which are those of the Hub, "
                "'random', a path or 'hf:OWNER/NAME'; those of 'imagenet' are Keras'"
            )
        if model.weights == "random":
            model.weights = f"random:hf:{self.variant}" if self.needs_files else "random"
            return
        if self.sha256 and not model.sha256:
            model.sha256 = self.sha256
        model.weights = f"hf:{self.variant}"

    def sized(self, config: ConfigDict) -> Self:
        """The same with the sizes in the `config.json` of the weights, where it is of no variant."""
        return self if self.variant else self.clone(**self._read(config.model.weights))

    def fields(self, said: dict[str, Any]) -> dict[str, Any]:
        """Those of this class that a `config.json` says; may raise anything where it is none."""
        raise NotImplementedError

    def _read(self, weights):
        return hub_config.read(weights, self.families, ACTIVATIONS, self.fields)

    def configured(self, config: ConfigDict) -> Self:
        """Also with its sizes."""
        return super().configured(config).sized(config)

    def files(self, config: ConfigDict) -> dict[str, str]:
        """Its sizes, where it is of no variant."""
        return {} if self.variant else {"config.json": hub_config.text_of(config.model.weights)}
