"""From accepted updates to the new global arrays: at once while they arrive, or from disk where all are needed."""

from __future__ import annotations

from pathlib import Path
from typing import Protocol

import numpy as np

from fedskew.config.schema import FederationConfig
from fedskew.federation.aggregate import RunningMean
from fedskew.federation.checks import Update
from fedskew.federation.robust import robust_aggregate
from fedskew.federation.spool import UpdateSpool


class Folding(Protocol):
    """Collects the updates of one round."""

    def add(self, node: str, update: Update) -> None:
        """Take in one accepted update."""

    def result(self) -> tuple[dict[str, np.ndarray], dict[str, str]]:
        """The aggregate of floating-point arrays, and node → reason for updates set aside after all."""


def make_folding(config: FederationConfig, number: int, scratch: Path | None) -> Folding:
    """The folding that the configuration asks for; `scratch` is where updates are spooled if they must be."""
    if config.aggregation == "mean" and not config.norm_bound:
        return MeanFolding(config)
    return SpooledFolding(config, number, scratch)


class MeanFolding:
    """FedAvg: each update is folded in and freed; memory does not grow with the number of nodes."""

    def __init__(self, config: FederationConfig) -> None:
        self._config, self._mean = config, RunningMean()

    def add(self, node: str, update: Update) -> None:
        """See `Folding`."""
        self._mean.add(_floats(update.arrays), _weight(self._config, update.examples))

    def result(self) -> tuple[dict[str, np.ndarray], dict[str, str]]:
        """See `Folding`."""
        return self._mean.result(), {}


class SpooledFolding:
    """Waits for all updates of a round on disk: the norm bound compares with the round's median.

    The mean still needs only one update in memory; Flower's robust aggregations need all of them.
    """

    def __init__(self, config: FederationConfig, number: int, scratch: Path | None) -> None:
        self._config, self._number = config, number
        self._spool = UpdateSpool(scratch)

    def add(self, node: str, update: Update) -> None:
        """See `Folding`."""
        self._spool.add(node, update)

    def result(self) -> tuple[dict[str, np.ndarray], dict[str, str]]:
        """See `Folding`."""
        with self._spool as spool:
            bound = self._config.norm_bound * spool.median_norm() or float("inf")
            aside, mean, kept = {}, RunningMean(), []
            for node, examples, norm, arrays in spool.items():
                if norm > bound:
                    aside[node] = (
                        f"its update has norm {norm:.4g}, more than {self._config.norm_bound:g} x "
                        "the median of the round"
                    )
                elif self._config.aggregation == "mean":
                    mean.add(_floats(arrays), _weight(self._config, examples))
                else:
                    kept.append((examples, _floats(arrays)))
            if self._config.aggregation == "mean":
                return mean.result(), aside
            return (robust_aggregate(self._config, kept, self._number) if kept else {}), aside


def _weight(config: FederationConfig, examples: int) -> int:
    return examples if config.weighting == "examples" else 1


def _floats(arrays: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Only floating-point tensors are averaged."""
    return {name: array for name, array in arrays.items() if array.dtype.kind == "f"}
