"""Streaming FedAvg whose result does not depend on the order of arrival; how much a node may weigh; updates put aside.

Limits on weights and norms are told from what the nodes sent, so they must withstand the nodes that they limit. A
median of n values stays between the smallest and the largest honest one as long as fewer than n / 2 are not honest; of
an even number the *lower* middle value is taken for weights (nobody gains by claiming more), and for norms the *upper*
middle value of the *others* (nobody is set aside because a few sent next to nothing). Two nodes have no majority: there
one of them can say anything about the other.
"""

from __future__ import annotations

import shutil
import statistics
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from types import TracebackType

import numpy as np

from fedskew.federation.checks import Update

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


MAJORITY = 3  # nodes from which on one that is not honest is outnumbered


def limited_weights(examples: Mapping[str, int], ratio: float) -> dict[str, int]:
    """The weight of each node in the mean: its examples, but at most `ratio` times the (lower) median of all.

    Weights are whole numbers, as `aggregate.RunningMean` needs them, and at least 1.

    Args:
        examples: that each node says it trained on.
        ratio: 0: no limit.
    """
    if not ratio or not examples:
        return dict(examples)
    limit = max(1, int(ratio * statistics.median_low(examples.values())))
    return {node: min(count, limit) for node, count in examples.items()}


def limited_counts(counts: Mapping[str, Mapping[str, int]], ratio: float) -> dict[str, dict[str, int]]:
    """Images of each class at each node, scaled down where a node tells more than `ratio` times the median of all."""
    totals = {node: sum(told.values()) for node, told in counts.items()}
    limits = limited_weights(totals, ratio)
    return {
        node: {name: count * limits[node] // totals[node] if totals[node] else 0 for name, count in told.items()}
        for node, told in counts.items()
    }


def total_counts(told: Mapping[str, Mapping[str, int | None]], classes: Sequence[str], ratio: float) -> tuple[int, ...]:
    """Images of each class at all nodes together, limited as `limited_counts`.

    Args:
        told: node → class → images; None: suppressed, so a few. Nodes must not weigh its class as one that nobody has.
    """
    known = {
        node: {name: 1 if count is None else count for name, count in counts.items()} for node, counts in told.items()
    }
    limited = limited_counts(known, ratio).values()
    return tuple(sum(counts.get(name, 0) for counts in limited) for name in classes)


def reference_norms(norms: Mapping[str, float]) -> dict[str, float]:
    """For each node the (upper) median of the other nodes' norms: nothing that it sent itself is in it.

    With f nodes that are not honest among n > 2 f, whatever these send: an honest node's reference is at least the
    smallest norm of the honest ones, and that of one of the f at most the largest.
    """
    return {
        node: statistics.median_high(norm for other, norm in norms.items() if other != node)
        for node in norms
        if len(norms) > 1
    }


def too_large(norms: Mapping[str, float], bound: float) -> dict[str, float]:
    """Nodes whose update is larger than `bound` times the reference of `reference_norms`, with that reference."""
    references = reference_norms(norms)
    return {node: reference for node, reference in references.items() if norms[node] > bound * reference}


IN_MEMORY = 64 * 2**20  # bytes of a round's updates; what is beyond them lies on disk


class UpdateSpool:
    """Keeps the first updates in memory, the others in a temporary folder; hands them out one at a time.

    Args:
        parent: where the folder is made, if one is needed.
        in_memory: bytes that may stay in memory.
    """

    def __init__(self, parent: Path | None = None, in_memory: int = IN_MEMORY) -> None:
        self._parent, self._left = parent, in_memory
        self._folder: Path | None = None
        self._kept: list[tuple[str, dict[str, np.ndarray]]] = []  # node, its arrays; of those on disk form and type
        self._on_disk: set[int] = set()

    def __enter__(self) -> UpdateSpool:
        return self

    def __exit__(self, _: type[BaseException] | None, __: BaseException | None, ___: TracebackType | None) -> None:
        self._kept.clear()
        if self._folder:
            shutil.rmtree(self._folder, ignore_errors=True)

    def add(self, node: str, update: Update) -> None:
        """Put the arrays of an update aside."""
        size = sum(array.nbytes for array in update.arrays.values())
        if size <= self._left:
            self._left -= size
            self._kept.append((node, update.arrays))
            return
        if self._folder is None:
            self._folder = Path(tempfile.mkdtemp(prefix=".updates-", dir=self._parent))
        with self._file(len(self._kept)).open("wb") as file:
            for array in update.arrays.values():
                array.tofile(file)
        self._on_disk.add(len(self._kept))
        self._kept.append((node, {name: _without_values(array) for name, array in update.arrays.items()}))

    def items(self) -> Iterator[tuple[str, dict[str, np.ndarray]]]:
        """Node and arrays of each update, in the order of the nodes' names."""
        for index in sorted(range(len(self._kept)), key=lambda i: self._kept[i][0]):
            node, arrays = self._kept[index]
            yield node, self._read(index, arrays) if index in self._on_disk else arrays

    def _file(self, index: int) -> Path:
        assert self._folder is not None
        return self._folder / str(index)

    def _read(self, index: int, like: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        """The values of one update, tensor after tensor as they were written: half the time of an archive of arrays."""
        with self._file(index).open("rb") as file:
            return {name: np.fromfile(file, array.dtype, array.size).reshape(array.shape)
                    for name, array in like.items()}  # fmt: skip


def _without_values(array: np.ndarray) -> np.ndarray:
    """An array of the same form and type that takes no memory."""
    return np.broadcast_to(np.zeros((), array.dtype), array.shape)
