"""Which nodes take part in a phase."""

from __future__ import annotations

import hashlib
import logging
import math
import time

from flwr.serverapp import Grid

from fedskew.config.schema import FederationConfig

log = logging.getLogger("flwr.fedskew.server")

POLL_SECONDS = 2.0


def connected_nodes(grid: Grid) -> dict[int, str]:
    """Node id → name of the nodes that are connected, in the order of their ids.

    A node that was registered under a name has it; simulated ones are named by their first reply.
    """
    return {
        info.node_id: info.name or f"node {info.node_id}" for info in sorted(grid.get_nodes(), key=lambda n: n.node_id)
    }


def select_nodes(grid: Grid, config: FederationConfig, fraction: float, *, seed: int, number: int) -> dict[int, str]:
    """Wait until `min-nodes` are connected, then take a fraction of them, chosen by (seed, round, node)."""
    waited = 0
    while len(nodes := connected_nodes(grid)) < config.min_nodes:
        if waited % 15 == 0:
            log.info("round %d waits for nodes: %d of at least %d are connected", number, len(nodes), config.min_nodes)
        waited += 1
        time.sleep(POLL_SECONDS)
    count = max(config.min_nodes, math.ceil(fraction * len(nodes)))
    order = sorted(nodes, key=lambda node: hashlib.sha256(f"{seed}/{number}/{nodes[node]}".encode()).digest())
    return {node: nodes[node] for node in sorted(order[:count])}
