"""The rule `budget`: how many units each sublayer loses in a step, so that the last step ends at a given size.

Every sublayer keeps about the same share of its dense units, the smallest with which the model still has
`prune.min-parameters` of the dense parameters and `prune.min-macs` of the dense MACs. Which units go is a matter of
their ranks within the sublayer, so criteria whose scores have no common scale are compared at the same widths, hence at
the same parameters and the same MACs. A sublayer shrinks by the same factor in each of its steps. All of this follows
from the architecture and the schedule: nothing is remembered, and what a step could not do is left to those after it.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import replace

import torch

from fedskew.config.schema import ConfigError, PruneConfig
from fedskew.model import cost
from fedskew.model.architecture import Architecture
from fedskew.model.groups import SublayerKey
from fedskew.pruning.decide import Limits, allowed, apply_plan, decide, limits_of, unit_saving
from fedskew.pruning.units import Bundles, Table, table_of

StepsLeft = Mapping[int, int]  # stage → steps in which it is pruned, from this one on
Counts = dict[SublayerKey, int]


def only_step(stages: Iterable[int]) -> list[tuple[tuple[int, ...], StepsLeft]]:
    """The steps of who prunes once, for `check_budget`."""
    stages = tuple(stages)
    return [(stages, dict.fromkeys(stages, 1))]


def quotas(arch: Architecture, config: PruneConfig, stages: tuple[int, ...], left: StepsLeft) -> Counts:
    """How many units each sublayer of the stages of a step loses.

    Args:
        stages: that are pruned in this step.
        left: of every stage that is pruned in this step or a later one.
    """
    table = table_of(arch, config, tuple(left))
    final = widths(arch, table, limits_of(config), left, (config.min_parameters, config.min_macs))
    return {
        key: units.count - _next(units.count, final[key], left[key.stage])
        for key, units in table.items()
        if key.stage in stages
    }


def _next(now: int, last: int, steps: int) -> int:
    """Units after the first of some steps from `now` to `last` that each take the same factor."""
    return last if steps == 1 else round(now * (max(last, 0.5) / now) ** (1 / steps))


def widths(arch: Architecture, table: Table, limits: Limits, left: StepsLeft, shares: tuple[float, float]) -> Counts:
    """How many units each sublayer has left at a budget: no one more could go without falling below it.

    Units go in the order of the share of the dense ones that is gone with them; where one would cross the budget, its
    sublayer keeps what it has, and smaller units of others still go.

    Args:
        limits: of every step.
        left: steps that a stage has.
        shares: of the dense parameters and of the dense linear MACs that must be left.
    """
    dense, size = arch.dense(), _size(arch)
    least = [share * whole for share, whole in zip(shares, _size(dense), strict=True)]
    counts, closed = {key: units.count for key, units in table.items()}, set()
    for _, key, count in sorted(_candidates(table, limits, left)):
        after = [now - gone for now, gone in zip(size, _saved(arch, table, key, counts[key], count), strict=True)]
        if key not in closed and all(value >= floor for value, floor in zip(after, least, strict=True)):
            counts[key], size = count, after
        else:
            closed.add(key)
    return counts


def _candidates(table: Table, limits: Limits, left: StepsLeft) -> Iterable[tuple[float, SublayerKey, int]]:
    """(share of the dense units that is gone, sublayer, units left) for all that the limits and steps allow."""
    whole = replace(limits, max_share=1.0)
    for key, units in table.items():
        dense, least = units.group.units // units.size, units.count
        for _ in range(left[key.stage]):
            least -= allowed(least, replace(units, count=least), limits)
        for count in {units.count - allowed(gone, units, whole) for gone in range(1, units.count - least + 1)}:
            if count < units.count:
                yield 1 - count / dense, key, count


def _size(arch: Architecture) -> list[float]:
    return [float(cost.parameters(arch)), float(cost.macs(arch).linear)]


def _saved(arch: Architecture, table: Table, key: SublayerKey, before: int, after: int) -> tuple[int, int]:
    """Parameters and linear MACs."""
    more, less = (arch.spec.sublayer_cost(key, count * table[key].size, arch.removed) for count in (before, after))
    return more.parameters - less.parameters, more.linear - less.linear


def check_budget(arch: Architecture, config: PruneConfig, steps: Iterable[tuple[tuple[int, ...], StepsLeft]]) -> None:
    """Refuse a budget that these steps do not reach, by going through them with widths alone.

    Args:
        steps: stages and steps left of each (see `quotas`).

    Raises:
        ConfigError: there is no budget, or floors, alignment or the largest share of a step keep more than it.
    """
    if config.criterion == "none" or config.rule != "budget":
        return
    if not config.min_parameters and not config.min_macs:
        raise ConfigError(
            "prune.rule=budget needs the size to go down to: set prune.min-parameters or prune.min-macs, "
            "as shares of the dense model"
        )
    last: tuple[int, ...] = ()
    for last, left in steps:
        table = table_of(arch, config, last)
        scores = {key: torch.zeros(units.count) for key, units in table.items()}
        arch = apply_plan(arch, decide(scores, table, limits_of(config), quota=quotas(arch, config, last, left)))
    if last and not _reached(arch, config, last):
        raise ConfigError(_unreachable(arch, config))


def _reached(arch: Architecture, config: PruneConfig, stages: tuple[int, ...]) -> bool:
    """Whether one of the budgets is less than the largest unit of these stages away."""
    dense = arch.dense()
    each = [_least_cut(dense, units, config.align) for units in table_of(dense, config, stages).values()]
    shares = config.min_parameters, config.min_macs
    return any(
        share and now - share * whole < max(cut[i] for cut in each)
        for i, (share, now, whole) in enumerate(zip(shares, _size(arch), _size(dense), strict=True))
    )


def _least_cut(arch: Architecture, units: Bundles, align: int) -> list[float]:
    """Parameters and MACs of what goes together: a head, or as many MLP groups as keep the width aligned."""
    together = 1 if units.group.numbered else align // math.gcd(align, units.size)
    return [together * saving for saving in unit_saving(arch, units)]


def _unreachable(arch: Architecture, config: PruneConfig) -> str:
    pairs = zip(("parameters", "macs"), (config.min_parameters, config.min_macs), _size(arch), _size(arch.dense()),
                strict=True)  # fmt: skip
    told = [
        f"prune.min-{name}={share:g} is not reached: {math.ceil(1e4 * now / whole) / 1e4:g} is the least"
        for name, share, now, whole in pairs
        if share
    ]
    return (
        f"prune.rule=budget: {', and '.join(told)} that prune.min-heads, min-width, align, max-share, heads, mlp and "
        "the schedule's steps and stages allow; raise the budget to that, or allow more"
    )
