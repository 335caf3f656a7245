"""Whether a model is as sure as it is right."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

BINS = 15


@dataclass(frozen=True)
class ReliabilityBin:
    """Examples whose top probability lies in (low, high].

    Attributes:
        count: how many; 0 leaves the means None.
        confidence: mean top probability.
        accuracy: share of them that is right.
    """

    low: float
    high: float
    count: int
    confidence: float | None
    accuracy: float | None


def reliability(labels: np.ndarray, probabilities: np.ndarray, bins: int = BINS) -> list[ReliabilityBin]:
    """How sure and how right a model is in each bin of `expected_calibration_error`.

    Args:
        labels: [N] int.
        probabilities: [N, classes], rows sum to 1.
    """
    confidence, correct, place = _binned(labels, probabilities, bins)
    rows = []
    for i in range(bins):
        chosen = place == i
        count = int(chosen.sum())
        means = (float(confidence[chosen].mean()), float(correct[chosen].mean())) if count else (None, None)
        rows.append(ReliabilityBin(i / bins, (i + 1) / bins, count, *means))
    return rows


def _binned(labels: np.ndarray, probabilities: np.ndarray, bins: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Top probability, whether its class is right, and the bin, of each example [N]."""
    confidence = probabilities.max(1).astype(np.float64)
    known = np.nan_to_num(confidence)  # a model whose outputs are no numbers: the distance is none either
    place = np.clip(np.ceil(known * bins).astype(int) - 1, 0, bins - 1)
    return confidence, probabilities.argmax(1) == labels, place


def expected_calibration_error(labels: np.ndarray, probabilities: np.ndarray, bins: int = BINS) -> float | None:
    """Mean distance between how sure and how right the model is, over bins of equal width of its top probability.

    Guo et al., On Calibration of Modern Neural Networks, ICML 2017, Eq. 3: bins (i/M, (i+1)/M], M = 15, each weighted
    by its share of the examples.

    Args:
        labels: [N] int.
        probabilities: [N, classes], rows sum to 1.

    Returns:
        0 (perfect) to 1; None without examples.
    """
    if not len(labels):
        return None
    confidence, correct, place = _binned(labels, probabilities, bins)
    gaps = np.bincount(place, weights=correct - confidence, minlength=bins)  # each bin's size times its distance
    return float(np.abs(gaps).sum() / len(labels))
