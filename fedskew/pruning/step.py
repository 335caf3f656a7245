"""One pruning step on the server: observe, score, decide, guard, slice."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial

from torch import Tensor

from fedskew.architecture import Architecture
from fedskew.config.schema import PruneConfig
from fedskew.model.swin import MultimodalSwin, build
from fedskew.pruning.criteria import make_criterion, skewness
from fedskew.pruning.decide import Limits, Plan, decide, trimmed, within_budget
from fedskew.pruning.guard import guard
from fedskew.pruning.observe import Observation, observe
from fedskew.pruning.slicing import slice_model
from fedskew.pruning.units import ATTENTION, SublayerKey

Judge = Callable[[MultimodalSwin], float]


@dataclass(frozen=True)
class StepResult:
    """A model after a pruning step, and the plan that was carried out."""

    state: dict[str, Tensor]
    architecture: Architecture
    plan: Plan
    given_back: int = 0
    seconds_scoring: float = 0.0
    seconds_total: float = 0.0
    stages: tuple[int, ...] = field(default=())


def score_units(
    model: MultimodalSwin, images: Tensor, metadata: Tensor, config: PruneConfig, stages: tuple[int, ...], seed: int
) -> tuple[dict[SublayerKey, Tensor], dict[SublayerKey, Tensor]]:
    """Scores of every unit of the given stages by the configured criterion, and by skewness for the rule `match`.

    One forward pass for both. Sublayers that the configuration leaves alone are not scored.
    """
    criterion = make_criterion(config.method, reading=config.reading, seed=seed)
    reference = partial(skewness, reading=config.reading) if config.rule == "match" else None
    scores: dict[SublayerKey, Tensor] = {}
    signs: dict[SublayerKey, Tensor] = {}

    def look(seen: Observation) -> None:
        if config.heads if seen.key.kind == ATTENTION else config.mlp:
            scores[seen.key] = criterion(seen).cpu()
            if reference:
                signs[seen.key] = reference(seen).cpu()

    observe(
        model, images, metadata, look, stages=stages, mlp_activation=config.mlp_activation, mlp_group=config.mlp_group
    )
    return scores, signs


def make_plan(
    model: MultimodalSwin, images: Tensor, metadata: Tensor, config: PruneConfig, stages: tuple[int, ...], seed: int
) -> Plan:
    """What a step would remove, before it is removed (floors, alignment and budgets kept)."""
    scores, signs = score_units(model, images, metadata, config, stages, seed)
    limits = limits_of(config)
    plan = decide(scores, model.architecture, limits, rule=config.rule, share=config.share, like=signs or None)
    return within_budget(
        plan, model.architecture, limits, min_parameters=config.min_parameters, min_macs=config.min_macs
    )


def limits_of(config: PruneConfig) -> Limits:
    """The limits that a configuration sets."""
    return Limits(config.max_share, config.min_heads, config.min_width, config.align, config.mlp_group)


def prune_step(
    model: MultimodalSwin,
    images: Tensor,
    metadata: Tensor,
    config: PruneConfig,
    *,
    stages: tuple[int, ...],
    seed: int,
    judge: Judge,
) -> StepResult:
    """Prune a model once; the model itself is not changed.

    Args:
        images, metadata: one batch of open data, [B, 3, S, S] and [B, vocabularies], on the model's device.
        judge: balanced accuracy on held-back open data, asked only if `prune.guard` is set.
    """
    start = time.perf_counter()
    plan = make_plan(model, images, metadata, config, stages, seed)
    scoring = time.perf_counter() - start
    state, arch = model.state_dict(), model.architecture
    given_back = 0
    if config.guard >= 0 and plan.units:
        device = images.device

        def accuracy(candidate: Plan) -> float:
            smaller, shape = slice_model(state, arch, candidate, config.mlp_group)
            return judge(build(shape, smaller).to(device))

        fit = partial(trimmed, arch=arch, limits=limits_of(config))
        result = guard(plan, accuracy, judge(model), config.guard, trim=fit)
        plan, given_back = result.plan, result.given_back
    state, arch = slice_model(state, arch, plan, config.mlp_group)
    return StepResult(state, arch, plan, given_back, scoring, time.perf_counter() - start, stages)
