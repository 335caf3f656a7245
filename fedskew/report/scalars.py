"""The numbers of a round that a curve can be drawn of."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

# about single sites, which a sink's readers need not know; and what is no measure
LEFT_OUT = (
    "round",
    "participation",
    "weights",
    "nodes",
    "norms",
    "class_counts",
    "limited",
    "failed",
    "notes",
    "audit",
)


def scalars(metrics: Mapping[str, Any]) -> dict[str, float]:
    """The numbers of a round's record by name, those of classes as `recall/mel`; no sites, no reasons."""
    found: dict[str, float] = {}
    for key, value in metrics.items():
        if key in LEFT_OUT:
            continue
        named = isinstance(value, Mapping)
        parts = {f"{key}/{name}": inner for name, inner in value.items()} if named else {key: value}
        found |= {name: float(number) for name, number in parts.items()
                  if isinstance(number, int | float) and not isinstance(number, bool)}  # fmt: skip
    return found
