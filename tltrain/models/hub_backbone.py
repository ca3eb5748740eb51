"""Backbones whose weights, with the small files beside them, come from the Hugging Face Hub."""

from collections.abc import Collection
from typing import ClassVar, Self

from ml_collections import ConfigDict

from tltrain.errors import ConfigError
from tltrain.models import hub_config
from tltrain.models.backbone import Backbone


class HubBackbone(Backbone):
    """One of fixed sizes with a repository of its own, or one whose sizes are read beside any weights."""

    variant: str = ""  # the repository that has its weights, as "OWNER/NAME@REVISION"; "": any, by its sizes
    sha256: str | None = None  # of the weight file of `variant`

    activations: ClassVar[Collection[str]] = ()  # that it knows, by their names in a config.json

    def resolve(self, config: ConfigDict) -> None:
        """The weights of the variant where a config names none."""
        model = config.model
        if model.weights not in ("pretrained", "random"):
            return
        if not self.variant:
            raise ConfigError(
                f"model.weights = {model.weights!r}, allowed with {model.backbone}: a path, 'hf:OWNER/NAME', or "
                "'random:' and one of these, since sizes and tokenizer are read there"
            )
        if model.weights == "pretrained" and self.sha256 and not model.sha256:
            model.sha256 = self.sha256
        model.weights = ("random:" if model.weights == "random" else "") + f"hf:{self.variant}"

    def sized(self, config: ConfigDict) -> Self:
        """The same with the sizes in the `config.json` of the weights, where it is of no variant."""
        return self if self.variant else self.clone(**hub_config.sizes_of(config.model.weights, self.activations))

    def configured(self, config: ConfigDict) -> Self:
        """Also with its sizes."""
        return super().configured(config).sized(config)

    def files(self, config: ConfigDict) -> dict[str, str]:
        """Its sizes, where it is of no variant."""
        return {} if self.variant else {"config.json": hub_config.text_of(config.model.weights)}
