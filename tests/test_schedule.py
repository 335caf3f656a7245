"""When which stage is pruned and frozen: stepping as in Algorithm 1, a pure function of the round."""

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fedskew.config.schema import PruneConfig
from fedskew.pruning.schedule import frozen_stages, is_pruning_round, stages_to_prune

STAGES = 4


def timeline(config, rounds, first=1):
    return [stages_to_prune(config, number, STAGES) for number in range(first, rounds + 1)]


def test_stages_unlock_in_order_and_earlier_ones_are_calibrated():
    assert timeline(PruneConfig(), 6) == [(0,), (0, 1), (0, 1, 2), (0, 1, 2, 3), (0, 1, 2, 3), (0, 1, 2, 3)]


def test_without_calibration_only_the_newest_stage_is_scored():
    config = PruneConfig(calibrate=False, steps_per_stage=2)
    assert timeline(config, 9) == [(0,), (0,), (1,), (1,), (2,), (2,), (3,), (3,), (3,)]


def test_a_stage_may_have_several_steps_before_the_next_unlocks():
    assert timeline(PruneConfig(steps_per_stage=3), 7) == [(0,)] * 3 + [(0, 1)] * 3 + [(0, 1, 2)]


def test_first_round_last_round_and_interval_bound_the_steps():
    config = PruneConfig(first_round=3, last_round=8, interval=2)
    assert timeline(config, 10) == [(), (), (0,), (), (0, 1), (), (0, 1, 2), (), (), ()]


def test_the_max_stage_stays_the_newest():
    assert timeline(PruneConfig(max_stage=1), 4) == [(0,), (0, 1), (0, 1), (0, 1)]


def test_a_max_stage_beyond_the_model_is_its_last_stage():
    assert stages_to_prune(PruneConfig(max_stage=9), 9, 2) == (0, 1)


def test_a_frozen_stage_is_pruned_in_its_own_steps_only():
    config = PruneConfig(freeze=True, steps_per_stage=2)
    assert timeline(config, 9) == [(0,), (0,), (1,), (1,), (2,), (2,), (3,), (3,), ()]
    assert [frozen_stages(config, number, STAGES) for number in range(10)] == [
        *[()] * 2, *[(0,)] * 2, *[(0, 1)] * 2, *[(0, 1, 2)] * 2, *[(0, 1, 2, 3)] * 2,
    ]  # fmt: skip


def test_nothing_is_frozen_unless_asked_for():
    assert all(frozen_stages(PruneConfig(), number, STAGES) == () for number in range(9))


def test_stages_beyond_the_max_stage_are_never_frozen():
    assert frozen_stages(PruneConfig(freeze=True, max_stage=1), 50, STAGES) == (0, 1)


def test_the_initial_model_can_be_the_first_to_be_pruned():
    config = PruneConfig(first_round=0)
    assert timeline(config, 3, first=0) == [(0,), (0, 1), (0, 1, 2), (0, 1, 2, 3)]
    assert stages_to_prune(PruneConfig(), 0, STAGES) == (), "by default nothing is pruned before round 1"


def test_the_initial_model_s_stage_is_pruned_before_it_is_frozen():
    config = PruneConfig(first_round=0, freeze=True)
    assert timeline(config, 4, first=0) == [(0,), (1,), (2,), (3,), ()]
    assert frozen_stages(config, 0, STAGES) == (0,)


@pytest.mark.parametrize("first", [0, 1])
def test_plain_fedavg_never_prunes_nor_freezes(first):
    config = PruneConfig(criterion="none", freeze=True, first_round=first)
    assert timeline(config, 20, first=0) == [()] * 21
    assert frozen_stages(config, 20, STAGES) == ()


def test_thawed_stages_train_and_are_calibrated_after_the_last_stages_fine_tuning():
    """Algorithm 1, then what section 3 says of the rounds that follow: prune what redundancy remains."""
    config = PruneConfig(first_round=0, freeze=True, thaw=True)
    assert timeline(config, 7, first=0) == [(0,), (1,), (2,), (3,), (), (0, 1, 2, 3), (0, 1, 2, 3), (0, 1, 2, 3)]
    frozen = [frozen_stages(config, number, STAGES) for number in range(7)]
    assert frozen == [(0,), (0, 1), (0, 1, 2), (0, 1, 2, 3), (), (), ()], "round 4 fine-tunes behind the last stage"


def test_fine_tuning_before_the_thaw_lasts_an_interval():
    config = PruneConfig(freeze=True, thaw=True, interval=3, first_round=2, max_stage=1)
    assert [number for number in range(20) if is_pruning_round(config, number)] == [2, 5, 8, 11, 14, 17]
    assert [frozen_stages(config, number, STAGES) for number in range(10)] == [
        *[()] * 2, *[(0,)] * 3, *[(0, 1)] * 3, *[()] * 2,
    ]  # fmt: skip
    assert stages_to_prune(config, 8, STAGES) == (), "still frozen"
    assert stages_to_prune(config, 11, STAGES) == (0, 1)


@pytest.mark.parametrize(("last", "thawed"), [(2, 3), (4, 5), (9, 5)])
def test_a_last_round_thaws_too(last, thawed):
    config = PruneConfig(freeze=True, thaw=True, last_round=last)
    frozen = [frozen_stages(config, number, STAGES) for number in range(12)]
    assert frozen[thawed - 1] != ()
    assert all(found == () for found in frozen[thawed:])


configs = st.builds(
    PruneConfig,
    first_round=st.integers(0, 6),
    last_round=st.integers(0, 12),
    interval=st.integers(1, 4),
    steps_per_stage=st.integers(1, 3),
    max_stage=st.integers(0, 5),
    calibrate=st.booleans(),
    freeze=st.booleans(),
    thaw=st.booleans(),
)


@given(configs, st.integers(1, 6))
def test_every_schedule_keeps_the_order_of_stages(config, stages):
    seen, steps = set(), 0
    for number in range(20):
        pruned, frozen = stages_to_prune(config, number, stages), frozen_stages(config, number - 1, stages)
        assert not set(pruned) & set(frozen), "what is frozen is not pruned"
        assert frozen == tuple(range(len(frozen))), "frozen from the front"
        assert set(frozen) <= seen, "never frozen before it was pruned"
        assert all(stage == 0 or stage - 1 in seen | set(pruned) for stage in pruned), "no stage is passed over"
        assert all(stage <= min(config.max_stage, stages - 1) for stage in pruned)
        if number and not config.first_round <= number <= (config.last_round or number):
            assert pruned == ()
        steps += is_pruning_round(config, number)
        seen |= set(pruned)
    assert steps == 0 or 0 in seen, "the first step prunes the first stage"


@given(configs)
def test_calibration_only_adds_earlier_stages(config):
    plain = replace(config, calibrate=False, freeze=False)
    calibrated = replace(config, calibrate=True, freeze=False)
    for number in range(16):
        newest, every = (stages_to_prune(c, number, STAGES) for c in (plain, calibrated))
        assert every == (tuple(range(newest[0] + 1)) if newest else ())
