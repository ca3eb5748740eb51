"""What the page of a run says of a split, by task: tables, charts, and the worst mistakes."""

from collections.abc import Callable
from typing import Any

import numpy as np

from tltrain.pages import charts, page
from tltrain.training import scores
from tltrain.training.bootstrap import Estimate
from tltrain.training.tasks import multi_label, regression
from tltrain.training.tasks.classification import Classification
from tltrain.training.tasks.multi_label import MultiLabel
from tltrain.training.tasks.regression import Regression

_MOST_SHOWN = 24  # mistakes of a split
_LARGEST_MATRIX = 20  # classes; of more the most frequent confusions are listed
_NOTHING = dict.fromkeys(("matrix", "pairs", "classes", "ece", "reliability", "scatter"))
_NOTHING |= {"num_classes_left_out": 0}

Shown = dict[str, dict[str, str | None]]  # by id
Estimates = dict[str, Estimate]


def mistakes(found: Any) -> np.ndarray:
    """Rows of the mistakes that are shown, worst first: wrong answers by confidence, others by loss."""
    if isinstance(found, scores.Predictions):
        return scores.mistakes(found, _MOST_SHOWN)
    wrong = _wrong(found)
    return wrong[np.argsort(-found.losses[wrong], kind="stable")][:_MOST_SHOWN]


def _wrong(found):
    """Rows that a mistake can be among: those of several labels of which one is wrong, and all numbers."""
    if isinstance(found, multi_label.Predictions):
        return np.flatnonzero((found.predicted != found.labels).any(1))
    return np.arange(len(found.ids))


def _of_classes(
    found: scores.Predictions, worst: np.ndarray, shown: Shown, class_names: list[str], estimates: Estimates
) -> dict[str, Any]:
    answers, small = (found.labels, found.predicted), len(class_names) <= _LARGEST_MATRIX
    classes = list(zip(class_names, scores.by_class(*answers, len(class_names)), strict=True))
    num_wrong = int((~found.correct).sum())
    return _NOTHING | {
        "wrong": f"{num_wrong:,} wrong",
        "matrix": _matrix(scores.confusion(*answers, len(class_names)), class_names) if small else None,
        "pairs": None
        if small
        else [
            {"label": class_names[label], "predicted": class_names[predicted], "count": count}
            for label, predicted, count in scores.confused(*answers, _LARGEST_MATRIX)
        ],
        **_classes(classes, small),
        "ece": estimates["ece"].value,
        "reliability": charts.reliability("Reliability", scores.reliability(found)),
        "mistakes_title": _title("most confident", len(worst), num_wrong),
        "mistakes": [
            {
                "id": found.ids[i],
                "label": class_names[found.labels[i]],
                "predicted": class_names[found.predicted[i]],
                "note": page.format_by(found.confidence[i], "percent"),
                **shown[found.ids[i]],
            }
            for i in worst
        ],
    }


def _classes(classes, small):
    kept = classes if small else scores.hardest(classes, scores.MOST_SHOWN)
    return {"classes": kept, "hardest_first": not small, "num_classes_left_out": len(classes) - len(kept)}


def _title(what, count, total):
    if not count:
        return "No mistakes"
    several = "s" if count > 1 else ""
    more = f" of {total:,}" if count < total else ""
    return f"The {f'{count} ' if count > 1 else ''}{what} mistake{several}{more}"


def _matrix(counts, class_names):
    made = []
    for i, (name, row) in enumerate(zip(class_names, counts.tolist(), strict=True)):
        total = max(sum(row), 1)
        kinds = ["right" if i == j else "" if count else "zero" for j, count in enumerate(row)]
        cells = [{"count": c, "share": c / total, "kind": kind} for c, kind in zip(row, kinds, strict=True)]
        made.append({"name": name, "cells": cells})
    return made


def _of_labels(
    found: multi_label.Predictions, worst: np.ndarray, shown: Shown, class_names: list[str], estimates: Estimates
) -> dict[str, Any]:
    classes = list(zip(class_names, multi_label.by_class(found.labels, found.predicted), strict=True))
    num_wrong, names = len(_wrong(found)), np.asarray(class_names, object)

    def named(row):
        return ", ".join(names[row]) or "none"

    return _NOTHING | {
        "wrong": f"{num_wrong:,} with a wrong label",
        **_classes(classes, len(classes) <= _LARGEST_MATRIX),
        "mistakes_title": _title("costliest", len(worst), num_wrong),
        "mistakes": [
            {
                "id": found.ids[i],
                "label": named(found.labels[i]),
                "predicted": named(found.predicted[i]),
                "note": f"loss {page.format_by(found.losses[i], 'number')}",
                **shown[found.ids[i]],
            }
            for i in worst
        ],
    }


def _of_numbers(
    found: regression.Predictions, worst: np.ndarray, shown: Shown, class_names: list[str], estimates: Estimates
) -> dict[str, Any]:
    points = np.stack([found.labels, found.predicted], 1)
    return _NOTHING | {
        "wrong": f"mean absolute error {page.format_by(np.abs(found.predicted - found.labels).mean(), 'number')}",
        "scatter": charts.scatter("Predicted", points, "label"),
        "mistakes_title": "The largest errors",
        "mistakes": [
            {
                "id": found.ids[i],
                "label": f"{found.labels[i]:.6g}",
                "predicted": f"{found.predicted[i]:.6g}",
                "note": f"off by {found.predicted[i] - found.labels[i]:+.4g}",
                **shown[found.ids[i]],
            }
            for i in worst
        ],
    }


# what a page says of the answers of a split, by its `worst` rows, what is shown of these, class names and estimates
BY_TASK: dict[str, Callable[[Any, np.ndarray, Shown, list[str], Estimates], dict[str, Any]]] = {
    Classification.name: _of_classes,
    MultiLabel.name: _of_labels,
    Regression.name: _of_numbers,
}
