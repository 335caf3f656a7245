"""What the noise on a site's updates is worth: ε of all that left, and whether a model can still learn through it.

An answer is a Gaussian mechanism: the update, clipped to norm C, plus noise of deviation σ on every weight. Two updates
lie at most 2·C apart, so what it hides is everything that a site's data can do to its answer, whatever the data are
(differential privacy of the whole site, not of one patient). Answers compose over rounds and runs, as Rényi
differential privacy: Mironov, "Rényi Differential Privacy" (2017), computed by Google's dp-accounting, which is
Flower's extra `dp`.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable

from fedskew.errors import FedskewError

NO_PRIVACY = "no differential privacy"
# of the Rényi divergence; dp-accounting's own list begins at 1.1, where ε in the thousands comes out 5 % too large
ORDERS = tuple(1 + 0.0101 * 1.1**step for step in range(140))
HARMLESS, LOST = 5.0, 40.0  # norm of the noise over the clipping norm, as tried in docs/deployment.md


class AccountingError(FedskewError, RuntimeError):
    """The accountant is not installed; says how to install it."""


def noise_multiplier(deviation: float, clipping_norm: float) -> float:
    """Deviation of the noise over the most that a site's data can change its clipped update, 2·C."""
    return deviation / (2 * clipping_norm)


def epsilon(multipliers: Iterable[float], delta: float) -> float:
    """ε at a δ of all answers with these noise multipliers together; infinite if one had no noise, 0 for none at all.

    Raises:
        AccountingError: dp-accounting is not installed.
    """
    counts = Counter(multipliers)
    if not counts:
        return 0.0
    if min(counts) <= 0:
        return math.inf
    try:
        from dp_accounting import dp_event, rdp  # noqa: PLC0415  # seconds; only for a site that adds noise
    except ImportError as error:
        raise AccountingError(
            f"noise cannot be accounted for without dp-accounting ({error}): pip install 'flwr[dp]'"
        ) from error
    accountant = rdp.RdpAccountant(ORDERS)
    for multiplier, count in sorted(counts.items()):
        accountant.compose(dp_event.GaussianDpEvent(multiplier), count)
    return float(accountant.get_epsilon(delta))


def answers_within(budget: float, multiplier: float, delta: float, most: int = 1_000_000) -> int:
    """How many answers with a noise multiplier a budget holds; `most` at most."""
    low, high = 0, 1
    while high <= most and epsilon([multiplier] * high, delta) <= budget:
        low, high = high, 2 * high
    high = min(high, most + 1)
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if epsilon([multiplier] * middle, delta) <= budget else (low, middle)
    return low


def check_accountant() -> None:
    """Raise `AccountingError` if ε cannot be computed here, before hours of training go into an answer."""
    epsilon([1.0], 1e-5)


def noise_ratio(deviation: float, clipping_norm: float, weights: int) -> float:
    """Norm of the noise on so many weights (σ·√d, to within a percent for thousands) over the largest update's."""
    return deviation * math.sqrt(weights) / clipping_norm


def noise_in_words(deviation: float, clipping_norm: float, weights: int) -> str:
    """What noise means for a model of a size, for the people of a site."""
    ratio = noise_ratio(deviation, clipping_norm, weights)
    if ratio > LOST:
        verdict = "the model learns nothing and is destroyed, unless many other sites outweigh this one"
    elif ratio > HARMLESS:
        verdict = "training is disturbed, unless many other sites outweigh this one"
    else:
        verdict = "where three sites tried that, it made no difference"
    return (
        f"on {weights:,} weights, noise of deviation {deviation:.3g} each adds up to a norm of "
        f"{ratio * clipping_norm:,.3g}, {ratio:,.3g} times the largest update that the policy lets out: {verdict}"
    )
