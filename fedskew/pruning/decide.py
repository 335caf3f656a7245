"""Decide from scores alone which units stay: rules, floors, alignment and budgets. Pure functions."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from fedskew.architecture import Architecture, BlockShape
from fedskew.model import cost
from fedskew.pruning.units import ATTENTION, SublayerKey, group_size


@dataclass(frozen=True)
class Limits:
    """What a step must leave (see `PruneConfig` for the settings)."""

    max_share: float = 1.0
    min_heads: int = 1
    min_width: int = 0
    align: int = 1
    group: str = "ratio"


@dataclass(frozen=True)
class Plan:
    """What a pruning step would remove, to be looked at before it is done.

    `remove[key]` are unit indices of the present model, ascending; `scores` are those they were chosen by.
    """

    remove: Mapping[SublayerKey, tuple[int, ...]]
    scores: Mapping[SublayerKey, Tensor]

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
    arch: Architecture,
    limits: Limits,
    *,
    rule: str = "sign",
    share: float = 0.0,
    like: Mapping[SublayerKey, Tensor] | None = None,
) -> Plan:
    """The units that go: in each sublayer the lowest scores, as many as the rule wants and the limits allow."""
    remove = {}
    for key, values in scores.items():
        wanted = unwanted(values, rule, share=share, like=like[key] if like else None)
        count = _allowed(wanted, len(values), key, arch, limits)
        remove[key] = tuple(sorted(lowest_first(values)[:count]))
    return Plan(remove, scores)


def lowest_first(scores: Tensor) -> list[int]:
    """Unit indices from the first to go to the last; a score that is not a number goes first, ties by index."""
    return torch.argsort(torch.nan_to_num(scores, nan=-torch.inf), stable=True).tolist()


def _part(share: float, units: int) -> int:
    return math.floor(share * units + 1e-9)  # 0.29 of 100 is 29


def _allowed(wanted: int, units: int, key: SublayerKey, arch: Architecture, limits: Limits) -> int:
    """At most `wanted` units, such that the floor, the largest share and the alignment hold."""
    count = min(wanted, _part(limits.max_share, units))
    if key.kind == ATTENTION:
        return max(0, min(count, units - limits.min_heads))
    size = group_size(limits.group, arch, key.stage)
    floor = min(units, math.ceil(limits.min_width / size))
    kept = max(units - count, floor)
    if limits.align > 1 and kept:
        step = limits.align // math.gcd(limits.align, size)  # groups in a smallest aligned width
        kept = min(units, math.ceil(kept / step) * step)
    return units - kept


def apply_plan(arch: Architecture, plan: Plan, group: str) -> Architecture:
    """The architecture after a plan: which dense heads are left and how many hidden channels."""
    blocks: dict[tuple[int, int], BlockShape] = {}
    for key, gone in plan.remove.items():
        position = (key.stage, key.block)
        block = blocks.get(position, arch.block(*position))
        if key.kind == ATTENTION:
            lost = set(gone)
            heads = tuple(head for unit, head in enumerate(block.heads) if unit not in lost)
            blocks[position] = BlockShape(heads, block.hidden)
        else:
            blocks[position] = BlockShape(block.heads, block.hidden - len(gone) * group_size(group, arch, key.stage))
    return arch.with_blocks(blocks)


def within_budget(plan: Plan, arch: Architecture, limits: Limits, *, min_parameters: float, min_macs: float) -> Plan:
    """The part of a plan that does not go below a share of the dense parameters or MACs.

    Units go in the order of the most negative score for the MACs they save, over all sublayers, until the next
    one would cross a budget. Each sublayer still loses its lowest scores first.
    """
    if min_parameters <= 0 and min_macs <= 0:
        return plan
    dense = arch.dense()
    least = min_parameters * cost.parameters(dense), min_macs * cost.macs(dense).linear
    taken: dict[SublayerKey, list[int]] = {key: [] for key in plan.remove}
    left = [float(cost.parameters(arch)), float(cost.macs(arch).linear)]
    for key, unit, saved in _by_saving(plan, arch, limits.group):
        if left[0] - saved[0] >= least[0] and left[1] - saved[1] >= least[1]:
            taken[key].append(unit)
            left = [left[0] - saved[0], left[1] - saved[1]]
    return trimmed(Plan({key: tuple(sorted(units)) for key, units in taken.items()}, plan.scores), arch, limits)


def trimmed(plan: Plan, arch: Architecture, limits: Limits) -> Plan:
    """A part of some plan, less the units that must stay so that the limits (alignment) hold again."""
    remove = {}
    for key, units in plan.remove.items():
        count, chosen = _allowed(len(units), len(plan.scores[key]), key, arch, limits), set(units)
        remove[key] = tuple(sorted([unit for unit in lowest_first(plan.scores[key]) if unit in chosen][:count]))
    return Plan(remove, plan.scores)


def _by_saving(plan: Plan, arch: Architecture, group: str) -> Iterable[tuple[SublayerKey, int, tuple[float, float]]]:
    """(sublayer, unit, (parameters, MACs) saved), the lowest rank within the sublayer per saved MAC first.

    Ranks, not raw scores: criteria differ in scale from sublayer to sublayer (an L1 norm grows with the width).
    """
    entries = []
    for key, units in plan.remove.items():
        saved = unit_saving(arch, key, group)
        order = [unit for unit in lowest_first(plan.scores[key]) if unit in set(units)]
        for rank, unit in enumerate(order):
            if rank + 1 == len(plan.scores[key]):
                # the last unit takes the output bias and, with `skip`, the norm along
                saved = saved[0] + arch.stages[key.stage].width * (3 if arch.removed == "skip" else 1), saved[1]
            entries.append(((rank + 1) / len(plan.scores[key]) / max(saved[1], 1.0), key, unit, saved))
    return [(key, unit, saved) for _, key, unit, saved in sorted(entries, key=lambda entry: entry[:3])]


def unit_saving(arch: Architecture, key: SublayerKey, group: str) -> tuple[float, float]:
    """(parameters, linear MACs) that go with one unit of a sublayer."""
    shape, block = arch.stages[key.stage], arch.block(key.stage, key.block)
    if key.kind == ATTENTION:
        smaller = BlockShape(block.heads[:-1] if len(block.heads) > 1 else block.heads, block.hidden)
        bigger = BlockShape((*smaller.heads, shape.dense_heads), block.hidden)
    else:
        size = group_size(group, arch, key.stage)
        smaller, bigger = BlockShape(block.heads, size), BlockShape(block.heads, 2 * size)
    parameters = sum(cost.block_parameters(arch, key.stage, bigger)) - sum(
        cost.block_parameters(arch, key.stage, smaller)
    )
    more, less = cost.block_macs(arch, key.stage, bigger), cost.block_macs(arch, key.stage, smaller)
    return float(parameters), float(more[0] + more[1] - less[0] - less[1])
