"""The cluster bootstrap: how often each image counts in each draw of lesions, and metrics under such counts.

Images of one lesion are no independent evidence, so lesions are drawn, with replacement, and with them all their
images. They are drawn within strata (the set of labels that a lesion's images have, nearly always one label): the
split fixed how many lesions of a class the test set has, and no draw can lose a class, so that every metric is defined
in every draw. The price: a class that a single lesion shows does not vary, and its recall has no interval to speak of.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence

import numpy as np

DRAWS, SEED = 2000, 0
CHUNK = 250  # draws computed at a time: their counts stay in the processor's cache


def lesion_draws(lesions: np.ndarray, labels: np.ndarray, *, draws: int = DRAWS, seed: int = SEED) -> np.ndarray:
    """How often each image counts: float32 [N, 1 + draws], the first column all ones (the test set as it is).

    Args:
        lesions: [N] lesion ids.
        labels: [N] int.
    """
    names, lesion = np.unique(lesions, return_inverse=True)  # [N], index of the lesion
    shown = np.zeros((len(names), labels.max(initial=0) + 1), dtype=bool)  # [lesions, classes]
    shown[lesion, labels] = True
    _, strata = np.unique(shown, axis=0, return_inverse=True)  # [lesions]
    generator = np.random.default_rng(seed)
    counts = np.ones((len(names), 1 + draws), dtype=np.float32)  # [lesions, 1 + draws]
    for stratum in range(strata.max(initial=-1) + 1):
        members = np.flatnonzero(strata == stratum)
        drawn = generator.multinomial(len(members), np.full(len(members), 1 / len(members)), size=draws)
        counts[members, 1:] = drawn.T
    return counts[lesion]


def weighted_metrics(
    labels: np.ndarray,
    probabilities: np.ndarray,
    classes: Sequence[str],
    weights: np.ndarray,
    metrics: Collection[str] | None = None,
) -> dict[str, np.ndarray]:
    """The metrics that are compared in pairs, for every column of weights, as `classification_metrics` defines them.

    Args:
        labels: [N] int.
        probabilities: [N, classes].
        weights: [N, W], whole numbers: how often each image counts. No column may lose a class.
        metrics: names of those that are wanted; all if None.

    Returns:
        `accuracy`, `balanced_accuracy`, `f1_macro`, and for classes that have images `recall.<class>`;
        `auroc_macro` and `auroc.<class>` unless there is one class only. Each float64 [W].
    """
    parts = []
    for start in range(0, weights.shape[1], CHUNK):
        counts = weights[:, start : start + CHUNK].astype(np.float64)  # float32 sums would round above 2²⁴
        found = _decisions(labels, probabilities.argmax(1), classes, counts)
        if metrics is None or any(name.startswith("auroc") for name in metrics):
            found |= _areas(labels, probabilities, classes, counts)
        parts.append(found)
    wanted = [name for name in parts[0] if metrics is None or name in metrics]
    return {name: np.concatenate([part[name] for part in parts]) for name in wanted}


def _decisions(
    labels: np.ndarray, choice: np.ndarray, classes: Sequence[str], weights: np.ndarray
) -> dict[str, np.ndarray]:
    """What follows from the most probable class of each image."""
    numbers = np.arange(len(classes))
    actual, predicted = labels[:, None] == numbers, choice[:, None] == numbers  # [N, classes]
    present = actual.any(0)
    hits, images, calls = ((mask.T.astype(np.float64) @ weights) for mask in (actual & predicted, actual, predicted))
    recall = np.divide(hits, images, out=np.zeros_like(hits), where=images > 0)  # [classes, W]
    either = images + calls
    f1 = np.divide(2 * hits, either, out=np.zeros_like(hits), where=either > 0)
    found = {
        "accuracy": hits.sum(0) / weights.sum(0),
        "balanced_accuracy": recall[present].mean(0),
        # a class that nobody shows counts only in draws where an image is taken for it
        "f1_macro": f1.sum(0) / (either > 0).sum(0),
    }
    return found | {f"recall.{name}": recall[i] for i, name in enumerate(classes) if present[i]}


def _areas(
    labels: np.ndarray, probabilities: np.ndarray, classes: Sequence[str], weights: np.ndarray
) -> dict[str, np.ndarray]:
    """One-against-rest areas under the ROC curve and their mean; empty if all images are of one class."""
    areas = {
        f"auroc.{name}": _auroc(labels == i, probabilities[:, i], weights)
        for i, name in enumerate(classes)
        if 0 < (labels == i).sum() < len(labels)
    }
    return areas | ({"auroc_macro": np.mean(list(areas.values()), axis=0)} if areas else {})


def _auroc(positive: np.ndarray, scores: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """Area under the ROC curve for every column of weights [N, W]: the share of pairs in order, ties counting half."""
    order = np.argsort(scores[~positive], kind="stable")
    others, other_weights = scores[~positive][order], weights[~positive][order]
    below = np.zeros((len(others) + 1, weights.shape[1]))  # weight of the others up to each place
    np.cumsum(other_weights, axis=0, out=below[1:])
    own = scores[positive]
    credit = below[np.searchsorted(others, own, "left")] + below[np.searchsorted(others, own, "right")]
    ours = weights[positive]
    area: np.ndarray = np.einsum("pw,pw->w", ours, credit) / (2 * ours.sum(0) * below[-1])
    return area
