"""Criteria: what is kept of a look at a sublayer, and the one score a unit that it gives. Higher means "keep".

A new criterion is one function from an `Observation` to a `Summary` and a name (`register_criterion`). Summaries of
different images can be merged, so that the scoring images need not be in memory together, and so that the scores of
two halves of them (are the signs more than noise?) come from the same forward pass as those of all.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial, reduce
from typing import Protocol, Self

import torch
from torch import Tensor

from fedskew.config import registry
from fedskew.pruning.observe import Observation
from fedskew.pruning.skewness import ROUNDING, Moments, moments, sample_skewness

READINGS = ("mean", "pool", "first", "per-window")
VALUES_AT_ONCE, IMAGES_AT_ONCE = 65_536, 4  # in double precision; more of them would leave the processor's cache


class Summary(Protocol):
    """What a criterion keeps of one sublayer for some images.

    `values` is the size of the smallest sample that a skewness is taken over; None if the scores do not come from
    activations, so that other images would give the same ones.
    """

    @property
    def values(self) -> int | None:
        """See above."""
        ...

    def merged(self, other: Self) -> Self:
        """The summary of the images of both."""
        ...

    def scores(self) -> Tensor:
        """One float32 score a unit [units]; NaN where there is nothing to judge by."""
        ...


Criterion = Callable[[Observation], Summary]


@dataclass(frozen=True)
class CriterionSettings:
    """What of `prune.*` and the run a criterion may depend on.

    Attributes:
        reading: how batch and windows collapse, one of `READINGS`.
        seed: for what is drawn at random; another in every round.
    """

    reading: str
    seed: int


CriterionFactory = Callable[[CriterionSettings], Criterion]
CRITERIA: registry.Registry[CriterionFactory] = registry.CRITERIA  # see `config.registry` for whose state this is
register_criterion = CRITERIA.register  # decorator: `prune.criterion=NAME` is what this makes of its settings


@dataclass(frozen=True)
class Fixed:
    """Scores that further images do not change."""

    given: Tensor  # [units]
    values: int | None = None

    def merged(self, other: Fixed) -> Fixed:
        """The first of the two."""
        return self

    def scores(self) -> Tensor:
        """As given."""
        return self.given


@dataclass(frozen=True)
class PooledNorms:
    """Moments of the norms of all images, windows and positions."""

    moments: Moments  # of [units]

    @property
    def values(self) -> int:
        """Norms a unit."""
        return int(self.moments.count.item())

    def merged(self, other: PooledNorms) -> PooledNorms:
        """The moments of both."""
        return PooledNorms(self.moments.merged(other.moments))

    def scores(self) -> Tensor:
        """Their skewness."""
        return self.moments.skewness(rounding=ROUNDING).float()


@dataclass(frozen=True)
class PositionSums:
    """Sums of the norms over images and windows at each window position: V of Eq. 1 has W² values."""

    total: Tensor  # float64 [positions, units]
    count: Tensor  # [positions, 1]; 0 where every window's padding covers a position: it does not exist

    @property
    def values(self) -> int:
        """Window positions that exist."""
        return int((self.count > 0).sum())

    def merged(self, other: PositionSums) -> PositionSums:
        """The sums of both."""
        return PositionSums(self.total + other.total, self.count + other.count)

    def scores(self) -> Tensor:
        """The skewness of the means at the positions."""
        return sample_skewness(self.total / self.count.clamp_min(1), self.count > 0, rounding=ROUNDING).float()


@dataclass(frozen=True)
class WindowSums:
    """Sum of the windows' own skewness over those windows where it says something."""

    total: Tensor  # float64 [units]
    count: Tensor  # [units]
    values: int  # positions of the smallest window

    def merged(self, other: WindowSums) -> WindowSums:
        """The sums of both."""
        return WindowSums(self.total + other.total, self.count + other.count, min(self.values, other.values))

    def scores(self) -> Tensor:
        """The mean of the windows' skewness; NaN for a unit that no window judges."""
        return (self.total / self.count).float()


@dataclass(frozen=True)
class Negative:
    """The opposite of other scores."""

    inner: Summary

    @property
    def values(self) -> int | None:
        """Of the other summary."""
        return self.inner.values

    def merged(self, other: Negative) -> Negative:
        """The opposite of the merged ones."""
        return Negative(self.inner.merged(other.inner))

    def scores(self) -> Tensor:
        """Minus the scores."""
        return -self.inner.scores()


def skewness(seen: Observation, *, reading: str) -> Summary:
    """Skewness of the activation norms of each unit; NaN where the norms are constant.

    Args:
        seen: norms [images, windows, window positions, units].
        reading: how batch and windows collapse to V of Eq. 1: `mean` over both at each window position, `pool`
            (all values), `first` (first window of the first image), `per-window` (mean of the windows' skewness).
    """
    norms, valid = seen.norms, seen.valid
    if reading == "mean":
        total = norms.sum(0).double() * valid[..., None]  # [windows, positions, units]
        return PositionSums(total.sum(0), valid.sum(0)[:, None] * len(norms))
    if reading == "pool":
        pooled = norms.flatten(0, 2) if bool(valid.all()) else norms[:, valid].flatten(0, 1)  # [samples, units]
        rows = max(1, VALUES_AT_ONCE // norms.shape[-1]) if norms.device.type == "cpu" else len(pooled)
        return PooledNorms(reduce(Moments.merged, (moments(part.double()) for part in pooled.split(rows))))
    if reading == "first":
        first = sample_skewness(norms[0, 0].double(), valid[0][:, None], rounding=ROUNDING)
        return Fixed(first.float(), int(valid[0].sum()))
    if reading == "per-window":
        images = norms.split(IMAGES_AT_ONCE)
        each = torch.cat([sample_skewness(part.double(), valid[..., None], rounding=ROUNDING) for part in images])
        each = each.flatten(0, 1)  # [images · windows, units]
        return WindowSums(each.nansum(0), (~each.isnan()).sum(0), int(valid.sum(1).min()))
    raise ValueError(f"unknown reading {reading!r}, expected one of {', '.join(READINGS)}")


def skewness_reversed(seen: Observation, *, reading: str) -> Summary:
    """Minus the skewness: the opposite of the paper's rule, for comparison."""
    return Negative(skewness(seen, reading=reading))


def random_scores(seen: Observation, *, seed: int) -> Summary:
    """Uniform scores in (0, 1) that depend on the seed and the sublayer alone."""
    digest = hashlib.sha256(f"{seed}/{seen.key!r}".encode()).digest()
    generator = torch.Generator().manual_seed(int.from_bytes(digest[:7], "big"))
    return Fixed(torch.rand(seen.units, generator=generator))


def l1_norm(seen: Observation) -> Summary:
    """Sum of the absolute weights that would go with each unit: the usual magnitude criterion."""
    return Fixed(torch.stack([weight.abs().sum(-1) for weight in seen.weights]).sum(0))


CRITERIA.add("skewness", lambda settings: partial(skewness, reading=settings.reading))
CRITERIA.add("skewness-reversed", lambda settings: partial(skewness_reversed, reading=settings.reading))
CRITERIA.add("random", lambda settings: partial(random_scores, seed=settings.seed))
CRITERIA.add("l1-norm", lambda settings: l1_norm)


def make_criterion(name: str, *, reading: str, seed: int) -> Criterion:
    """The criterion of `prune.criterion`, bound to its settings.

    Raises:
        ConfigError: unknown name.
    """
    return CRITERIA.find(name)(CriterionSettings(reading, seed))
