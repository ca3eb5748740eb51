"""What the examples of a split are called, and other small things that there are as many of, in few bytes each."""

import bisect
import heapq
import itertools
from array import array
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple, Protocol, SupportsIndex

import numpy as np

_RUN = 1 << 14  # names that are sorted at a time


class Names(Protocol):
    """Names by position."""

    def __len__(self) -> int: ...

    def __getitem__(self, i: SupportsIndex, /) -> str: ...

    def __iter__(self) -> Iterator[str]: ...


class Blobs:
    """Pieces of bytes, one after another in one array; 8 bytes each beside them."""

    def __init__(self, blobs: Iterable[bytes] = ()) -> None:
        self._bytes, self._ends = bytearray(), array("q", [0])
        self.extend(blobs)

    def extend(self, blobs: Iterable[bytes]) -> None:
        """Adds some behind those that are there."""
        for one in blobs:
            self.append(one)

    def append(self, one: bytes) -> None:
        """Adds one."""
        self._bytes += one
        self._ends.append(len(self._bytes))

    def __len__(self) -> int:
        return len(self._ends) - 1

    def __getitem__(self, i: SupportsIndex, /) -> bytes:
        at = range(len(self._ends) - 1)[i]
        return bytes(memoryview(self._bytes)[self._ends[at] : self._ends[at + 1]])

    def __iter__(self) -> Iterator[bytes]:
        return (bytes(self._bytes[start:end]) for start, end in itertools.pairwise(self._ends))


class Strings:
    """Any strings, as `Blobs`."""

    def __init__(self, strings: Iterable[str] = ()) -> None:
        self._blobs = Blobs()
        self.extend(strings)

    def extend(self, strings: Iterable[str]) -> None:
        """Adds some behind those that are there."""
        # as the system gives names that are no UTF-8
        self._blobs.extend(one.encode("utf-8", "surrogateescape") for one in strings)

    def __len__(self) -> int:
        return len(self._blobs)

    def __getitem__(self, i: SupportsIndex, /) -> str:
        return self._blobs[i].decode("utf-8", "surrogateescape")

    def __iter__(self) -> Iterator[str]:
        return (one.decode("utf-8", "surrogateescape") for one in self._blobs)


class Below:
    """The paths of files whose `names` are from the folder `root`."""

    def __init__(self, root: Path, names: Strings) -> None:
        self.root, self.names = root, names

    def __len__(self) -> int:
        return len(self.names)

    def __getitem__(self, i: SupportsIndex, /) -> Path:
        return self.root / self.names[i]

    def __iter__(self) -> Iterator[Path]:
        return map(self.__getitem__, range(len(self)))


def in_order(names: Iterable[str], key: Callable[[str], Any]) -> Iterator[str]:
    """`names` as `sorted` has them, of which a part alone is held as strings at a time."""
    every, runs = iter(names), []
    while some := sorted(itertools.islice(every, _RUN), key=key):
        runs.append(Strings(some))
    return heapq.merge(*runs, key=key)


class Span(NamedTuple):
    """`length` records of the file called `name`, from that at position `first` on."""

    name: str
    first: int
    length: int


class Places:
    """The records of spans of files, one span after another, each called by its place: "train-00000-of-00002[17]"."""

    def __init__(self, spans: Sequence[Span]) -> None:
        self.spans = spans
        self._ends = [0, *itertools.accumulate(span.length for span in spans)]

    def __len__(self) -> int:
        return self._ends[-1]

    def at(self, i: SupportsIndex) -> tuple[int, int]:
        """Which span has the example `i`, and its position in the file."""
        at = range(len(self))[i]
        span = bisect.bisect_right(self._ends, at) - 1
        return span, self.spans[span].first + at - self._ends[span]

    def __getitem__(self, i: SupportsIndex, /) -> str:
        span, position = self.at(i)
        return f"{self.spans[span].name}[{position}]"

    def __iter__(self) -> Iterator[str]:
        for name, first, length in self.spans:
            yield from (f"{name}[{position}]" for position in range(first, first + length))


def common(one: Names, other: Names) -> str | None:
    """A name that both have; None where they have none in common."""
    if isinstance(one, Places) and isinstance(other, Places):
        pairs = ((a, b) for a, b in itertools.product(one.spans, other.spans) if a.name == b.name)
        for a, b in pairs:
            if (first := max(a.first, b.first)) < min(a.first + a.length, b.first + b.length):
                return f"{a.name}[{first}]"
        return None
    of_one, of_other = (np.fromiter(map(hash, names), np.int64, len(names)) for names in (one, other))
    for i in np.flatnonzero(np.isin(of_one, of_other)):
        if any(other[j] == one[i] for j in np.flatnonzero(of_other == of_one[i])):
            return one[i]
    return None
