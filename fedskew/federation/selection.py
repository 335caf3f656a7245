"""Which nodes take part in a phase."""

from __future__ import annotations

import hashlib
import logging
import math
import time
from collections import Counter
from collections.abc import Collection, Mapping

from flwr.serverapp import Grid

from fedskew.config.schema import FederationConfig

log = logging.getLogger("flwr.fedskew.server")

POLL_SECONDS, SETTLING_SECONDS = 1.0, 10.0


def connected_nodes(grid: Grid) -> dict[int, str]:
    """Node id → the name that it was registered under (empty in simulations), in the order of the ids."""
    return {info.node_id: info.name for info in sorted(grid.get_nodes(), key=lambda info: info.node_id)}


def told_apart(names: Mapping[int, str]) -> dict[int, str]:
    """Names of which no two are the same: one that several nodes bear gets the number of each.

    All that is known of an update (its weight, its norm, why it is set aside) is kept by name. Flower registers two
    keys under one name, as while a stolen key is replaced; then the norm of one would stand for the other.
    """
    bearers = Counter(names.values())
    return {node: name if bearers[name] == 1 else f"{name} (node {node})" for node, name in names.items()}


def public_keys(grid: Grid) -> dict[int, bytes]:
    """Node id → the public key that it was registered with, as PEM (empty in simulations)."""
    return {info.node_id: info.public_key for info in grid.get_nodes()}


def sharing_nodes(grid: Grid, config: FederationConfig, recorded: int | None) -> int:
    """How many nodes share the data: those that are connected.

    Args:
        recorded: how many did when the run began, if it is resumed. Flower's simulation adds them one by one while
            the server is at work already: they get a moment.
    """
    if recorded is None:
        return len(wait_for_nodes(grid, config, 0))
    deadline = time.monotonic() + min(SETTLING_SECONDS, config.join_deadline)
    while len(nodes := connected_nodes(grid)) < recorded and time.monotonic() < deadline:
        time.sleep(POLL_SECONDS)
    return len(nodes)


def wait_for_nodes(grid: Grid, config: FederationConfig, number: int) -> dict[int, str]:
    """The connected nodes, once there are `min-nodes` or the join deadline has passed."""
    deadline, told = time.monotonic() + config.join_deadline, 0.0
    while len(nodes := connected_nodes(grid)) < config.min_nodes and time.monotonic() < deadline:
        if time.monotonic() - told > 30:
            told = time.monotonic()
            log.info("round %d waits for nodes: %d of %d are connected", number, len(nodes), config.min_nodes)
        time.sleep(POLL_SECONDS)
    if len(nodes) < config.min_nodes:
        log.warning("round %d goes on with %d of %d nodes: the join deadline of %g s has passed", number, len(nodes),
                    config.min_nodes, config.join_deadline)  # fmt: skip
    return nodes


def select_nodes(
    nodes: dict[int, str], config: FederationConfig, fraction: float, *, seed: int, number: int
) -> dict[int, str]:
    """A fraction of the nodes (at least `min-nodes`), chosen by (seed, round, node); `only-node`, where one is set."""
    if config.only_node:
        return {node: name for node, name in nodes.items() if name == config.only_node}
    count = max(config.min_nodes, math.ceil(fraction * len(nodes)))
    order = sorted(nodes, key=lambda node: hashlib.sha256(f"{seed}/{number}/{nodes[node]}".encode()).digest())
    return {node: nodes[node] for node in sorted(order[:count])}


def missing_names(
    known: Mapping[int, str], connected: Mapping[int, str], registered: Collection[str] = ()
) -> list[str]:
    """Names of the nodes that took part before and are not there now.

    A site whose key was replaced is there under another id, and nothing is missing.

    Args:
        known: node id → name, of all that took part so far.
        connected: node id → the name that it was registered under, empty in simulations.
        registered: names that nodes of this run were registered under, also before the server was started again.
    """
    present = {name or known.get(node) for node, name in connected.items()}
    gone = {name for node, name in known.items() if node not in connected and name not in present}
    return sorted(gone | set(registered) - present)
