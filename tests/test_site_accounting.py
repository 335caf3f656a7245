"""What noise is worth: the accountant against formulas of its own, and the budget that stops a site."""

import builtins
import math

import numpy as np
import pytest
from scipy.optimize import brentq, minimize_scalar
from scipy.stats import norm

from fedskew.site.accounting import (
    AccountingError,
    answers_within,
    check_accountant,
    epsilon,
    noise_in_words,
    noise_multiplier,
    noise_ratio,
)

CASES = [([1.0] * 10, 1e-5), ([0.3], 1e-6), ([5.0] * 50, 1e-5), ([0.5, 2.0, 2.0, 8.0], 1e-7), ([0.01] * 3, 1e-5)]


def zcdp(multipliers):
    """ρ of Gaussian mechanisms together: Bun and Steinke (2016), propositions 1.6 and 1.7."""
    return sum(1 / (2 * multiplier**2) for multiplier in multipliers)


def by_renyi(multipliers, delta):
    """Smallest ε over the order α, by Canonne, Kamath and Steinke (2020), proposition 12."""
    rho = zcdp(multipliers)

    def at(log_order):
        order = 1 + math.exp(log_order)
        return order * rho + math.log1p(-1 / order) - math.log(delta * order) / (order - 1)

    grid = np.linspace(-12, 12, 4001)
    best = grid[np.argmin([at(value) for value in grid])]
    return minimize_scalar(at, bounds=(best - 0.1, best + 0.1), method="bounded").fun


def exact(multipliers, delta):
    """Balle and Wang (2018), theorem 8: Gaussian mechanisms compose to one with μ² = Σ 1/z²."""
    mu = math.sqrt(2 * zcdp(multipliers))

    def excess(value):
        return norm.cdf(mu / 2 - value / mu) - math.exp(value + norm.logcdf(-mu / 2 - value / mu)) - delta

    return brentq(excess, 0, 50 * mu + mu**2)


@pytest.mark.parametrize(("multipliers", "delta"), CASES)
def test_epsilon_is_that_of_the_literature(multipliers, delta):
    found = epsilon(multipliers, delta)
    assert found >= exact(multipliers, delta), "less than the truth would be a promise that is not kept"
    assert found == pytest.approx(by_renyi(multipliers, delta), rel=0.003)  # it knows a list of orders, not all
    assert found <= zcdp(multipliers) + 2 * math.sqrt(zcdp(multipliers) * math.log(1 / delta)) * 1.02


def test_a_figure_by_hand():
    """z = 1, ten answers, δ = 1e-5: ρ = 5; α = 2.6 gives 13 + ln(1.6/2.6) − ln(2.6e-5)/1.6 = 19.11, the best 19.05."""
    assert epsilon([1.0] * 10, 1e-5) == pytest.approx(19.05, abs=0.01)


def test_no_answer_costs_nothing_and_one_without_noise_everything():
    assert epsilon([], 1e-5) == 0
    assert epsilon([1.0, 0.0], 1e-5) == math.inf


@pytest.mark.parametrize(("budget", "multiplier", "most"), [(9.0, 5.0, 1000), (50.0, 2.0, 7), (0.01, 1.0, 99)])
def test_how_many_answers_a_budget_holds(budget, multiplier, most):
    held = answers_within(budget, multiplier, 1e-5, most)
    assert held == most or epsilon([multiplier] * (held + 1), 1e-5) > budget
    assert epsilon([multiplier] * held, 1e-5) <= budget


def test_two_clipped_updates_lie_twice_the_norm_apart():
    assert noise_multiplier(deviation=3.0, clipping_norm=0.5) == 3.0


def test_what_noise_means_for_a_model_of_a_size():
    """The issue's example: C = 1, ε = 0.5, δ = 1e-5, so σ = 19.4 on each of Swin-T's weights."""
    deviation = 2 * math.sqrt(2 * math.log(1.25e5)) / 0.5
    drawn = np.random.default_rng(0).normal(0, deviation, 100_000)
    assert noise_ratio(deviation, 1.0, 100_000) == pytest.approx(np.linalg.norm(drawn), rel=0.01)
    assert noise_ratio(0.5, 2.0, 10_000) == 25.0, "a norm of 50, of a clipping norm of 2"
    assert "adds up to a norm of 50, 25 times" in noise_in_words(0.5, 2.0, 10_000)
    words = noise_in_words(deviation, 1.0, 27_550_000)
    assert "on 27,550,000 weights, noise of deviation 19.4 each adds up to a norm of 1.02e+05" in words
    assert "1.02e+05 times the largest update that the policy lets out: the model learns nothing" in words
    told = [noise_in_words(deviation, 1.0, 10**4) for deviation in (0.001, 0.05, 0.1, 0.4, 0.41)]
    for text, ratio, verdict in zip(told, ("0.1", "5", "10", "40", "41"),
                                    ("where three", "where three", "training is", "training is", "the model"),
                                    strict=True):  # fmt: skip
        assert f" {ratio} times the largest update that the policy lets out: {verdict}" in text


def test_without_the_accountant_the_remedy_is_named(monkeypatch):
    imported = builtins.__import__

    def absent(name, *args, **kwargs):
        if name.startswith("dp_accounting"):
            raise ModuleNotFoundError("No module named 'dp_accounting'")
        return imported(name, *args, **kwargs)

    monkeypatch.setattr(builtins, "__import__", absent)
    with pytest.raises(AccountingError, match=r"pip install 'flwr\[dp\]'"):
        check_accountant()
