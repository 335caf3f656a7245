"""One pruning step on the server: observe, score, decide, roll back, slice."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from functools import partial

from torch import Tensor

from fedskew.config.schema import PruneConfig
from fedskew.model.architecture import Architecture
from fedskew.model.fusion import MultimodalModel, build
from fedskew.model.groups import SublayerKey
from fedskew.pruning.annotations import NOTHING, Annotations
from fedskew.pruning.blockwise import plan_blockwise
from fedskew.pruning.budget import StepsLeft, quotas
from fedskew.pruning.decide import Plan, decide, limits_of, trimmed, within_budget
from fedskew.pruning.rollback import roll_back
from fedskew.pruning.score import SublayerScores, score_units
from fedskew.pruning.slicing import slice_model
from fedskew.pruning.units import table_of

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

    def given_up(self) -> StepResult:
        """The same step after which all units were given back. Its model is not to be used."""
        none = self.plan.less(dict.fromkeys(self.plan.remove, ()))
        return replace(self, plan=none, given_back=self.given_back + self.plan.units)


def propose(
    model: MultimodalModel,
    images: Tensor,
    config: PruneConfig,
    stages: tuple[int, ...],
    seed: int,
    *,
    known: Annotations = NOTHING,
    left: StepsLeft | None = None,
) -> Proposal:
    """What a step would remove, before it is removed (floors, alignment and budgets kept).

    A budget is kept by giving up a part of what the rule wants, whatever the order of scoring: the lowest ranks per
    saved MAC over all sublayers go, not the first blocks.

    Args:
        known: labels, metadata and masks of the images, for criteria that look at them.
        left: for the rule `budget`, see `budget.quotas`; None: this is the only step.

    Raises:
        ConfigError: as `score_units`.
    """
    arch, table = model.architecture, table_of(model.architecture, config, stages)
    quota = quotas(arch, config, stages, left or dict.fromkeys(stages, 1)) if config.rule == "budget" else None
    if config.order == "block":
        scored, plan = plan_blockwise(model, images, config, table, seed, quota=quota, known=known)
    else:
        scored = score_units(model, images, config, table, seed, known)
        like = {key: found.reference for key, found in scored.items() if found.reference is not None}
        scores = {key: found.scores for key, found in scored.items()}
        plan = decide(scores, table, limits_of(config), rule=config.rule, share=config.share, like=like or None,
                      quota=quota)  # fmt: skip
    plan = within_budget(plan, arch, table, limits_of(config),
                         min_parameters=config.min_parameters, min_macs=config.min_macs)  # fmt: skip
    return Proposal(plan, scored)


def prune_step(
    model: MultimodalModel,
    images: Tensor,
    config: PruneConfig,
    *,
    stages: tuple[int, ...],
    seed: int,
    judge: Judge,
    known: Annotations = NOTHING,
    left: StepsLeft | None = None,
) -> StepResult:
    """Prune a model once; the model itself is not changed.

    Args:
        images: open data [B, 3, S, S] to score by, on the model's device.
        judge: balanced accuracy on held-back open data, asked only if `prune.rollback` is set.
        known, left: see `propose`.
    """
    start = time.perf_counter()
    proposal = propose(model, images, config, stages, seed, known=known, left=left)
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
