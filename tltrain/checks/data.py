"""The examples: enough of each class, all readable, and none in two splits or under two labels."""

from collections.abc import Iterator

import numpy as np

from tltrain.checks.case import Case
from tltrain.checks.finding import Finding, advice, fine, problem
from tltrain.data import inspect
from tltrain.data.inspect import Looked
from tltrain.errors import DataError
from tltrain.runtime import console
from tltrain.training.tasks.classification import Classification

_NAMED = 5  # files that a line names
_IMBALANCE = 3.0  # largest to smallest class, from which on it is worth a word
_WIDE = 0.05  # half a 95 % interval of val accuracy that is too wide to choose by
_LEAK = 0.01  # share of val or test that also stands in another split: what it can add to an accuracy


def check_counts(case: Case) -> Iterator[Finding]:
    """Examples by split and class, and what these numbers let one say."""
    data = case.data
    for name, split in data.splits.items():
        yield fine(f"{name}: {split.num_examples} {split.kind.name}, {_labels(data, split)}")
        if name == "train":
            continue
        if data.task == "classification":
            yield from _precision(name, split)
        counts = split.class_counts(len(data.class_names))
        if absent := [c for c, count in zip(data.class_names, counts, strict=True) if not count]:
            yield advice(f"{name} has no {split.kind.name} of {_some(absent)}: its numbers say nothing of them")
    if not isinstance(case.task, Classification):
        return
    counts = data.splits["train"].class_counts(len(data.class_names))
    ratio = counts.max() / counts.min()
    if ratio >= _IMBALANCE and set(case.task.class_weights) == {1.0}:
        yield advice(
            f"the largest class of train has {ratio:.1f} times the examples of the smallest: the head learns to add "
            f"log {ratio:.1f} = {np.log(ratio):.1f} to its score; loss.class_weights = 'auto' lets classes count alike"
        )


def _labels(data, split):
    """In words how labels are distributed."""
    if not data.class_names:
        low, mean, high = (f"{f(split.labels):.4g}" for f in (np.min, np.mean, np.max))
        return f"labels from {low} to {high}, mean {mean}, deviation {split.labels.std():.4g}"
    counts = split.class_counts(len(data.class_names))
    shown = ", ".join(f"{c} {count}" for c, count in zip(data.class_names[:10], counts, strict=False))
    return shown + (f", ... (smallest {counts.min()}, largest {counts.max()})" if len(counts) > 10 else "")


def check_left_out(case: Case) -> Iterator[Finding]:
    """What lies beside the examples and is none, and which folders are no classes."""
    if case.data.sub_folders:
        yield fine(f"the sub-folders {', '.join(case.data.sub_folders)} are splits, not classes")
    for reason, names in case.data.left_out.items():
        yield advice(f"left out: {console.counted(len(names), reason)}: {_some(list(names))}")


def _precision(name, split):
    low, high = wilson(0.9, split.num_examples)
    half, examples = (high - low) / 2, f"{split.num_examples} {split.kind.name}"
    text = f"{name}: an accuracy of 0.90 on {examples} is known to ± {100 * half:.1f} points (95 % interval)"
    yield fine(text) if half <= _WIDE else advice(f"{text}: too few to choose an epoch or a rate by")


def wilson(accuracy: float, count: int, z: float = 1.96) -> tuple[float, float]:
    """95 % interval of an accuracy measured on `count` examples (Wilson 1927)."""
    centre = (accuracy + z * z / (2 * count)) / (1 + z * z / count)
    half = z / (1 + z * z / count) * np.sqrt(accuracy * (1 - accuracy) / count + z * z / (4 * count * count))
    return float(centre - half), float(centre + half)


def check_files(case: Case) -> Iterator[Finding]:
    """Unreadable files."""
    looked, total = case.looked, sum(len(split.ids) for split in case.data.splits.values())
    seen, name = sum(len(split.files) for split in looked.values()), case.data.kind.name
    if seen < total:
        yield advice(f"only {seen} of {total} {name} were looked at, evenly spread (--limit {case.limit} a split)")
    for role, split in looked.items():
        yield from _unreadable(case, role, split)
    if case.config.data.source.startswith("tfds:"):
        size = sum(_estimated_bytes(case, role) for role in looked)
        yield fine(f"TFDS splits are held in memory, encoded: {size / 2**30:.2f} GiB")


def _estimated_bytes(case, name):
    looked = case.looked[name]
    return looked.num_bytes.mean() * len(case.data.splits[name].ids)


def _unreadable(case, name, split: Looked):
    ids = [case.data.splits[name].ids[split.files[i]] for i in split.errors]
    share, limit, kind = len(ids) / len(split.files), case.config.data.max_corrupt, case.data.kind.name
    if not ids:
        yield fine(f"{name}: all {len(split.files)} {kind} can be read")
        return
    reason = next(iter(split.errors.values()))
    text = f"{name}: {len(ids)} of {len(split.files)} {kind} cannot be read: {_some(ids)} ({reason})"
    if share > limit:
        yield problem(f"{text}; more than data.max_corrupt = {limit} allows: the run would stop", DataError.exit_code)
    else:
        yield advice(f"{text}; the run would leave them out")


def check_duplicates(case: Case) -> Iterator[Finding]:
    """An example in two splits makes val easier than the world; under two labels it cannot be learnt."""
    groups, kind = list(_same_bytes(case)), case.data.kind.name
    leaks = [group for group in groups if len({name for name, _ in group}) > 1]
    conflicts = [group for group in groups if len({_label(case, *one) for one in group}) > 1]
    inner = [group for group in groups if len({name for name, _ in group}) == 1]
    near = [pair for pair in _near(case) if not any(set(pair) <= set(group) for group in groups)]
    if leaks:
        yield _leak(case, leaks, f"the same {kind} in two splits")
    if near:
        yield _leak(case, near, f"{kind} in two splits {case.data.kind.alike_but}")
    conflicts += [pair for pair in near if len({_label(case, *one) for one in pair}) > 1]
    if conflicts and case.data.task != "regression":  # numbers that were measured again differ
        text = f"{kind} with two labels: {len(conflicts)} ({_pairs(case, conflicts)}); keep the right one of each"
        yield problem(text, DataError.exit_code)
    if inner:
        yield advice(f"the same {kind} more than once in one split: {len(inner)} ({_pairs(case, inner)})")
    if not groups and not near:
        yield fine(f"no two {kind} are the same, and none is in two splits")


def _leak(case, groups, what):
    """A problem where it is more than a rounding of the numbers on val or test."""
    shares = {
        name: len({i for group in groups for member, i in group if member == name}) / len(case.looked[name].files)
        for name in case.looked
        if name != "train"
    }
    name = max(shares, key=shares.__getitem__)
    points = f"{100 * shares[name]:.2g}"
    harm = f"they can raise accuracy on {name} by up to {points} points"
    if case.data.task == "regression":
        harm = f"{points} % of {name} are known from another split"
    text = f"{what}: {len(groups)} ({_pairs(case, groups)}); {harm}; keep one each"
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
        seen = ([looked.seen[i] for i in chosen] for looked, chosen in ((one, rows), (other, columns)))
        for i, j in case.data.kind.alike(*seen):
            yield [(first, int(rows[i])), (second, int(columns[j]))]


def _label(case, name, i):
    return case.data.splits[name].labels[case.looked[name].files[i]].tobytes()


def _pairs(case, groups):
    def one(name, i):
        return f"{name} {case.data.splits[name].ids[case.looked[name].files[i]]}"

    return _some([" = ".join(one(*member) for member in group[:3]) for group in groups])


def _some(names):
    more = f", and {len(names) - _NAMED} more" if len(names) > _NAMED else ""
    return ", ".join(names[:_NAMED]) + more
