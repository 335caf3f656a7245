"""Criteria that look at the shape of the distribution of a unit's norms: skewness (the paper's) and kurtosis."""

from __future__ import annotations

from dataclasses import dataclass
from functools import reduce

import torch
from torch import Tensor

from fedskew.pruning.criteria.base import Fixed, Negative, Summary
from fedskew.pruning.moments import KURTOSIS, ROUNDING, SKEWNESS, Moments, moments, sample_shape
from fedskew.pruning.observe import Observation

READINGS = ("mean", "pool", "first", "per-window")
VALUES_AT_ONCE, IMAGES_AT_ONCE = 65_536, 4  # in double precision; more of them would leave the processor's cache


@dataclass(frozen=True)
class PooledNorms:
    """Moments of the norms of all images, windows and positions."""

    moments: Moments  # of [units]
    order: int

    @property
    def values(self) -> int:
        """Norms a unit."""
        return int(self.moments.count.item())

    def merged(self, other: PooledNorms) -> PooledNorms:
        """The moments of both."""
        return PooledNorms(self.moments.merged(other.moments), self.order)

    def scores(self) -> Tensor:
        """Their shape."""
        return self.moments.standardised(self.order, rounding=ROUNDING).float()


@dataclass(frozen=True)
class PositionSums:
    """Sums of the norms over images and windows at each window position: V of Eq. 1 has W² values."""

    total: Tensor  # float64 [positions, units]
    count: Tensor  # [positions, 1]; 0 where every window's padding covers a position: it does not exist
    order: int

    @property
    def values(self) -> int:
        """Window positions that exist."""
        return int((self.count > 0).sum())

    def merged(self, other: PositionSums) -> PositionSums:
        """The sums of both."""
        return PositionSums(self.total + other.total, self.count + other.count, self.order)

    def scores(self) -> Tensor:
        """The shape of the means at the positions."""
        means = self.total / self.count.clamp_min(1)
        return sample_shape(means, self.count > 0, order=self.order, rounding=ROUNDING).float()


@dataclass(frozen=True)
class WindowSums:
    """Sum of the shapes of the windows over those where it says something."""

    total: Tensor  # float64 [units]
    count: Tensor  # [units]
    values: int  # positions of the smallest window

    def merged(self, other: WindowSums) -> WindowSums:
        """The sums of both."""
        return WindowSums(self.total + other.total, self.count + other.count, min(self.values, other.values))

    def scores(self) -> Tensor:
        """The mean over the windows; NaN for a unit that no window judges."""
        return (self.total / self.count).float()


def skewness(seen: Observation, *, reading: str) -> Summary:
    """Skewness of the activation norms of each unit; NaN where the norms are constant.

    Args:
        seen: norms [images, windows, window positions, units].
        reading: how batch and windows collapse to V of Eq. 1: `mean` over both at each window position, `pool`
            (all values), `first` (first window of the first image), `per-window` (mean of the windows' skewness).
    """
    return _shape(seen, reading, SKEWNESS)


def skewness_reversed(seen: Observation, *, reading: str) -> Summary:
    """Minus the skewness: the opposite of the paper's rule, for comparison."""
    return Negative(skewness(seen, reading=reading))


def kurtosis(seen: Observation, *, reading: str) -> Summary:
    """Excess kurtosis of the norms instead of their skewness: 0 as of a normal distribution; arguments as there."""
    return _shape(seen, reading, KURTOSIS)


def _shape(seen: Observation, reading: str, order: int) -> Summary:
    norms, valid = seen.norms, seen.valid
    if reading == "mean":
        total = norms.sum(0).double() * valid[..., None]  # [windows, positions, units]
        return PositionSums(total.sum(0), valid.sum(0)[:, None] * len(norms), order)
    if reading == "pool":
        pooled = norms.flatten(0, 2) if bool(valid.all()) else norms[:, valid].flatten(0, 1)  # [samples, units]
        rows = max(1, VALUES_AT_ONCE // norms.shape[-1]) if norms.device.type == "cpu" else len(pooled)
        parts = (moments(part.double(), order=order) for part in pooled.split(rows))
        return PooledNorms(reduce(Moments.merged, parts), order)
    if reading == "first":
        first = sample_shape(norms[0, 0].double(), valid[0][:, None], order=order, rounding=ROUNDING)
        return Fixed(first.float(), int(valid[0].sum()))
    if reading == "per-window":
        each = torch.cat(
            [
                sample_shape(part.double(), valid[..., None], order=order, rounding=ROUNDING)
                for part in norms.split(IMAGES_AT_ONCE)
            ]
        ).flatten(0, 1)  # [images · windows, units]
        return WindowSums(each.nansum(0), (~each.isnan()).sum(0), int(valid.sum(1).min()))
    raise ValueError(f"unknown reading {reading!r}, expected one of {', '.join(READINGS)}")
