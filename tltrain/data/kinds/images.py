"""Images: files or records in one of `FORMATS`; a row is RGB, uint8 `[height, width, 3]`."""

import io
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
from ml_collections import ConfigDict
from PIL import Image

from tltrain.data.kinds.image_augment import Augment
from tltrain.data.kinds.image_decoding import FORMATS, decode, load_image
from tltrain.data.kinds.image_hash import GRID, difference_hash, near_pairs
from tltrain.data.kinds.image_resizing import resize
from tltrain.data.kinds.kind import Argument, Kind

SUFFIXES = (".jpg", ".jpeg", ".jfif", ".png", ".webp", ".bmp", ".gif", ".tif", ".tiff")
_LONGEST_SIDE = 160  # pixels of what a page shows


class Looked(NamedTuple):
    """An image: its `size` (height, width), Pillow's name of its `mode`, and of a thumbnail two things.

    `hash` is uint64 `[4]` as by `difference_hash`, `brightest` the largest value, 0..255.
    """

    size: tuple[int, int]
    mode: str
    hash: np.ndarray
    brightest: int


@dataclass(frozen=True)
class Images(Kind):
    """Images resized to `size`, height and width in pixels, as `data.resize` says."""

    size: tuple[int, int]
    resize: str
    augment: Augment

    name = "images"
    rate = "img/s"
    keys = (
        *("data.image", "data.image_size", "data.resize", "data.pixels", "data.augment."),
        *("probe.augment", "probe.mixup", "probe.cutmix", "finetune.mixup", "finetune.cutmix"),
        *(
            "features.augment_views",
            "model.pool",
            "model.batch_norm_momentum",
            "probe.batch_norm",
            "finetune.batch_norm",
        ),
    )
    augments = True
    alike_but = "as different files, of other quality, size or border"
    shown_as = "image/jpeg"

    @classmethod
    def of(cls, config: ConfigDict) -> "Images":
        """That of a config."""
        data = config.data
        return cls(data.image_size, data.resize, Augment(**data.augment.to_dict(), seed=config.seed))

    def shapes(self) -> jax.ShapeDtypeStruct:
        """Pixels."""
        return jax.ShapeDtypeStruct((*self.size, 3), np.uint8)

    def row(self, encoded: bytes, key: tuple[int, int] | None = None) -> np.ndarray:
        """See `load_image`."""
        return load_image(encoded, self.size, self.resize, None if key is None else self.augment, key or (0, 0))

    def facts(self, view: int | None) -> dict[str, Any]:
        """Size, resize, and where it is varied every strength and the seed."""
        augment = None if view is None else {"view": view, **vars(self.augment)}
        return {"image_size": list(self.size), "resize": self.resize, "augment": augment}

    def is_example(self, path: Path, what: str) -> bool:
        """A file that has the name of an image and is none counts among the unreadable."""
        return what in FORMATS or path.suffix.lower() in SUFFIXES

    def columns(self, data: ConfigDict) -> dict[str, str]:
        """That of the names of files."""
        return {data.image: "data.image"}

    def of_cells(self, cells: Sequence[str], folder: Path) -> Path:
        """A path, from `folder` where it is relative."""
        (name,) = cells
        if not name or "\0" in name:
            raise ValueError("it names no file")
        name.encode()  # which raises where no file can have this name
        return folder / name

    def look(self, encoded: bytes) -> Looked:
        """Reads it as a run does, so what fails here fails there."""
        pixels = load_image(encoded, GRID, "stretch")
        with Image.open(io.BytesIO(encoded), formats=FORMATS) as header:
            return Looked((header.height, header.width), header.mode, difference_hash(pixels), int(pixels.max()))

    def alike(self, seen: Sequence[Looked], others: Sequence[Looked]) -> Iterator[tuple[int, int]]:
        """Of other quality, size or border."""
        if seen and others:
            a, b = (np.stack([one.hash for one in images]) for images in (seen, others))
            yield from ((i, j) for i, j, _ in near_pairs(a, b))

    def show(self, encoded: bytes) -> bytes:
        """A JPEG file of at most `_LONGEST_SIDE` pixels a side."""
        image = decode(encoded)
        image.thumbnail((_LONGEST_SIDE, _LONGEST_SIDE))
        out = io.BytesIO()
        image.save(out, "JPEG", quality=80)
        return out.getvalue()

    def signature(self) -> tuple[Argument]:
        """RGB of any size."""
        return (Argument("images", "uint8", ("batch", "height", "width", 3)),)

    def raw(self, encoded: bytes) -> tuple[np.ndarray]:
        """RGB at its own size, uint8."""
        return (np.asarray(decode(encoded)),)

    def rows_of(self, xp: Any, *raw: Any) -> Any:
        """Those of floats in 0..255, resized: whole numbers."""
        (images,) = raw
        return resize(xp, images, self.size, self.resize)
