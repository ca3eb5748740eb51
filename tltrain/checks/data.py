"""The images: enough of each class, all readable, and no picture in two splits or under two labels."""

import collections
from collections.abc import Iterator

import numpy as np

from tltrain.checks.case import Case
from tltrain.checks.finding import Finding, advice, fine, problem
from tltrain.data import inspect, sources
from tltrain.data.inspect import Looked
from tltrain.errors import DataError
from tltrain.runtime import console

_NAMED = 5  # files that a line names
_IMBALANCE = 3.0  # largest to smallest class, from which on it is worth a word
_WIDE = 0.05  # half a 95 % interval of val accuracy that is too wide to choose by
_LEAK = 0.01  # share of val or test that also stands in another split: what it can add to an accuracy
_DARK = 64  # brightest pixel of all images: three quarters of the range unused


def check_counts(case: Case) -> Iterator[Finding]:
    """Examples by split and class, and what these numbers let one say."""
    data, config = case.data, case.config
    for name, split in data.splits.items():
        counts = np.bincount(split.labels, minlength=len(data.class_names))
        shown = ", ".join(f"{c} {count}" for c, count in zip(data.class_names[:10], counts, strict=False))
        more = f", ... (smallest {counts.min()}, largest {counts.max()})" if len(counts) > 10 else ""
        yield fine(f"{name}: {split.num_examples} images, {shown}{more}")
        if name != "train":
            yield from _precision(name, split.num_examples)
            if absent := [c for c, count in zip(data.class_names, counts, strict=True) if not count]:
                yield advice(f"{name} has no image of {_some(absent)}: its numbers say nothing of them")
    sources.check(config, data)
    weights = sources.class_weights(config.loss.class_weights, data)
    counts = np.bincount(data.splits["train"].labels)
    ratio = counts.max() / counts.min()
    if ratio >= _IMBALANCE and (weights == 1).all():
        yield advice(
            f"the largest class of train has {ratio:.1f} times the images of the smallest: the head learns to add "
            f"log {ratio:.1f} = {np.log(ratio):.1f} to its score; loss.class_weights = 'auto' lets classes count alike"
        )


def check_left_out(case: Case) -> Iterator[Finding]:
    """What lies beside the examples and is none, and which folders are no classes."""
    if case.data.sub_folders:
        yield fine(f"the sub-folders {', '.join(case.data.sub_folders)} are splits, not classes")
    for reason, names in case.data.left_out.items():
        yield advice(f"left out: {console.counted(len(names), reason)}: {_some(list(names))}")


def _precision(name, count):
    low, high = wilson(0.9, count)
    half = (high - low) / 2
    text = f"{name}: an accuracy of 0.90 on {count} images is known to ± {100 * half:.1f} points (95 % interval)"
    yield fine(text) if half <= _WIDE else advice(f"{text}: too few to choose an epoch or a rate by")


def wilson(accuracy: float, count: int, z: float = 1.96) -> tuple[float, float]:
    """95 % interval of an accuracy measured on `count` examples (Wilson 1927)."""
    centre = (accuracy + z * z / (2 * count)) / (1 + z * z / count)
    half = z / (1 + z * z / count) * np.sqrt(accuracy * (1 - accuracy) / count + z * z / (4 * count * count))
    return float(centre - half), float(centre + half)


def check_files(case: Case) -> Iterator[Finding]:
    """Unreadable files, sizes, modes, values."""
    looked, total = case.looked, sum(len(split.ids) for split in case.data.splits.values())
    seen = sum(len(split.files) for split in looked.values())
    if seen < total:
        yield advice(f"only {seen} of {total} images were looked at, evenly spread (--limit {case.limit} a split)")
    for name, split in looked.items():
        yield from _unreadable(case, name, split)
    sizes = np.concatenate([split.sizes[split.readable] for split in looked.values()])
    if not len(sizes):
        return
    yield from _sizes(sizes, case.config.data.image_size)
    modes = collections.Counter(mode for split in looked.values() for mode in split.modes[split.readable])
    yield from _modes(modes)
    brightest = max(int(split.brightest.max()) for split in looked.values())
    if brightest < _DARK:
        yield problem(
            f"no image is brighter than {brightest} of 255: their values were scaled before they were saved, or have "
            "fewer bits than their files; save them as 0..255",
            DataError.exit_code,
        )
    if case.config.data.source.startswith("tfds:"):
        size = sum(_estimated_bytes(case, name) for name in looked)
        yield fine(f"TFDS splits are held in memory, encoded: {size / 2**30:.2f} GiB")


def _estimated_bytes(case, name):
    looked = case.looked[name]
    return looked.num_bytes.mean() * len(case.data.splits[name].ids)


def _unreadable(case, name, split: Looked):
    ids = [case.data.splits[name].ids[split.files[i]] for i in split.errors]
    share, limit = len(ids) / len(split.files), case.config.data.max_corrupt
    if not ids:
        yield fine(f"{name}: all {len(split.files)} images can be read")
        return
    reason = next(iter(split.errors.values()))
    text = f"{name}: {len(ids)} of {len(split.files)} images cannot be read: {_some(ids)} ({reason})"
    if share > limit:
        yield problem(f"{text}; more than data.max_corrupt = {limit} allows: the run would stop", DataError.exit_code)
    else:
        yield advice(f"{text}; the run would leave them out")


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


def check_duplicates(case: Case) -> Iterator[Finding]:
    """One picture in two splits makes val easier than the world; under two labels it cannot be learnt."""
    groups = list(_same_bytes(case))
    leaks = [group for group in groups if len({name for name, _ in group}) > 1]
    conflicts = [group for group in groups if len({_label(case, *one) for one in group}) > 1]
    inner = [group for group in groups if len({name for name, _ in group}) == 1]
    near = [pair for pair in _near(case) if not any(set(pair) <= set(group) for group in groups)]
    if leaks:
        yield _leak(case, leaks, "files in two splits")
    if near:
        yield _leak(case, near, "pictures in two splits as different files, of other quality, size or border")
    conflicts += [pair for pair in near if len({_label(case, *one) for one in pair}) > 1]
    if conflicts:
        text = f"pictures with two labels: {len(conflicts)} ({_pairs(case, conflicts)}); keep the right one of each"
        yield problem(text, DataError.exit_code)
    if inner:
        yield advice(f"files more than once in one split: {len(inner)} ({_pairs(case, inner)})")
    if not groups and not near:
        yield fine("no file stands there twice, and no picture in two splits")


def _leak(case, groups, what):
    """A problem where it is more than a rounding of the numbers on val or test."""
    shares = {
        name: len({i for group in groups for member, i in group if member == name}) / len(case.looked[name].files)
        for name in case.looked
        if name != "train"
    }
    name = max(shares, key=shares.__getitem__)
    text = (
        f"{what}: {len(groups)} ({_pairs(case, groups)}); they can raise accuracy on {name} by up to "
        f"{100 * shares[name]:.2g} points; keep one each"
    )
    return problem(text, DataError.exit_code) if shares[name] > _LEAK else advice(text)


def _same_bytes(case) -> Iterator[list[tuple[str, int]]]:
    """Groups of `(split, position in its Looked)` with equal bytes."""
    where = [(name, i) for name, split in case.looked.items() for i in range(len(split.files))]
    for group in inspect.same_files(np.concatenate([split.sha256 for split in case.looked.values()])):
        yield [where[i] for i in group]


def _near(case) -> Iterator[list[tuple[str, int]]]:
    names = list(case.looked)
    for first, second in ((a, b) for i, a in enumerate(names) for b in names[i + 1 :]):
        one, other = case.looked[first], case.looked[second]
        rows, columns = np.flatnonzero(one.readable), np.flatnonzero(other.readable)
        for i, j, _ in inspect.near_pairs(one.hashes[rows], other.hashes[columns]):
            yield [(first, int(rows[i])), (second, int(columns[j]))]


def _label(case, name, i):
    return int(case.data.splits[name].labels[case.looked[name].files[i]])


def _pairs(case, groups):
    def one(name, i):
        return f"{name} {case.data.splits[name].ids[case.looked[name].files[i]]}"

    return _some([" = ".join(one(*member) for member in group[:3]) for group in groups])


def _some(names):
    more = f", and {len(names) - _NAMED} more" if len(names) > _NAMED else ""
    return ", ".join(names[:_NAMED]) + more
