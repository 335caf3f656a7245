"""From accepted updates to the new global arrays: at once while they arrive, or afterwards where all are needed."""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

import numpy as np
from flwr.app import Array, ArrayRecord, Message, MessageType, MetricRecord, RecordDict
from flwr.serverapp.strategy import FedAvg, FedMedian, FedTrimmedAvg, Krum

from fedskew.config.schema import Config, ConfigError, FederationConfig
from fedskew.federation.aggregate import MAJORITY, RunningMean, UpdateSpool, limited_weights, too_large
from fedskew.federation.checks import Update
from fedskew.federation.messages import ARRAYS, EXAMPLES, METRICS

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


# Flower's robust aggregations, through its own code: they need all updates in memory at once.


def robust_strategy(config: FederationConfig) -> FedAvg:
    """Flower's strategy for `federation.aggregation`: `median`, `trimmed-mean` or `krum`."""
    if config.aggregation == "median":
        return FedMedian()
    if config.aggregation == "trimmed-mean":
        return FedTrimmedAvg(beta=config.trim)
    return Krum(num_malicious_nodes=config.malicious_nodes)


def least_updates(config: FederationConfig) -> int:
    """How many updates `federation.aggregation` needs to withstand one bad node; 1 for the mean, which never does.

    The median of two is their mean. A trimmed mean cuts off `int(trim x n)` at each end. Krum's proof needs
    n >= 2 f + 3 (Blanchard et al., Machine learning with adversaries, NeurIPS 2017).

    Raises:
        ConfigError: no number of updates would do.
    """
    if config.aggregation == "mean":
        return 1
    if config.aggregation == "median":
        return 3
    if config.aggregation == "krum":
        if not config.malicious_nodes:
            raise ConfigError(
                "federation.aggregation is krum and federation.malicious-nodes is 0: it would withstand nobody; say "
                "how many bad nodes it is to withstand"
            )
        return 2 * config.malicious_nodes + 3
    if not config.trim:
        raise ConfigError(
            "federation.aggregation is trimmed-mean and federation.trim is 0: it would cut off nobody; raise it"
        )
    # the first number at which Flower's own rounding cuts somebody off
    return next(n for n in range(math.floor(1 / config.trim), math.ceil(1 / config.trim) + 2) if int(config.trim * n))


def without_effect(config: FederationConfig, updates: int) -> str:
    """Why `federation.aggregation` protects from nobody with so many updates; empty if it protects."""
    least = least_updates(config)
    if updates >= least:
        return ""
    known = {"trimmed-mean": f" with federation.trim={config.trim:g}",
             "krum": f" with federation.malicious-nodes={config.malicious_nodes}"}  # fmt: skip
    return (
        f"federation.aggregation={config.aggregation}{known.get(config.aggregation, '')} needs {least} updates to "
        f"withstand a bad node, and there are {updates}"
    )


def check_effect(config: Config, nodes: int | None) -> None:
    """Refuse at the start a robust aggregation that would protect from nobody.

    Args:
        nodes: that share the data and so are all there are; None where each has its own: then `min-nodes` counts.

    Raises:
        ConfigError: what is lacking, and the remedies.
    """
    federation = config.federation
    if federation.aggregation == "mean":
        return
    there = federation.min_nodes
    if nodes is not None:
        there = min(nodes, max(there, math.ceil(federation.fraction * nodes)))
    if reason := without_effect(federation, there):
        way = "connect more nodes" if nodes is not None else "set federation.min-nodes to the number of your sites"
        raise ConfigError(
            f"{reason} a round: {way}, or take another aggregation (median needs 3, trimmed-mean 1 / trim, krum "
            "2 x malicious-nodes + 3; federation.aggregation=mean needs one and withstands none)"
        )


def warn_of_hostile_sites(config: Config) -> None:
    """One line of the log about what one hostile site can do under these settings, where sites have their own data."""
    federation = config.federation
    if config.data.clients != "own":
        return
    if federation.aggregation == "mean":
        limit = federation.norm_bound
        bound = f"within federation.norm-bound={limit:g}" if limit else "by any distance"
        log.warning("federation.aggregation=mean: one patient hostile site can lead the model astray, %s; "
                    "federation.aggregation=median limits it to what honest sites do, from 3 sites on "
                    "(docs/security.md)", bound)  # fmt: skip
    else:
        log.info("federation.aggregation=%s: one hostile site is outvoted; a round with fewer than %d good answers "
                 "does not count", federation.aggregation, least_updates(federation))  # fmt: skip


def robust_aggregate(
    config: FederationConfig, updates: Iterable[tuple[int, dict[str, np.ndarray]]], number: int
) -> dict[str, np.ndarray]:
    """The robust aggregate of (examples, arrays) pairs as float32 arrays.

    The order of the pairs should not depend on arrival, so that ties are broken the same way in every run.
    """
    messages = [as_message(examples, arrays) for examples, arrays in updates]
    record, _ = robust_strategy(config).aggregate_train(number, messages)
    return {name: array.numpy().astype(np.float32) for name, array in (record or {}).items()}


def as_message(examples: int, arrays: Mapping[str, np.ndarray]) -> Message:
    """Arrays as a node's reply, which is what Flower's strategies aggregate."""
    content = RecordDict(
        {
            ARRAYS: ArrayRecord({name: Array(np.ascontiguousarray(array)) for name, array in arrays.items()}),
            METRICS: MetricRecord({EXAMPLES: examples}),
        }
    )
    return Message(content, dst_node_id=1, message_type=MessageType.TRAIN)
