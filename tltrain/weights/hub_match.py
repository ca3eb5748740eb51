"""Which arrays of a file are those of a backbone that comes from the Hub: by names, shapes and dtypes alone."""

import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import NamedTuple

from tltrain.errors import WeightsError
from tltrain.models.backbone import Backbone, Layout
from tltrain.weights import variables
from tltrain.weights.hub_layout import Leaf, Place


class Declared(NamedTuple):
    """What a file says of an array."""

    dtype: str
    shape: tuple[int, ...]


class Format(NamedTuple):
    """How files of a library store a backbone; `shape_of` is that of a leaf at its place in a file."""

    layouts: tuple[Layout, ...]
    prefixes: tuple[str, ...]  # of which one may stand before all names
    dtypes: tuple[str, ...]
    shape_of: Callable[[Leaf, Place], tuple[int, ...]]


class Match(NamedTuple):
    """Where each leaf is in a file, and groups of arrays that the backbone does not use."""

    chosen: dict[Leaf, Place]
    ignored: list[str]


def match(
    path: Path, backbone: Backbone, leaves: list[Leaf], declared: Mapping[str, Declared], stored: Format
) -> Match:
    """The place of every one of `leaves` in the file `path`, which has the arrays `declared` as a format `stored`.

    Raises:
        WeightsError: no array of the backbone is there; or some are missing, misshapen, unexpected or ambiguous, all of
            them named at once.
    """
    layout, prefix = _layout(path, leaves, declared, stored)
    faults, chosen = _chosen(leaves, declared, layout, prefix, stored)
    used = {place.name for place in chosen.values()}
    ignored, unexpected = _rest(backbone, set(declared) - used, prefix, used)
    if faults := faults + unexpected:
        raise variables.unfit(path, len(leaves), faults)
    return Match(chosen, ignored)


def _layout(path, leaves, declared, stored):
    """The layout of most names, and what stands before them; raises where no array of the backbone is in the file."""
    counts = {
        (layout, prefix): sum(any(prefix + place.name in declared for place in leaf.places(layout)) for leaf in leaves)
        for layout in stored.layouts
        for prefix in ("", *stored.prefixes)
    }
    if not any(counts.values()):
        raise WeightsError(
            f"{path} is of another network; none of the {len(leaves)} arrays of the backbone is in it, but "
            f"{variables.some(sorted(map(_shown, declared)), 3) or 'nothing'}; set model.backbone to its network"
        )
    return max(counts, key=lambda found: counts[found])


def _chosen(leaves, declared, layout, prefix, stored):
    """What is wrong with arrays of the backbone, and where they are."""
    faults: list[str] = []
    chosen: dict[Leaf, Place] = {}
    for leaf in leaves:
        places = [place._replace(name=prefix + place.name) for place in leaf.places(layout)]
        found = [place for place in places if place.name in declared]
        if len(found) > 1:
            faults.append(f"ambiguous {leaf.label} ({', '.join(place.name for place in found)})")
        elif not found:
            faults.append(f"missing {places[0].name}")
        else:
            name, expected = found[0].name, stored.shape_of(leaf, found[0])
            dtype, shape = declared[name]
            if shape != expected:
                faults.append(f"misshapen {name}: {_shown(str(shape))}, expected {expected}")
            elif dtype not in stored.dtypes:
                faults.append(f"misshapen {name}: dtype {dtype}, expected {' or '.join(stored.dtypes)}")
        if found:
            chosen[leaf] = found[0]
    return faults, chosen


def _rest(backbone, names, prefix, used):
    """What of `names` is known and not used, without what merely counts, and what is unexpected.

    It is said by the group of a name where nothing of that is `used`.
    """
    groups = {_group(name.removeprefix(prefix)) for name in used}
    ignored, unexpected = set(), []
    for name in sorted(names):
        stripped = name.removeprefix(prefix)
        if not any(re.fullmatch(pattern, stripped) for pattern in backbone.hub_unused):
            unexpected.append(f"unexpected {_shown(name)}")
        elif not stripped.endswith(("position_ids", "num_batches_tracked")):
            group = _group(stripped)
            ignored.add(stripped if group in groups else group)
    return sorted(ignored), unexpected


def _group(name):
    return re.split(r"[./]", name)[0]


def _shown(name):
    """A name of the file in a message: printable, and not long."""
    text = "".join(c if c.isprintable() else ascii(c)[1:-1] for c in name[:80])
    return text + ("..." if len(name) > 80 else "")
