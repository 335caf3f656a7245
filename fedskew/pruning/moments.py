"""Fisher-Pearson skewness (paper, Eq. 2 and 3), and kurtosis, of norms that need not all be in memory at once."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

ROUNDING = 2 * torch.finfo(torch.float32).eps  # relative deviation of constant norms: they come from float32 sums
SKEWNESS, KURTOSIS = 3, 4  # the standardised moment that each is


@dataclass(frozen=True)
class Moments:
    """Count, mean and sums of powers of the deviations of some samples, each [..., units] (count [..., 1]).

    Attributes:
        fourth: None where no kurtosis is wanted.
    """

    count: Tensor
    mean: Tensor
    second: Tensor
    third: Tensor
    fourth: Tensor | None = None

    def merged(self, other: Moments) -> Moments:
        """The moments of both sets of samples together (Pébay 2008, Eq. 2.1 to 2.3 with p = 2, 3 and 4)."""
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
        return Moments(count, mean, second, third, self._fourth_with(other, apart, whole))

    def _fourth_with(self, other: Moments, apart: Tensor, whole: Tensor) -> Tensor | None:
        if self.fourth is None or other.fourth is None:
            return None
        n, m = self.count, other.count
        return (
            self.fourth
            + other.fourth
            + apart**4 * n * m * (n**2 - n * m + m**2) / whole**3
            + 6 * apart**2 * (n**2 * other.second + m**2 * self.second) / whole**2
            + 4 * apart * (n * other.third - m * self.third) / whole
        )

    def skewness(self, *, rounding: float = 0.0) -> Tensor:
        """g₁ = m₃ / m₂^{3/2} [..., units] with population moments, the same as `scipy.stats.skew(bias=True)`.

        Where the values are constant (to rounding) or not finite, g₁ carries no information and is NaN, as in scipy.

        Args:
            rounding: relative deviation up to which values count as constant, if more than their dtype's own.
        """
        second, third = self.second / self.count, self.third / self.count
        ratio = third / second.clamp_min(torch.finfo(self.mean.dtype).tiny) ** 1.5
        return torch.where(self._constant(second, rounding), torch.nan, ratio)

    def kurtosis(self, *, rounding: float = 0.0) -> Tensor:
        """g₂ = m₄ / m₂² − 3 [..., units], the same as `scipy.stats.kurtosis(bias=True)`: 0 for a normal distribution.

        Args:
            rounding: as of `skewness`.
        """
        assert self.fourth is not None
        second, fourth = self.second / self.count, self.fourth / self.count
        ratio = fourth / second.clamp_min(torch.finfo(self.mean.dtype).tiny) ** 2 - 3
        return torch.where(self._constant(second, rounding), torch.nan, ratio)

    def standardised(self, order: int, *, rounding: float = 0.0) -> Tensor:
        """`SKEWNESS` or `KURTOSIS`."""
        return self.skewness(rounding=rounding) if order == SKEWNESS else self.kurtosis(rounding=rounding)

    def _constant(self, variance: Tensor, rounding: float) -> Tensor:
        return variance <= (max(rounding, torch.finfo(self.mean.dtype).eps) * self.mean) ** 2


def moments(values: Tensor, valid: Tensor | None = None, *, order: int = SKEWNESS) -> Moments:
    """The moments over dim -2, up to an order.

    Args:
        values: [..., samples, units].
        valid: [..., samples, 1], False for samples to leave out.
    """
    weights = None if valid is None or bool(valid.all()) else valid.to(values.dtype)
    count = values.new_tensor([values.shape[-2]]) if weights is None else weights.sum(-2)  # [..., 1]
    mean = (values if weights is None else values * weights).sum(-2, keepdim=True) / count.unsqueeze(-1)
    centred = values - mean if weights is None else (values - mean) * weights
    squares = centred * centred
    fourth = squares.square().sum(-2) if order == KURTOSIS else None
    return Moments(count, mean.squeeze(-2), squares.sum(-2), centred.mul_(squares).sum(-2), fourth)


def sample_shape(
    values: Tensor, valid: Tensor | None = None, *, order: int = SKEWNESS, rounding: float = 0.0
) -> Tensor:
    """Skewness (or `order` KURTOSIS) over dim -2 of [..., samples, units]; arguments as of `moments` and `Moments`."""
    return moments(values, valid, order=order).standardised(order, rounding=rounding)
