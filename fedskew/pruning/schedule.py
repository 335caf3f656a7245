"""When which stages are pruned and frozen (paper, Algorithm 1): pure functions of the round."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from dataclasses import replace

from fedskew.config.schema import PruneConfig


def steps_until(config: PruneConfig, round_number: int) -> int:
    """Pruning steps up to and including this round; round 0 is the initial model."""
    if config.criterion == "none":
        return 0
    last = min(round_number, config.last_round) if config.last_round else round_number
    return (last - config.first_round) // config.interval + 1 if last >= config.first_round else 0


def is_pruning_round(config: PruneConfig, round_number: int) -> bool:
    """Whether a pruning step follows the aggregation of this round; round 0 is the initial model."""
    return steps_until(config, round_number) > steps_until(config, round_number - 1)


def stages_to_prune(config: PruneConfig, round_number: int, stages: int) -> tuple[int, ...]:
    """Stages whose units are scored after this round: the unlocked ones, or the newest of them only."""
    if not is_pruning_round(config, round_number):
        return ()
    newest = min(config.max_stage, stages - 1)
    if config.steps_per_stage:
        newest = min((steps_until(config, round_number) - 1) // config.steps_per_stage, newest)
    frozen = frozen_stages(config, round_number - 1, stages)
    unlocked = range(newest + 1) if config.calibrate else (newest,)
    return tuple(stage for stage in unlocked if stage not in frozen)


def steps_left(config: PruneConfig, round_number: int, stages: int, rounds: int) -> dict[int, int]:
    """Stages that are pruned after this round or a later one, and in how many of them."""
    return dict(Counter(
        stage for number in range(round_number, rounds + 1) for stage in stages_to_prune(config, number, stages)
    ))  # fmt: skip


def budget_steps(config: PruneConfig, stages: int, rounds: int) -> Iterator[tuple[tuple[int, ...], dict[int, int]]]:
    """Of every pruning step of a run, its stages and what `steps_left` says there."""
    for number in range(rounds + 1):
        if pruned := stages_to_prune(config, number, stages):
            yield pruned, steps_left(config, number, stages, rounds)


def frozen_stages(config: PruneConfig, round_number: int, stages: int) -> tuple[int, ...]:
    """Stages that are not trained after this round: those that had all their pruning steps (`prune.freeze`).

    With `prune.thaw` they train again after the fine-tuning that follows the last stage's last step.
    """
    if not config.freeze or (config.thaw and stepping_is_over(config, round_number, stages)):
        return ()
    done = steps_until(config, round_number) // config.steps_per_stage
    return tuple(range(min(done, config.max_stage + 1, stages)))


def stepping_is_over(config: PruneConfig, round_number: int, stages: int) -> bool:
    """Whether Algorithm 1 has ended after this round: its last step, and the fine-tuning until a next one was due.

    Its last step is that of the last stage that unlocks, or the one in `prune.last-round` if that comes before.
    """
    last = config.steps_per_stage * min(config.max_stage + 1, stages)
    if config.last_round:
        last = min(last, steps_until(config, config.last_round))
    return steps_until(replace(config, last_round=0), round_number) > last
