"""How good a model is, with 95 % bootstrap intervals over lesions: of all test images, and of each group of people."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass, replace

import numpy as np

from fedskew.console import counted
from fedskew.data.groups import group_place
from fedskew.metrics.paired import LEVEL
from fedskew.metrics.predictions import Predictions
from fedskew.metrics.resampling import DRAWS, SEED, lesion_draws, weighted_metrics

OF_GROUPS = ("accuracy", "balanced_accuracy")
GROUP_DRAWS = 1000  # a dozen groups take as long as all images do


@dataclass(frozen=True)
class Estimate:
    """A metric on the test set as it is, with its interval: this model, another test set of the same kind."""

    value: float
    low: float
    high: float


@dataclass(frozen=True)
class GroupResult:
    """What a model is worth to one group.

    Attributes:
        kind: `site`, `sex` or `age`.
        name: of the group.
        images, lesions: that its figures come from.
        classes: how many classes these show: balanced accuracy is the mean over them alone.
        metrics: those of `OF_GROUPS`.
    """

    kind: str
    name: str
    images: int
    lesions: int
    classes: int
    metrics: Mapping[str, Estimate]


def estimates(
    predictions: Predictions, metrics: Collection[str] | None = None, *, draws: int = DRAWS, seed: int = SEED
) -> dict[str, Estimate]:
    """The metrics of `weighted_metrics` with percentile intervals over lesions (see `resampling`).

    Args:
        metrics: names of those that are wanted; all if None.
        draws, seed: of the bootstrap.
    """
    if not len(predictions.images):
        return {}
    weights = lesion_draws(predictions.lesions, predictions.labels, draws=draws, seed=seed)  # [N, 1 + draws]
    found = weighted_metrics(predictions.labels, predictions.probabilities, predictions.classes, weights, metrics)
    ends = ((1 - LEVEL) / 2, (1 + LEVEL) / 2)
    return {name: Estimate(float(of[0]), *(float(end) for end in np.quantile(of[1:], ends)))
            for name, of in found.items()}  # fmt: skip


def by_group(predictions: Predictions, *, draws: int = GROUP_DRAWS, seed: int = SEED) -> list[GroupResult]:
    """Every group that any image belongs to, kinds in the order of `predictions.groups`, names in `group_place`'s.

    Lesions are drawn within each group, so that a group's interval says how few lesions it has.
    """
    rows = []
    pairs = [(kind, name) for kind, column in predictions.groups.items()
             for name in sorted(set(column.tolist()), key=group_place)]  # fmt: skip
    for kind, name in counted(pairs, len(pairs), "groups of people rated"):
        part = subset(predictions, predictions.groups[kind] == name)
        rows.append(GroupResult(
            kind, name, len(part.images), len(np.unique(part.lesions)), len(np.unique(part.labels)),
            estimates(part, OF_GROUPS, draws=draws, seed=seed),
        ))  # fmt: skip
    return rows


def subset(predictions: Predictions, chosen: np.ndarray) -> Predictions:
    """The predictions of some images: `chosen` is bool [N]."""
    return replace(
        predictions,
        images=predictions.images[chosen],
        lesions=predictions.lesions[chosen],
        labels=predictions.labels[chosen],
        probabilities=predictions.probabilities[chosen],
        groups={name: column[chosen] for name, column in predictions.groups.items()},
    )
