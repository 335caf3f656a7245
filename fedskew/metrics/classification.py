"""Classification metrics from labels and class probabilities."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np


def classification_metrics(labels: np.ndarray, probabilities: np.ndarray, classes: Sequence[str]) -> dict[str, Any]:
    """Accuracy, macro F1, balanced accuracy, recall per class, macro AUROC and cross entropy.

    Classes without an example are left out of the averages (their recall is None). F1 counts a class that occurs
    in the labels or among the predictions, as scikit-learn does.

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
    return {
        "accuracy": float(hits.sum() / max(1, len(labels))),
        "f1_macro": float(f1[counted].mean()) if counted.any() else 0.0,
        "balanced_accuracy": float(recall[present].mean()) if present.any() else 0.0,
        "auroc_macro": _auroc(labels, probabilities),
        "loss": float(-np.log(np.clip(chosen, 1e-12, None)).mean()) if len(labels) else 0.0,
        "recall": {name: float(recall[i]) if present[i] else None for i, name in enumerate(classes)},
        "examples": len(labels),
    }


def _auroc(labels: np.ndarray, probabilities: np.ndarray) -> float | None:
    """Mean one-against-rest area under the ROC curve over the classes that have both kinds of examples."""
    areas = []
    for column in range(probabilities.shape[1]):
        positive = labels == column
        count = int(positive.sum())
        if 0 < count < len(labels):
            ranks = _ranks(probabilities[:, column])
            areas.append((ranks[positive].sum() - count * (count + 1) / 2) / (count * (len(labels) - count)))
    return float(np.mean(areas)) if areas else None


def _ranks(values: np.ndarray) -> np.ndarray:
    """Ranks from 1, equal values sharing the mean of theirs: `scipy.stats.rankdata`, whose import takes a second."""
    _, place, counts = np.unique(values, return_inverse=True, return_counts=True)
    return (np.cumsum(counts) - (counts - 1) / 2)[place]
