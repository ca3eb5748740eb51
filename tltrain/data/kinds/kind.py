"""What every kind of examples is: all that batches, stores, pages, checks and exports know of an example."""

import abc
import json
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, ClassVar, NamedTuple, Self

import numpy as np
from ml_collections import ConfigDict

from tltrain.data import packing


class Argument(NamedTuple):
    """What an exported model takes: the `name` of it, its `dtype`, its axes: names of open ones, or sizes."""

    name: str
    dtype: str
    axes: tuple[str | int, ...]


class Tokens(NamedTuple):
    """Examples as rows of tokens: `rows`, without tokens where `errors` say why an example cannot be read.

    `num_lost` int64 `[N]` are the tokens of each beyond the most that a row may have.
    """

    rows: packing.Ragged
    errors: dict[int, str]
    num_lost: np.ndarray


class Kind(abc.ABC):
    """How bytes become rows, as a config says; equal values make equal rows.

    A row is an array, or a dict of arrays, of fixed shapes; or where rows are `ragged` a dict of arrays `[n, ...]` of
    as many tokens as the example has, batches of which are packed. What a backbone takes is said by its `kind`.
    """

    name: ClassVar[str]  # of several, in what is said: "images"
    rate: ClassVar[str]  # the unit of their speed: "img/s"
    keys: ClassVar[tuple[str, ...]]  # of a config, that mean something for this kind alone
    augments: ClassVar[bool]  # whether training rows can be varied at random
    ragged: ClassVar[bool] = False  # whether rows have tokens, see `packing`
    alike_but: ClassVar[str] = ""  # in what those differ that are `alike`, in words
    shown_as: ClassVar[str]  # media type of what `show` gives: "image/jpeg" or "text/plain"

    @classmethod
    @abc.abstractmethod
    def of(cls, config: ConfigDict) -> Self:
        """That of a whole config."""

    @abc.abstractmethod
    def shapes(self) -> Any:
        """A row as a tree of `jax.ShapeDtypeStruct`; the longest where rows are `ragged`."""

    @abc.abstractmethod
    def row(self, encoded: bytes, key: tuple[int, int] | None = None) -> Any:
        """The row of an example: as it is, or varied at random by `key`, (epoch, example), from which all draws follow.

        Raises:
            OSError: it cannot be read, with the reason on one line.
        """

    def tokens(self, read: Callable[[int], bytes], count: int) -> Tokens:
        """The rows of `count` examples, that of `read(i)` each, where these are `ragged`.

        An OSError of `read` makes it an example that cannot be read.
        """
        raise NotImplementedError

    @abc.abstractmethod
    def facts(self, view: int | None) -> dict[str, Any]:
        """What rows depend on beside the bytes, as JSON: as they are, or varied as those of epoch `view`."""

    @abc.abstractmethod
    def is_example(self, path: Path, what: str) -> bool:
        """Whether a file is one, by its name and by `what` its first bytes say, see `files.kind_of`."""

    def files(self) -> dict[str, str]:
        """Small files of the weights, by name, that rows are made with: a run keeps them."""
        return {}

    def columns(self, data: ConfigDict) -> dict[str, str]:
        """The columns of a table that an example is made of, each with the key of the group `data` that names it.

        Those of `data.text` are features of a TFDS set too; other kinds take there what TFDS declares.
        """
        return dict.fromkeys(data.text, "data.text")

    def of_cells(self, cells: Sequence[str], folder: Path) -> bytes | Path:
        """The example that cells of a row are, or the path of its file, where they name one from `folder`.

        Here one text is itself in UTF-8, several are a JSON list.

        Raises:
            ValueError: they are none, with the reason.
        """
        return (cells[0] if len(cells) == 1 else json.dumps(list(cells), ensure_ascii=False)).encode()

    @abc.abstractmethod
    def look(self, encoded: bytes) -> Any:
        """What the doctor wants to know of an example; raises OSError where `row` would."""

    def alike(self, seen: Sequence[Any], others: Sequence[Any]) -> Iterator[tuple[int, int]]:
        """`(i, j)` where `seen[i]` and `others[j]`, as `look` gives them, are the same in other bytes."""
        yield from ()

    @abc.abstractmethod
    def show(self, encoded: bytes) -> bytes:
        """What a page shows of an example, small, as `shown_as`; raises OSError where it cannot be read."""

    @abc.abstractmethod
    def signature(self) -> tuple[Argument, ...]:
        """What an export takes in place of encoded examples, in order."""

    @abc.abstractmethod
    def raw(self, encoded: bytes) -> tuple[np.ndarray, ...]:
        """An example as an export takes it, without the axis of the batch; raises OSError where it cannot be read."""

    @abc.abstractmethod
    def rows_of(self, xp: Any, *raw: Any) -> Any:
        """Rows of a batch of what `raw` gives, by operations of `xp`: `jax.numpy` or `keras.ops`."""
