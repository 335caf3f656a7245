"""Streaming FedAvg whose result does not depend on the order in which replies arrive."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

CHUNK = 16_384  # values summed at a time: what is computed on the way stays in the processor's cache


class RunningMean:
    """Weighted mean of model updates, folded in one at a time and freed.

    The sums are kept in double-double arithmetic (Knuth's TwoSum): 16 bytes a value whatever the number of
    clients, and an error near 2⁻¹⁰⁰, so that the float32 mean is the same for every order of arrival. That is what
    makes a simulation with parallel workers repeatable bit for bit.
    """

    def __init__(self) -> None:
        self._high: dict[str, np.ndarray] = {}
        self._low: dict[str, np.ndarray] = {}
        self._weight = 0
        self.updates = 0

    def add(self, arrays: Mapping[str, np.ndarray], weight: int) -> None:
        """Fold in one update of floating-point arrays with a whole-number weight (its example count)."""
        for name, array in arrays.items():
            if name not in self._high:
                value = np.array(array, dtype=np.float64, order="C")
                value *= weight  # exact: 24 bits times an example count below 2²⁹
                self._high[name], self._low[name] = value, np.zeros_like(value)
            else:
                _add_scaled(self._high[name], self._low[name], array, weight)
        self._weight += weight
        self.updates += 1

    def result(self) -> dict[str, np.ndarray]:
        """The mean as float32 arrays; empty if nothing was folded in."""
        if not self._weight:
            return {}
        return {
            name: np.asarray((high + self._low[name]) / self._weight, dtype=np.float32)
            for name, high in self._high.items()
        }


def _add_scaled(high: np.ndarray, low: np.ndarray, array: np.ndarray, weight: int) -> None:
    """high + low += weight · array, in place."""
    highs, lows, values = high.reshape(-1), low.reshape(-1), np.ascontiguousarray(array).reshape(-1)  # views
    for start in range(0, values.size, CHUNK):
        part = slice(start, start + CHUNK)
        value = values[part].astype(np.float64)
        value *= weight
        _two_sum(highs[part], lows[part], value)


def _two_sum(high: np.ndarray, low: np.ndarray, value: np.ndarray) -> None:
    """high + low += value, in place, with the rounding error of the sum kept in `low`."""
    total = high + value
    virtual = total - high
    low += (high - (total - virtual)) + (value - virtual)
    high[...] = total
