"""The images: their sizes, modes and values."""

import collections
from collections.abc import Iterator

import numpy as np

from tltrain.checks.case import Case
from tltrain.checks.finding import Finding, advice, fine, problem
from tltrain.data.kinds.images import Images
from tltrain.errors import DataError

_DARK = 64  # brightest pixel of all images: three quarters of the range unused


def check_images(case: Case) -> Iterator[Finding]:
    """Sizes, modes, values."""
    if not isinstance(case.data.kind, Images):
        return
    seen = [one for looked in case.looked.values() for one in looked.seen if one is not None]
    if not seen:
        return
    yield from _sizes(np.asarray([one.size for one in seen]), case.data.kind.size)
    yield from _modes(collections.Counter(one.mode for one in seen))
    if (brightest := max(one.brightest for one in seen)) < _DARK:
        yield problem(
            f"no image is brighter than {brightest} of 255: their values were scaled before they were saved, or have "
            "fewer bits than their files; save them as 0..255",
            DataError.exit_code,
        )


def _sizes(sizes, wanted):
    order = np.argsort(sizes.prod(1), kind="stable")
    least, middle, most = (f"{w} x {h}" for h, w in sizes[order[[0, len(order) // 2, -1]]])
    small = int((sizes < np.asarray(wanted)).any(1).sum())
    text = f"sizes: smallest {least}, median {middle}, largest {most}"
    if small == 0:
        yield fine(f"{text}; none is below the input of {wanted[1]} x {wanted[0]}")
    elif small <= len(sizes) / 2:
        yield fine(f"{text}; {small} are below the input of {wanted[1]} x {wanted[0]}, and enlarged")
    else:
        yield advice(
            f"{text}; {small} of {len(sizes)} are below the input of {wanted[1]} x {wanted[0]}: they are enlarged, "
            "and their time is spent on pixels that say nothing new; a smaller data.image_size may do"
        )


_MODES = {"RGB": "colour", "L": "grey", "CMYK": "CMYK", "RGBA": "transparent", "LA": "transparent grey", "P": "palette"}


def _modes(modes):
    shown = ", ".join(f"{count} {_MODES.get(m, m)}" for m, count in modes.most_common())
    yield fine(f"modes: {shown}; all become RGB")
    deep = sum(count for mode, count in modes.items() if mode.startswith("I"))
    if deep:
        yield advice(f"{deep} images have 16 bits a pixel: their upper 8 are used, the rest is cut off")
