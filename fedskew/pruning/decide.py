"""Decide from scores alone which units stay: rules, floors, alignment and budgets. Pure functions."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor

from fedskew.config.schema import PruneConfig
from fedskew.model import cost
from fedskew.model.architecture import Architecture, Kept
from fedskew.model.groups import SublayerKey
from fedskew.pruning.units import Bundles, Table


@dataclass(frozen=True)
class Limits:
    """What a step must leave (see `PruneConfig` for the settings)."""

    max_share: float = 1.0
    min_heads: int = 1
    min_width: int = 0
    align: int = 1


def limits_of(config: PruneConfig) -> Limits:
    """The limits that a configuration sets."""
    return Limits(config.max_share, config.min_heads, config.min_width, config.align)


@dataclass(frozen=True)
class Plan:
    """What a pruning step would remove, to be looked at before it is done.

    `remove[key]` are unit indices of the present model, ascending; `scores` are those they were chosen by; `sizes`
    says how many heads or channels a unit is, where that is more than one.
    """

    remove: Mapping[SublayerKey, tuple[int, ...]]
    scores: Mapping[SublayerKey, Tensor]
    sizes: Mapping[SublayerKey, int] = field(default_factory=dict)

    def size(self, key: SublayerKey) -> int:
        """Heads or channels in a unit of a sublayer."""
        return self.sizes.get(key, 1)

    def less(self, remove: Mapping[SublayerKey, Iterable[int]]) -> Plan:
        """A plan of the same units and scores that removes others."""
        return replace(self, remove={key: tuple(sorted(units)) for key, units in remove.items()})

    @property
    def units(self) -> int:
        """How many units would go."""
        return sum(len(indices) for indices in self.remove.values())


def unwanted(scores: Tensor, rule: str, *, share: float = 0.0, like: Tensor | None = None) -> int:
    """How many units of a sublayer a rule wants to remove.

    `sign`: those with score <= 0 or no finite score; `share`: a fixed share, rounded to the nearest (rounded down,
    three heads would never become two); `match`: as many as the sign rule would remove by the scores `like` of the
    same sublayer.
    """
    if rule == "share":
        return math.floor(share * len(scores) + 0.5 + 1e-9)
    judged = like if rule == "match" and like is not None else scores
    return int((~(judged > 0)).sum())  # `not >` also counts NaN: constant norms carry no information


def decide(
    scores: Mapping[SublayerKey, Tensor],
    table: Table,
    limits: Limits,
    *,
    rule: str = "sign",
    share: float = 0.0,
    like: Mapping[SublayerKey, Tensor] | None = None,
    quota: Mapping[SublayerKey, int] | None = None,
) -> Plan:
    """The units that go: in each sublayer the lowest scores, as many as the rule wants and the limits allow.

    Args:
        quota: how many the rule `budget` wants; of the others `unwanted` says it.
    """
    remove = {}
    for key, values in scores.items():
        wanted = quota[key] if quota else unwanted(values, rule, share=share, like=like[key] if like else None)
        remove[key] = tuple(sorted(lowest_first(values)[: allowed(wanted, table[key], limits)]))
    return Plan(remove, scores, {key: table[key].size for key in scores})


def lowest_first(scores: Tensor) -> list[int]:
    """Unit indices from the first to go to the last; a score that is not a number goes first, ties by index."""
    return torch.argsort(torch.nan_to_num(scores, nan=-torch.inf), stable=True).tolist()


def _part(share: float, units: int) -> int:
    return math.floor(share * units + 1e-9)  # 0.29 of 100 is 29


def allowed(wanted: int, units: Bundles, limits: Limits) -> int:
    """At most `wanted` units, such that the floor, the largest share and the alignment hold."""
    count = min(wanted, _part(limits.max_share, units.count))
    if units.group.numbered:
        return max(0, min(count, units.count - limits.min_heads))
    floor = min(units.count, math.ceil(limits.min_width / units.size))
    kept = max(units.count - count, floor)
    if limits.align > 1 and kept:
        step = limits.align // math.gcd(limits.align, units.size)  # bundles in a smallest aligned width
        kept = min(units.count, math.ceil(kept / step) * step)
    return units.count - kept


def apply_plan(arch: Architecture, plan: Plan) -> Architecture:
    """The architecture after a plan: which dense heads are left and how many hidden channels."""
    left: dict[SublayerKey, Kept] = {}
    for key, gone in plan.remove.items():
        kept, lost = arch.left[key], set(gone)
        if isinstance(kept, int):
            left[key] = kept - len(gone) * plan.size(key)
        else:
            left[key] = tuple(unit for position, unit in enumerate(kept) if position // plan.size(key) not in lost)
    return arch.with_left(left)


def within_budget(
    plan: Plan, arch: Architecture, table: Table, limits: Limits, *, min_parameters: float, min_macs: float
) -> Plan:
    """The part of a plan that does not go below a share of the dense parameters or MACs.

    Units go in the order of the lowest rank within their sublayer per saved MAC, over all sublayers; one that would
    cross a budget is passed over. Each sublayer still loses its lowest scores first.
    """
    if min_parameters <= 0 and min_macs <= 0:
        return plan
    dense = arch.dense()
    least = min_parameters * cost.parameters(dense), min_macs * cost.macs(dense).linear
    taken: dict[SublayerKey, list[int]] = {key: [] for key in plan.remove}
    left = [float(cost.parameters(arch)), float(cost.macs(arch).linear)]
    for key, unit, saved in _by_saving(plan, arch, table):
        if left[0] - saved[0] >= least[0] and left[1] - saved[1] >= least[1]:
            taken[key].append(unit)
            left = [left[0] - saved[0], left[1] - saved[1]]
    return trimmed(plan.less(taken), table, limits)


def trimmed(plan: Plan, table: Table, limits: Limits) -> Plan:
    """A part of some plan, less the units that must stay so that the limits (alignment) hold again."""
    remove = {}
    for key, units in plan.remove.items():
        count, chosen = allowed(len(units), table[key], limits), set(units)
        remove[key] = [unit for unit in lowest_first(plan.scores[key]) if unit in chosen][:count]
    return plan.less(remove)


def _by_saving(plan: Plan, arch: Architecture, table: Table) -> Iterable[tuple[SublayerKey, int, tuple[float, float]]]:
    """(sublayer, unit, (parameters, MACs) saved), the lowest rank within the sublayer per saved MAC first.

    Ranks, not raw scores: criteria differ in scale from sublayer to sublayer (an L1 norm grows with the width).
    """
    entries = []
    for key, units in plan.remove.items():
        each, chosen = unit_saving(arch, table[key]), set(units)
        order = [unit for unit in lowest_first(plan.scores[key]) if unit in chosen]
        for rank, unit in enumerate(order):
            last = rank + 1 == len(plan.scores[key])
            saved = unit_saving(arch, table[key], last=True) if last else each
            entries.append(((rank + 1) / len(plan.scores[key]) / max(each[1], 1.0), key, unit, saved))
    return [(key, unit, saved) for _, key, unit, saved in sorted(entries, key=lambda entry: entry[:3])]


def unit_saving(arch: Architecture, units: Bundles, *, last: bool = False) -> tuple[float, float]:
    """(parameters, linear MACs) that go with a unit of a sublayer; the last one takes what all units share along."""
    more, less = (
        arch.spec.sublayer_cost(units.group.key, count * units.size, arch.removed)
        for count in ((1, 0) if last else (2, 1))
    )
    return float(more.parameters - less.parameters), float(more.linear - less.linear)
