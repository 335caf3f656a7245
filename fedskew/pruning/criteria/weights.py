"""Criteria that look at weights alone, and the one that looks at nothing."""

from __future__ import annotations

import hashlib

import torch
from torch import Tensor

from fedskew.pruning.criteria.base import Fixed, Summary
from fedskew.pruning.observe import Observation

EQUAL = 1e-6  # of the boundary: sums of float32 weights that lie on it are not told apart from it


def random_scores(seen: Observation, *, seed: int) -> Summary:
    """Uniform scores in (0, 1) that depend on the seed and the sublayer alone."""
    digest = hashlib.sha256(f"{seed}/{seen.key!r}".encode()).digest()
    generator = torch.Generator().manual_seed(int.from_bytes(digest[:7], "big"))
    return Fixed(torch.rand(seen.units, generator=generator))


def l1_norm(seen: Observation) -> Summary:
    """Sum of the absolute weights that would go with each unit: the usual magnitude criterion."""
    return Fixed(absolute_sums(seen))


def l2_norm(seen: Observation) -> Summary:
    """Euclidean length of all weights that would go with each unit."""
    return Fixed(torch.stack([weight.square().sum(-1) for weight in seen.weights]).sum(0).sqrt())


def automatic(seen: Observation, *, boundary: float) -> Summary:
    """How far inside the band |s − μ| ≤ c·σ each unit lies, in deviations: c − |s − μ| / σ, or c where σ is 0.

    s are the sums of `l1_norm`, μ and σ their mean and population deviation in the sublayer; units with very small and
    with very large sums go (Nguyen, Le and Avila, Automatic Structured Pruning for Efficient Architecture in Federated
    Learning, 2024, Algorithm 1). A unit on the boundary stays, so its score is just above 0. Of n units none lies
    outside where n ≤ c² + 1 (Samuelson's inequality), and at most n / c² ever (Chebyshev's).

    Args:
        boundary: c.
    """
    sums = absolute_sums(seen).double()
    deviation = sums.std(correction=0)
    if not deviation > torch.finfo(torch.float32).eps * sums.mean():
        return Fixed(torch.full_like(sums, boundary).float())
    inside = boundary - (sums - sums.mean()).abs() / deviation
    on_it = inside.abs() <= EQUAL * boundary
    return Fixed(torch.where(on_it, EQUAL * boundary, inside).float())


def absolute_sums(seen: Observation) -> Tensor:
    """Σ|w| of the weights of each unit [units]."""
    return torch.stack([weight.abs().sum(-1) for weight in seen.weights]).sum(0)
