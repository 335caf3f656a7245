"""Criteria: callables that give one score a unit. Higher means "keep"; the sign rule removes scores <= 0.

A new criterion is one function of an `Observation` and an entry in `CRITERIA`.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor

from fedskew.pruning.observe import Observation

Criterion = Callable[[Observation], Tensor]

READINGS = ("mean", "pool", "first", "per-window")
UNITS_AT_ONCE, IMAGES_AT_ONCE = 16, 4  # in double precision; more of them would leave the processor's cache
ROUNDING = 2 * torch.finfo(torch.float32).eps  # relative deviation of constant norms: they come from float32 sums


def sample_skewness(values: Tensor, valid: Tensor | None = None, *, rounding: float = 0.0) -> Tensor:
    """Fisher-Pearson skewness g₁ = m₃ / m₂^{3/2} with population moments (paper Eq. 2 and 3), over dim -2.

    The same as `scipy.stats.skew(bias=True)`. Where the values are constant (to rounding) or not finite, g₁ carries
    no information and is NaN, as in scipy.

    Args:
        values: [..., samples, units].
        valid: [..., samples, 1], False for samples to leave out.
        rounding: relative deviation up to which values count as constant, if more than their dtype's own.
    """
    weights = None if valid is None or bool(valid.all()) else valid.to(values.dtype)
    count = values.new_tensor([values.shape[-2]]) if weights is None else weights.sum(-2)  # [..., 1]
    mean = (values if weights is None else values * weights).sum(-2, keepdim=True) / count.unsqueeze(-1)
    centred = values - mean if weights is None else (values - mean) * weights
    squares = centred * centred
    second = squares.sum(-2) / count
    third = centred.mul_(squares).sum(-2) / count
    constant = second <= (max(rounding, torch.finfo(values.dtype).eps) * mean.squeeze(-2)) ** 2
    return torch.where(constant, torch.nan, third / second.clamp_min(torch.finfo(values.dtype).tiny) ** 1.5)


def skewness(seen: Observation, *, reading: str = "mean") -> Tensor:
    """Skewness of the activation norms of each unit [units]; NaN where the norms are constant.

    Args:
        seen: norms [images, windows, window positions, units].
        reading: how batch and windows collapse to V of Eq. 1: `mean` over both at each window position, `pool`
            (all values), `first` (first window of the first image), `per-window` (mean of the windows' skewness).
    """
    norms, valid = seen.norms, seen.valid
    measure = partial(sample_skewness, rounding=ROUNDING)
    if reading == "mean":
        total = norms.mean(0).double() * valid[..., None]  # [windows, positions, units]
        # a position that every window's padding covers does not exist
        counts = valid.sum(0)[:, None]
        return measure(total.sum(0) / counts.clamp_min(1), counts > 0).float()
    if reading == "pool":
        inside = valid.flatten()[:, None].repeat(norms.shape[0], 1)
        units = norms.flatten(0, 2).split(UNITS_AT_ONCE, -1)
        return torch.cat([measure(part.double(), inside).float() for part in units])
    if reading == "first":
        return measure(norms[0, 0].double(), valid[0][:, None]).float()
    if reading == "per-window":
        images = norms.split(IMAGES_AT_ONCE)
        each = torch.cat([measure(part.double(), valid[..., None]) for part in images])  # [B, nW, units]
        return each.flatten(0, 1).nanmean(0).float()
    raise ValueError(f"unknown reading {reading!r}, expected one of {', '.join(READINGS)}")


def skewness_reversed(seen: Observation, *, reading: str = "mean") -> Tensor:
    """Minus the skewness: the opposite of the paper's rule, for comparison."""
    return -skewness(seen, reading=reading)


def random_scores(seen: Observation, *, seed: int) -> Tensor:
    """Uniform scores in (0, 1) that depend on the seed and the sublayer alone."""
    digest = hashlib.sha256(f"{seed}/{seen.key}".encode()).digest()
    generator = torch.Generator().manual_seed(int.from_bytes(digest[:7], "big"))
    return torch.rand(seen.units, generator=generator)


def l1_norm(seen: Observation) -> Tensor:
    """Sum of the absolute weights that would go with each unit [units]: the usual magnitude criterion."""
    return torch.stack([weight.abs().sum(-1) for weight in seen.weights]).sum(0)


def make_criterion(name: str, *, reading: str, seed: int) -> Criterion:
    """The criterion of `prune.method`, bound to its settings.

    Raises:
        ValueError: unknown name.
    """
    known: dict[str, Criterion] = {
        "skewness": partial(skewness, reading=reading),
        "skewness-reversed": partial(skewness_reversed, reading=reading),
        "random": partial(random_scores, seed=seed),
        "l1-norm": l1_norm,
    }
    if name not in known:
        raise ValueError(f"unknown criterion {name!r}, expected one of {', '.join(known)}")
    return known[name]
