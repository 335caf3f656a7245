"""Do two halves of the scoring images judge the units alike? If not, the sign rule prunes by chance."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from torch import Tensor

from fedskew.model.groups import SublayerKey


@dataclass(frozen=True)
class SignTable:
    """How many units two judgements keep (score > 0): both, only the first, only the second, neither."""

    both: int = 0
    first: int = 0
    second: int = 0
    neither: int = 0

    @classmethod
    def of(cls, first: Tensor, second: Tensor) -> SignTable:
        """From two scores of the same units [units]; NaN is not kept, as in the sign rule."""
        a, b = first > 0, second > 0
        return cls(int((a & b).sum()), int((a & ~b).sum()), int((~a & b).sum()), int((~a & ~b).sum()))

    def __add__(self, other: SignTable) -> SignTable:
        return SignTable(
            self.both + other.both, self.first + other.first, self.second + other.second, self.neither + other.neither
        )

    @property
    def units(self) -> int:
        """How many were judged."""
        return self.both + self.first + self.second + self.neither

    @property
    def share(self) -> float:
        """Share of the units that both judge alike."""
        return (self.both + self.neither) / self.units

    @property
    def chance(self) -> float:
        """The share that two independent judgements would reach which keep as many units as these."""
        first, second = (self.both + self.first) / self.units, (self.both + self.second) / self.units
        return first * second + (1 - first) * (1 - second)

    @property
    def kappa(self) -> float | None:
        """Cohen's κ = (share − chance) / (1 − chance): 1 is full agreement, 0 is chance.

        None if both keep everything, or both nothing: then nothing is told apart.
        """
        return None if self.chance == 1 else (self.share - self.chance) / (1 - self.chance)


def by_stage_and_kind(tables: Mapping[SublayerKey, SignTable]) -> dict[tuple[int, str], SignTable]:
    """The tables of a stage's attentions, and of its MLPs, added up; in ascending order."""
    found: dict[tuple[int, str], SignTable] = {}
    for key in sorted(tables):
        found[key.stage, key.kind] = found.get((key.stage, key.kind), SignTable()) + tables[key]
    return found
