"""Training in one place: what `fedskew train` and `fedskew prune` set before a person sets anything.

`train` is one training whose rounds are pieces of it (the optimiser's moments go on from one to the next). `prune` is
the paper's Algorithm 1: a round is a phase, in which a fresh optimiser fine-tunes what is not frozen yet.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

Sections = Mapping[str, Mapping[str, Any]]

ONE_PLACE: Sections = {
    "data": {"clients": "partition", "partition": "pooled", "validation": 0.0},
    "train": {"warm-start-epochs": 0},
    "federation": {
        "method": "auto", "fraction": 1.0, "min-nodes": 1, "quorum": 1, "evaluate-clients": False,
        "aggregation": "mean", "server-optimiser": "none", "require-signatures": False,
    },
}  # fmt: skip
DENSE: Sections = {"train": {"moments": "averaged", "round-warmup": 0}, "prune": {"criterion": "none"}}

ONCE = 10**6  # rounds between pruning steps, so that there is one


def algorithm_1(stages: int, *, untrained: bool = False) -> dict[str, dict[str, Any]]:
    """Algorithm 1 for a model of so many stages: each is pruned, block by block, and frozen; then the rest is tuned.

    Args:
        untrained: the classifier is new, so a phase of training comes before the first cut.
    """
    first = int(untrained)
    schedule = {
        "criterion": "skewness", "rule": "sign", "order": "block", "first-round": first,
        "interval": 1 if stages > 1 else ONCE,  # for a step in round 0 alone: last-round=0 is no limit
        "steps-per-stage": 1, "last-round": first + stages - 1, "max-stage": max(stages - 1, 0), "calibrate": False,
        "freeze": stages > 1,  # of a single stage nothing but the classifier would be left to learn
        "share": 0.3, "min-parameters": 0.0, "min-macs": 0.0,
    }  # fmt: skip
    return {"train": {"moments": "fresh"}, "prune": schedule, "federation": {"rounds": first + stages}}
