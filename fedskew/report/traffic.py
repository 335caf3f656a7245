"""How small a run made its model, and what that saved on the wire."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any


@dataclass(frozen=True)
class Traffic:
    """Bytes of each round, to and from all nodes together.

    Attributes:
        rounds: their numbers.
        sent, received: what the coordinator sent and got.
        dense: what both would have been with the dense model's weights in the same messages.
    """

    rounds: Sequence[int]
    sent: Sequence[int]
    received: Sequence[int]
    dense: Sequence[float]

    @property
    def total(self) -> int:
        """All bytes of all rounds."""
        return sum(self.sent) + sum(self.received)

    @property
    def total_dense(self) -> float:
        """The same of the dense model."""
        return sum(self.dense)


def traffic_of(records: Sequence[Mapping[str, Any]]) -> Traffic:
    """Rounds from 1 on: before them nothing travels.

    A round's messages hold the model that the round before left, in float32 like the dense one, so the dense model's
    would be as many times larger as its weights are.
    """
    rows = []
    for before, record in pairwise(records):
        both = record["bytes_down"] + record["bytes_up"]
        larger = before["dense_parameters"] / before["parameters"]
        rows.append((record["round"], record["bytes_down"], record["bytes_up"], both * larger))
    rounds, sent, received, dense = zip(*rows, strict=True) if rows else ((), (), (), ())
    return Traffic(rounds, sent, received, dense)
