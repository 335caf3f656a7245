"""Paired differences between models on the same test images, with 95 % bootstrap intervals over lesions.

    paired_over_seeds(dense, pruned, "balanced_accuracy")   # one `Predictions` a seed on both sides, in the same order

Two models that are asked about the same images share most of their luck, so the difference is resampled, not each
score (Efron and Tibshirani, An Introduction to the Bootstrap, 1993; percentile intervals). See `resampling` for how
lesions are drawn.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from fedskew.console import counted
from fedskew.errors import FedskewError
from fedskew.metrics.predictions import Predictions
from fedskew.metrics.resampling import DRAWS, SEED, lesion_draws, weighted_metrics

LEVEL = 0.95


class PairingError(FedskewError, ValueError):
    """Predictions that cannot be compared in pairs; the message says what differs."""


@dataclass(frozen=True)
class Difference:
    """Second minus first in one metric, with its 95 % intervals.

    Attributes:
        metric: `accuracy`, `balanced_accuracy`, `f1_macro`, `auroc_macro`, `recall.<class>` or `auroc.<class>`.
        first: the metric of the first, mean over seeds.
        second: the metric of the second, mean over seeds.
        mean: second minus first on the test set as it is, mean over seeds.
        low, high: interval over lesions: these trained models, another test set of the same kind.
        per_seed: the difference of each seed, in the order given.
        seeds_low, seeds_high: interval over lesions and seeds: another test set and other seeds. None with one seed.
    """

    metric: str
    first: float
    second: float
    mean: float
    low: float
    high: float
    per_seed: tuple[float, ...]
    seeds_low: float | None = None
    seeds_high: float | None = None

    @property
    def seen(self) -> bool:
        """Whether there is a difference: the interval over lesions does not hold 0."""
        return not self.low <= 0 <= self.high


def paired_over_seeds(
    first: Sequence[Predictions], second: Sequence[Predictions], metric: str, *, draws: int = DRAWS, seed: int = SEED
) -> Difference | None:
    """One metric of `paired_differences`; None if it is not defined here (a class without test images).

    Raises:
        PairingError: as `paired_differences`, or the metric is unknown.
    """
    found = paired_differences(first, second, [metric], draws=draws, seed=seed)
    return found.get(metric)


def paired_differences(
    first: Sequence[Predictions],
    second: Sequence[Predictions],
    metrics: Sequence[str] | None = None,
    *,
    draws: int = DRAWS,
    seed: int = SEED,
) -> dict[str, Difference]:
    """Second minus first, mean over seeds, for each metric that is defined on this test set.

    Every draw of lesions is applied to both sides and to all seeds: they share the test set. For the interval over
    lesions and seeds, pairs of seeds are drawn with replacement in every draw too; the deviations from the mean are
    enlarged by √(n/(n−1)), because the bootstrap's variance of n values is (n−1)/n of the unbiased one. With three
    seeds that interval is still a rough one: look at `per_seed` too.

    Args:
        first: predictions of one side, one a seed.
        second: of the other side, the same seeds in the same order.
        metrics: names (see `Difference.metric`); all if None.
        draws: resamples.
        seed: of the resamples, so that the same predictions give the same interval.

    Raises:
        PairingError: the sides do not have one prediction a seed each, an unknown metric, or the images, lesions,
            labels or classes are not the same everywhere.
    """
    _check(first, second, metrics)
    one = first[0]
    weights = lesion_draws(one.lesions, one.labels, draws=draws, seed=seed)  # [N, 1 + draws]
    both = counted([*first, *second], 2 * len(first), "models resampled")
    values = [weighted_metrics(one.labels, p.probabilities, one.classes, weights, metrics) for p in both]
    sides = values[: len(first)], values[len(first) :]
    seeds = np.random.default_rng(seed + 1).integers(0, len(first), (draws, len(first)))  # [draws, seeds]
    return {
        name: _difference(name, seeds, *(np.stack([value[name] for value in side]) for side in sides))
        for name in values[0]
    }


def _difference(name: str, seeds: np.ndarray, first: np.ndarray, second: np.ndarray) -> Difference:
    """From the metric of every seed in every draw [seeds, 1 + draws], the first column being the test set as it is."""
    gap = second - first
    count, drawn = len(gap), gap[:, 1:]
    low, high = _interval(drawn.mean(0))
    both: tuple[float | None, float | None] = (None, None)
    if count > 1:
        resampled = drawn[seeds, np.arange(drawn.shape[1])[:, None]].mean(1)  # [draws]
        centre = drawn.mean(0)
        both = _interval(centre + np.sqrt(count / (count - 1)) * (resampled - centre))
    return Difference(
        name, float(first[:, 0].mean()), float(second[:, 0].mean()), float(gap[:, 0].mean()), low, high,
        tuple(float(value) for value in gap[:, 0]), *both,
    )  # fmt: skip


def _interval(values: np.ndarray) -> tuple[float, float]:
    low, high = np.quantile(values, [(1 - LEVEL) / 2, (1 + LEVEL) / 2])
    return round(float(low), 12), round(float(high), 12)  # sums that cancel leave 1e-17, which is no difference


def _check(first: Sequence[Predictions], second: Sequence[Predictions], metrics: Sequence[str] | None) -> None:
    if not first or len(first) != len(second):
        raise PairingError(f"{len(first)} and {len(second)} predictions: each side needs one for each of the seeds")
    one = first[0]
    if not len(one.images):
        raise PairingError("there are no test images to compare on")
    for other in [*first[1:], *second]:
        if one.classes != other.classes:
            raise PairingError(f"classes differ: {', '.join(one.classes)} against {', '.join(other.classes)}")
        for what in ("images", "lesions", "labels"):
            if not np.array_equal(getattr(one, what), getattr(other, what)):
                raise PairingError(f"the test sets differ in their {what}: there are no pairs to compare")
    known = {"accuracy", "balanced_accuracy", "f1_macro", "auroc_macro"}
    known |= {f"{kind}.{name}" for kind in ("recall", "auroc") for name in one.classes}
    if unknown := sorted(set(metrics or ()) - known):
        raise PairingError(f"unknown metric {unknown[0]!r}; there are {', '.join(sorted(known))}")
