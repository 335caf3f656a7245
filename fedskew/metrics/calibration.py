"""Whether a model is as sure as it is right."""

from __future__ import annotations

import numpy as np

BINS = 15


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
    confidence = probabilities.max(1).astype(np.float64)
    correct = probabilities.argmax(1) == labels
    known = np.nan_to_num(confidence)  # a model whose outputs are no numbers: the distance is none either
    place = np.clip(np.ceil(known * bins).astype(int) - 1, 0, bins - 1)  # [N]
    gaps = np.bincount(place, weights=correct - confidence, minlength=bins)  # each bin's size times its distance
    return float(np.abs(gaps).sum() / len(labels))
