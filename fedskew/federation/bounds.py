"""How much one node may weigh and how far its update may reach, told from what the nodes sent. Pure functions.

Both limits must withstand the nodes that they limit. A median of n values stays between the smallest and the largest
honest one as long as fewer than n / 2 are not honest; of an even number the *lower* middle value is taken for weights
(nobody gains by claiming more), and for norms the *upper* middle value of the *others* (nobody is set aside because a
few sent next to nothing). Two nodes have no majority: there one of them can say anything about the other.
"""

from __future__ import annotations

import statistics
from collections.abc import Mapping

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
