"""Flower's robust aggregations, through Flower's own code. They need all updates in memory at once."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

import numpy as np
from flwr.app import Array, ArrayRecord, Message, MessageType, MetricRecord, RecordDict
from flwr.serverapp.strategy import FedAvg, FedMedian, FedTrimmedAvg, Krum

from fedskew.config.schema import FederationConfig
from fedskew.federation.messages import ARRAYS, EXAMPLES, METRICS


def robust_strategy(config: FederationConfig) -> FedAvg:
    """Flower's strategy for `federation.aggregation`: `median`, `trimmed-mean` or `krum`."""
    if config.aggregation == "median":
        return FedMedian()
    if config.aggregation == "trimmed-mean":
        return FedTrimmedAvg(beta=config.trim)
    return Krum(num_malicious_nodes=config.malicious_nodes)


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
