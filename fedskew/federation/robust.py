"""Flower's robust aggregations, through Flower's own code. They need all updates in memory at once."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping

import numpy as np
from flwr.app import Array, ArrayRecord, Message, MessageType, MetricRecord, RecordDict
from flwr.serverapp.strategy import FedAvg, FedMedian, FedTrimmedAvg, Krum

from fedskew.config.schema import Config, ConfigError, FederationConfig
from fedskew.federation.messages import ARRAYS, EXAMPLES, METRICS


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
            "2 x malicious-nodes + 3)"
        )


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
