"""Classification metrics from labels and class probabilities."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from fedskew.metrics.calibration import expected_calibration_error
from fedskew.metrics.clinical import MELANOMA, SENSITIVITY, specificity_at_sensitivity

NUMBERS = ("accuracy", "f1_macro", "balanced_accuracy", "auroc_macro", "loss", "expected_calibration_error",
           "melanoma_specificity", "examples")  # fmt: skip
BY_CLASS = ("recall", "auroc", "support")


def classification_metrics(labels: np.ndarray, probabilities: np.ndarray, classes: Sequence[str]) -> dict[str, Any]:
    """Everything that is said of a model's predictions: the keys of `NUMBERS`, and of `BY_CLASS` by class name.

    Classes without an example are left out of the averages (their recall and AUROC are None, their support is 0). F1
    counts a class that occurs in the labels or among the predictions, as scikit-learn does. AUROC is that of one class
    against the rest, ties counting half; `melanoma_specificity` is the specificity of the class named `mel` against
    the rest at a sensitivity of 90 %, None without that class.

    Args:
        labels: [N] int.
        probabilities: [N, classes] float, rows sum to 1.
        classes: names, in the order of the columns.
    """
    confusion = np.zeros((len(classes), len(classes)), dtype=np.int64)  # [label, prediction]
    np.add.at(confusion, (labels, probabilities.argmax(1)), 1)
    hits, actual, predicted = confusion.diagonal(), confusion.sum(1), confusion.sum(0)
    present, counted = actual > 0, (actual + predicted) > 0
    recall = np.divide(hits, actual, out=np.zeros(len(classes)), where=present)
    f1 = np.divide(2 * hits, actual + predicted, out=np.zeros(len(classes)), where=counted)
    chosen = probabilities[np.arange(len(labels)), labels]
    areas = {name: _auroc(labels == i, probabilities[:, i]) for i, name in enumerate(classes)}
    known = [area for area in areas.values() if area is not None]
    return {
        "accuracy": float(hits.sum() / max(1, len(labels))),
        "f1_macro": float(f1[counted].mean()) if counted.any() else 0.0,
        "balanced_accuracy": float(recall[present].mean()) if present.any() else 0.0,
        "auroc_macro": float(np.mean(known)) if known else None,
        "loss": float(-np.log(np.clip(chosen, 1e-12, None)).mean()) if len(labels) else 0.0,
        "expected_calibration_error": expected_calibration_error(labels, probabilities),
        "melanoma_specificity": _melanoma_specificity(labels, probabilities, classes),
        "recall": {name: float(recall[i]) if present[i] else None for i, name in enumerate(classes)},
        "auroc": areas,
        "support": {name: int(actual[i]) for i, name in enumerate(classes)},
        "examples": len(labels),
    }


def not_evaluated() -> dict[str, None]:
    """The metrics of a round in which the model was not evaluated."""
    return dict.fromkeys((*NUMBERS, *BY_CLASS))


def _melanoma_specificity(labels: np.ndarray, probabilities: np.ndarray, classes: Sequence[str]) -> float | None:
    if MELANOMA not in classes:
        return None
    column = list(classes).index(MELANOMA)
    return specificity_at_sensitivity(labels == column, probabilities[:, column], SENSITIVITY)


def _auroc(positive: np.ndarray, scores: np.ndarray) -> float | None:
    """Area under the ROC curve; None unless there are both kinds of examples."""
    count = int(positive.sum())
    if not 0 < count < len(positive):
        return None
    return float((_ranks(scores)[positive].sum() - count * (count + 1) / 2) / (count * (len(positive) - count)))


def _ranks(values: np.ndarray) -> np.ndarray:
    """Ranks from 1, equal values sharing the mean of theirs: `scipy.stats.rankdata`, whose import takes a second."""
    _, place, counts = np.unique(values, return_inverse=True, return_counts=True)
    return (np.cumsum(counts) - (counts - 1) / 2)[place]
