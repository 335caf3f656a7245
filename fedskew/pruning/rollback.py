"""Roll back: give units back while a pruning step costs more accuracy on open data than it may."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from fedskew.model.groups import SublayerKey
from fedskew.pruning.decide import Plan, lowest_first

TRIES = 6  # halvings: the share of units that stays removed is found to within 1/64


@dataclass(frozen=True)
class RolledBack:
    """The plan that is left, how many units came back, and the accuracy with it."""

    plan: Plan
    given_back: int
    after: float


def roll_back(
    plan: Plan,
    judge: Callable[[Plan], float],
    before: float,
    tolerance: float,
    *,
    trim: Callable[[Plan], Plan] = lambda plan: plan,
) -> RolledBack:
    """The largest part of a plan whose balanced accuracy is at most `tolerance` below `before`.

    Units come back with the highest rank in their sublayer first; the number is found by halving, at most
    `TRIES` evaluations. If no tried part is good enough, the whole plan is dropped.

    Args:
        judge: balanced accuracy on open data of the model that a plan leaves.
        before: the same of the model as it is.
        trim: makes a part of a plan one that keeps the limits (alignment).
    """
    if not plan.units or (after := judge(plan)) >= before - tolerance:
        return RolledBack(plan, 0, after if plan.units else before)
    order = removal_order(plan)
    good, bad, best = 0, len(order), (plan.less(dict.fromkeys(plan.remove, ())), before)
    for _ in range(TRIES):
        middle = (good + bad) // 2
        if middle == good:
            break
        candidate = trim(first_units(plan, order, middle))
        accuracy = judge(candidate)
        if accuracy >= before - tolerance:
            good, best = middle, (candidate, accuracy)
        else:
            bad = middle
    return RolledBack(best[0], plan.units - best[0].units, best[1])


def removal_order(plan: Plan) -> list[tuple[SublayerKey, int]]:
    """All units of a plan, the first to go first: by rank within their sublayer, so that criteria need no scale."""
    ranked = []
    for key, units in plan.remove.items():
        chosen = set(units)
        order = [unit for unit in lowest_first(plan.scores[key]) if unit in chosen]
        ranked += [((rank + 1) / len(plan.scores[key]), key, unit) for rank, unit in enumerate(order)]
    return [(key, unit) for _, key, unit in sorted(ranked)]


def first_units(plan: Plan, order: list[tuple[SublayerKey, int]], count: int) -> Plan:
    """The plan that removes only the first `count` units of an order."""
    remove: dict[SublayerKey, list[int]] = {key: [] for key in plan.remove}
    for key, unit in order[:count]:
        remove[key].append(unit)
    return plan.less(remove)
