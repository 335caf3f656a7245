"""Criteria that look at what a unit does: how strong its activations are, where they lie, what the loss makes of it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from fedskew.pruning.criteria.base import Ratio, Summary
from fedskew.pruning.norms import to_picture
from fedskew.pruning.observe import Observation


def activation_norm(seen: Observation) -> Summary:
    """Mean of the activation norms of each unit over all images and positions."""
    total = (seen.norms.sum(0).double() * seen.valid[..., None]).sum((0, 1))  # [units]
    return Ratio(total, torch.full_like(total, len(seen.norms) * int(seen.valid.sum())))


def lesion_attention(seen: Observation) -> Summary:
    """Share of the activation norms of each unit that lies inside the lesions; for studies, as no run has masks."""
    assert seen.masks is not None
    assert seen.probe is not None
    norms = to_picture(seen.norms, seen.probe)  # [images, side, side, units]
    inside = nn.functional.adaptive_avg_pool2d(seen.masks[:, None], seen.probe.side)[:, 0]  # [images, side, side]
    return Ratio((norms * inside[..., None]).double().sum((0, 1, 2)), norms.double().sum((0, 1, 2)))


@dataclass(frozen=True)
class LossGradients:
    """Weights of each unit, and the gradients by them of the loss summed over some images."""

    weights: Sequence[Tensor]  # each [units, values]
    gradients: Sequence[Tensor]  # of the same shapes
    images: int
    values: None = None

    def merged(self, other: LossGradients) -> LossGradients:
        """The gradients of the loss summed over both."""
        total = [a + b for a, b in zip(self.gradients, other.gradients, strict=True)]
        return LossGradients(self.weights, total, self.images + other.images)

    def scores(self) -> Tensor:
        """Σ|w·g|, g being the gradient of the mean loss."""
        pairs = zip(self.weights, self.gradients, strict=True)
        return torch.stack([(weight * gradient).abs().sum(-1) for weight, gradient in pairs]).sum(0) / self.images


def taylor(seen: Observation) -> Summary:
    """Σ|w·g| over the weights that would go with a unit: what the loss would change by, to first order, each alone.

    g is the gradient of the mean cross entropy of all scoring images (and views): gradients are summed over chunks of
    images before their absolute value is taken, so the score does not depend on how many go through the model together
    (Molchanov et al., Importance Estimation for Neural Network Pruning, 2019, Eq. 8, with |·| in place of the square).
    """
    assert seen.gradients is not None
    return LossGradients(seen.weights, seen.gradients, len(seen.norms))
