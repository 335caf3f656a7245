"""One pruning step on the server: observe, score, decide, roll back, slice."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import partial

from torch import Tensor

from fedskew.config.schema import PruneConfig
from fedskew.model.architecture import Architecture
from fedskew.model.fusion import MultimodalModel, build
from fedskew.model.groups import ATTENTION, SublayerKey
from fedskew.pruning.blockwise import plan_blockwise
from fedskew.pruning.decide import Limits, Plan, decide, trimmed, within_budget
from fedskew.pruning.rollback import roll_back
from fedskew.pruning.score import SublayerScores, score_units
from fedskew.pruning.slicing import slice_model
from fedskew.pruning.units import Table, bundles

Judge = Callable[[MultimodalModel], float]


@dataclass(frozen=True)
class Proposal:
    """What a step would remove, and what it was decided by."""

    plan: Plan
    scored: Mapping[SublayerKey, SublayerScores]


@dataclass(frozen=True)
class StepResult:
    """A model after a pruning step, and the plan that was carried out.

    The plan numbers the units as in the model before the step: `slice_model` with it cuts anything of that layout.
    """

    state: dict[str, Tensor]
    architecture: Architecture
    plan: Plan
    given_back: int = 0
    seconds_scoring: float = 0.0
    seconds_total: float = 0.0
    stages: tuple[int, ...] = field(default=())
    scored: Mapping[SublayerKey, SublayerScores] = field(default_factory=dict)


def propose(
    model: MultimodalModel, images: Tensor, config: PruneConfig, stages: tuple[int, ...], seed: int
) -> Proposal:
    """What a step would remove, before it is removed (floors, alignment and budgets kept).

    A budget is kept by giving up a part of what the rule wants, whatever the order of scoring: the lowest ranks per
    saved MAC over all sublayers go, not the first blocks.
    """
    arch, limits, table = model.architecture, limits_of(config), table_of(model.architecture, config, stages)
    if config.order == "block":
        scored, plan = plan_blockwise(model, images, config, limits, table, seed)
    else:
        scored = score_units(model, images, config, table, seed)
        like = {key: found.reference for key, found in scored.items() if found.reference is not None}
        scores = {key: found.scores for key, found in scored.items()}
        plan = decide(scores, table, limits, rule=config.rule, share=config.share, like=like or None)
    plan = within_budget(plan, arch, table, limits, min_parameters=config.min_parameters, min_macs=config.min_macs)
    return Proposal(plan, scored)


def limits_of(config: PruneConfig) -> Limits:
    """The limits that a configuration sets."""
    return Limits(config.max_share, config.min_heads, config.min_width, config.align)


def table_of(arch: Architecture, config: PruneConfig, stages: tuple[int, ...]) -> Table:
    """The units of some stages that a configuration prunes and that are left; raises as `bundles`."""
    wanted = {True: config.heads, False: config.mlp}
    return bundles(arch, config.mlp_group,
                   (key for key in arch.groups if key.stage in stages and wanted[key.kind == ATTENTION]))  # fmt: skip


def prune_step(
    model: MultimodalModel,
    images: Tensor,
    config: PruneConfig,
    *,
    stages: tuple[int, ...],
    seed: int,
    judge: Judge,
) -> StepResult:
    """Prune a model once; the model itself is not changed.

    Args:
        images: open data [B, 3, S, S] to score by, on the model's device.
        judge: balanced accuracy on held-back open data, asked only if `prune.rollback` is set.
    """
    start = time.perf_counter()
    proposal = propose(model, images, config, stages, seed)
    plan = proposal.plan
    scoring = time.perf_counter() - start
    state, arch = model.state_dict(), model.architecture
    given_back = 0
    if config.rollback >= 0 and plan.units:
        device = images.device

        def accuracy(candidate: Plan) -> float:
            smaller, shape = slice_model(state, arch, candidate)
            return judge(build(shape, smaller).to(device))

        fit = partial(trimmed, table=table_of(arch, config, stages), limits=limits_of(config))
        result = roll_back(plan, accuracy, judge(model), config.rollback, trim=fit)
        plan, given_back = result.plan, result.given_back
    state, arch = slice_model(state, arch, plan)
    return StepResult(state, arch, plan, given_back, scoring, time.perf_counter() - start, stages,
                      proposal.scored)  # fmt: skip
