"""Fisher-Pearson skewness (paper, Eq. 2 and 3) of norms that need not all be in memory at once."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

ROUNDING = 2 * torch.finfo(torch.float32).eps  # relative deviation of constant norms: they come from float32 sums


@dataclass(frozen=True)
class Moments:
    """Count, mean and sums of the squared and cubed deviations of some samples, each [..., units] (count [..., 1])."""

    count: Tensor
    mean: Tensor
    second: Tensor
    third: Tensor

    def merged(self, other: Moments) -> Moments:
        """The moments of both sets of samples together (Pébay 2008, Eq. 2.1 to 2.3 with p = 2 and 3)."""
        count = self.count + other.count
        whole = count.clamp_min(1)
        apart = other.mean - self.mean
        mean = self.mean + apart * other.count / whole
        second = self.second + other.second + apart**2 * self.count * other.count / whole
        third = (
            self.third
            + other.third
            + apart**3 * self.count * other.count * (self.count - other.count) / whole**2
            + 3 * apart * (self.count * other.second - other.count * self.second) / whole
        )
        return Moments(count, mean, second, third)

    def skewness(self, *, rounding: float = 0.0) -> Tensor:
        """g₁ = m₃ / m₂^{3/2} [..., units] with population moments, the same as `scipy.stats.skew(bias=True)`.

        Where the values are constant (to rounding) or not finite, g₁ carries no information and is NaN, as in scipy.

        Args:
            rounding: relative deviation up to which values count as constant, if more than their dtype's own.
        """
        second, third = self.second / self.count, self.third / self.count
        constant = second <= (max(rounding, torch.finfo(self.mean.dtype).eps) * self.mean) ** 2
        return torch.where(constant, torch.nan, third / second.clamp_min(torch.finfo(self.mean.dtype).tiny) ** 1.5)


def moments(values: Tensor, valid: Tensor | None = None) -> Moments:
    """The moments over dim -2.

    Args:
        values: [..., samples, units].
        valid: [..., samples, 1], False for samples to leave out.
    """
    weights = None if valid is None or bool(valid.all()) else valid.to(values.dtype)
    count = values.new_tensor([values.shape[-2]]) if weights is None else weights.sum(-2)  # [..., 1]
    mean = (values if weights is None else values * weights).sum(-2, keepdim=True) / count.unsqueeze(-1)
    centred = values - mean if weights is None else (values - mean) * weights
    squares = centred * centred
    return Moments(count, mean.squeeze(-2), squares.sum(-2), centred.mul_(squares).sum(-2))


def sample_skewness(values: Tensor, valid: Tensor | None = None, *, rounding: float = 0.0) -> Tensor:
    """Skewness over dim -2 of [..., samples, units]; see `moments` and `Moments.skewness` for the arguments."""
    return moments(values, valid).skewness(rounding=rounding)
