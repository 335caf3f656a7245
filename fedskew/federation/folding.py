"""From accepted updates to the new global arrays: at once while they arrive, or afterwards where all are needed."""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

import numpy as np

from fedskew.config.schema import FederationConfig
from fedskew.federation.aggregate import RunningMean
from fedskew.federation.bounds import MAJORITY, limited_weights, too_large
from fedskew.federation.checks import Update
from fedskew.federation.robust import robust_aggregate, without_effect
from fedskew.federation.spool import UpdateSpool

log = logging.getLogger("flwr.fedskew.server")


@dataclass(frozen=True)
class Folded:
    """What a round's updates came to.

    Attributes:
        arrays: the aggregate of floating-point tensors; empty if there is none.
        weights: node → what its update weighs in them; a robust aggregation weighs those that it looks at alike.
        refused: node → why its update was set aside after all.
        limited: node → the weight it got in the mean, if that is less than its examples.
        no_effect: why there is no aggregate although there are updates.
    """

    arrays: dict[str, np.ndarray]
    weights: dict[str, int] = field(default_factory=dict)
    refused: dict[str, str] = field(default_factory=dict)
    limited: dict[str, int] = field(default_factory=dict)
    no_effect: str = ""


class Folding(Protocol):
    """Collects the updates of one round."""

    def add(self, node: str, update: Update) -> None:
        """Take in one accepted update."""

    def result(self) -> Folded:
        """What they came to; once."""


def make_folding(
    config: FederationConfig, number: int, scratch: Path | None, own_norm: Callable[[], float] | None = None
) -> Folding:
    """The folding that the configuration asks for.

    Args:
        number: of the round.
        scratch: where updates are put that do not fit into memory.
        own_norm: norm of the update that the server itself would make; asked for only where two nodes differ so much
            that one of them must be set aside. None: there is none, and both are.
    """
    limits = config.weighting == "examples" and config.max_weight_ratio
    if config.aggregation == "mean" and not config.norm_bound and not limits:
        return MeanFolding(config)
    return SpooledFolding(config, number, scratch, own_norm)


class MeanFolding:
    """FedAvg without limits: each update is folded in and freed."""

    def __init__(self, config: FederationConfig) -> None:
        self._config, self._mean = config, RunningMean()
        self._weights: dict[str, int] = {}

    def add(self, node: str, update: Update) -> None:
        """See `Folding`."""
        self._weights[node] = weight = update.examples if self._config.weighting == "examples" else 1
        self._mean.add(_floats(update.arrays), weight)

    def result(self) -> Folded:
        """See `Folding`."""
        return Folded(self._mean.result(), self._weights)


class SpooledFolding:
    """Waits for all updates of a round: what one may weigh and how large it may be depends on the others.

    The mean still needs only one update in memory; Flower's robust aggregations need all of them.
    """

    def __init__(
        self,
        config: FederationConfig,
        number: int,
        scratch: Path | None,
        own_norm: Callable[[], float] | None = None,
    ) -> None:
        self._config, self._number, self._own_norm = config, number, own_norm
        self._spool = UpdateSpool(scratch)
        self._norms: dict[str, float] = {}
        self._examples: dict[str, int] = {}

    def add(self, node: str, update: Update) -> None:
        """See `Folding`."""
        self._spool.add(node, update)
        self._norms[node], self._examples[node] = update.norm, update.examples

    def result(self) -> Folded:
        """See `Folding`."""
        with self._spool as spool:
            refused = self._refused()
            examples = {node: count for node, count in self._examples.items() if node not in refused}
            if self._config.aggregation != "mean":
                return self._robust(spool, examples, refused)
            weights = self._weights(examples)
            mean = RunningMean()
            for node, arrays in spool.items():
                if node in weights:
                    mean.add(_floats(arrays), weights[node])
            equal = self._config.weighting == "equal"
            limited = {node: weight for node, weight in weights.items() if weight < examples[node] and not equal}
            return Folded(mean.result(), weights, refused, limited)

    def _robust(self, spool: UpdateSpool, examples: dict[str, int], refused: dict[str, str]) -> Folded:
        if reason := without_effect(self._config, len(examples)):
            return Folded({}, refused=refused, no_effect=reason)
        kept = {node: _floats(arrays) for node, arrays in spool.items() if node in examples}
        pairs = [(examples[node], arrays) for node, arrays in kept.items()]
        arrays = robust_aggregate(self._config, pairs, self._number)
        chosen = [node for node in kept if self._config.aggregation != "krum" or _equal(kept[node], arrays)]
        return Folded(arrays, dict.fromkeys(chosen, 1), refused)

    def _weights(self, examples: dict[str, int]) -> dict[str, int]:
        if self._config.weighting == "equal":
            return dict.fromkeys(examples, 1)
        return limited_weights(examples, self._config.max_weight_ratio)

    def _refused(self) -> dict[str, str]:
        """Nodes whose updates are too large, with the reason; the median of the others judges where there is one."""
        bound, norms = self._config.norm_bound, self._norms
        if not bound or not norms:
            return {}
        if len(norms) >= MAJORITY:
            return {
                node: f"its update has norm {norms[node]:.4g}, more than {bound:g} x the median of the other nodes' "
                f"({reference:.4g})"
                for node, reference in too_large(norms, bound).items()
            }
        if len(norms) > 1 and not too_large(norms, bound):
            return {}  # they agree
        return self._judged_by_the_server(bound)

    def _judged_by_the_server(self, bound: float) -> dict[str, str]:
        """With one node, or two that contradict each other, nobody is in the majority: the server's own step counts."""
        norms = self._norms
        if self._own_norm is None:
            return {
                node: f"its update has norm {norm:.4g}, and no other can tell whether that is too large"
                for node, norm in norms.items()
            }
        own = self._own_norm()
        log.info("round %d: updates of norms %s are compared with the server's own on open data, %.4g", self._number,
                 ", ".join(f"{norm:.4g}" for norm in norms.values()), own)  # fmt: skip
        return {
            node: f"its update has norm {norm:.4g}, more than {bound:g} x that of the server's own training on open "
            f"data ({own:.4g})"
            for node, norm in norms.items()
            if not norm <= bound * own  # also where that is no number
        }


def _equal(arrays: dict[str, np.ndarray], others: dict[str, np.ndarray]) -> bool:
    """Whether an aggregate is this update: Krum takes one and does not say whose."""
    return all(np.array_equal(array, others[name]) for name, array in arrays.items())


def _floats(arrays: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Only floating-point tensors are averaged."""
    return {name: array for name, array in arrays.items() if array.dtype.kind == "f"}
