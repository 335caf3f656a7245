"""The rollback gives units back, the best first, until accuracy on open data holds; or drops the step."""

import time
from dataclasses import replace

import pytest
import torch
from builders import architecture, heads_of, hidden_of, inputs, lively_model, tiny_config
from hypothesis import given, settings
from hypothesis import strategies as st

from fedskew.model.groups import ATTENTION, MLP, SublayerKey
from fedskew.pruning.decide import Plan, lowest_first
from fedskew.pruning.rollback import TRIES, first_units, removal_order, roll_back
from fedskew.pruning.step import prune_step

FIRST, SECOND = SublayerKey(0, 0, ATTENTION), SublayerKey(1, 1, MLP)


@st.composite
def plans(draw):
    """Plans over two sublayers that remove the lowest scores of each, as `decide` does."""
    scores, remove = {}, {}
    for key in (FIRST, SECOND):
        count = draw(st.integers(1, 12))
        scores[key] = torch.tensor(draw(st.lists(st.floats(-2, 2), min_size=count, max_size=count)))
        remove[key] = tuple(sorted(lowest_first(scores[key])[: draw(st.integers(0, count))]))
    return Plan(remove, scores)


class Judge:
    """Accuracy falls by `loss` a unit; counts how often it is asked."""

    def __init__(self, loss, before=0.8):
        self.loss, self.before, self.asked = loss, before, 0

    def __call__(self, plan):
        self.asked += 1
        return self.before - self.loss * plan.units


@settings(max_examples=200)
@given(plans(), st.floats(0, 0.2), st.floats(0, 0.3))
def test_the_guarded_plan_is_within_the_tolerance_and_part_of_the_plan(plan, loss, tolerance):
    judge = Judge(loss)
    result = roll_back(plan, judge, judge.before, tolerance)
    assert result.after >= judge.before - tolerance
    assert result.after == pytest.approx(judge.before - loss * result.plan.units)
    assert result.given_back == plan.units - result.plan.units
    assert judge.asked <= TRIES + 1
    for key, gone in plan.remove.items():
        kept = result.plan.remove[key]
        assert set(kept) <= set(gone)
        assert list(kept) == sorted(kept)
        assert set(kept) == set(lowest_first(plan.scores[key])[: len(kept)]), "the highest scores come back first"


@settings(max_examples=100)
@given(plans(), st.integers(0, 20))
def test_not_one_unit_more_than_needed_is_given_back(plan, bearable):
    result = roll_back(plan, Judge(0.01), 0.8, 0.01 * bearable + 0.005)
    assert result.plan.units == min(plan.units, bearable)


def test_a_harmless_plan_goes_through_after_one_look():
    plan = Plan({FIRST: (0, 1)}, {FIRST: torch.tensor([-1.0, -2.0, 3.0])})
    judge = Judge(0.0)
    result = roll_back(plan, judge, 0.8, 0.0)
    assert result.plan is plan
    assert (judge.asked, result.given_back) == (1, 0)


def test_a_plan_of_which_no_part_helps_is_dropped():
    plan = Plan({FIRST: (0, 1), SECOND: ()}, {FIRST: torch.zeros(3), SECOND: torch.zeros(2)})
    result = roll_back(plan, lambda candidate: 0.1, 0.8, 0.05)
    assert result.plan.remove == {FIRST: (), SECOND: ()}
    assert (result.given_back, result.after) == (2, 0.8)


def test_an_empty_plan_asks_nobody():
    result = roll_back(Plan({FIRST: ()}, {FIRST: torch.zeros(3)}), lambda _: pytest.fail("asked"), 0.8, 0.0)
    assert result.given_back == 0


def test_a_step_judges_real_models_and_records_what_came_back():
    arch = architecture()
    model, (images, _) = lively_model(arch), inputs(arch)
    seen = []

    def judge(candidate):
        seen.append(candidate.architecture)
        heads = sum(len(heads_of(candidate.architecture, i, j)) for i, j in arch.blocks)
        return heads / sum(len(heads_of(arch, i, j)) for i, j in arch.blocks)

    prune = replace(tiny_config().prune, rollback=0.1)
    free = prune_step(model, images, replace(prune, rollback=-1.0), stages=(0, 1, 2, 3), seed=0, judge=judge)
    assert not seen, "without a rollback nobody is asked"
    begun = time.perf_counter()
    step = prune_step(model, images, prune, stages=(0, 1, 2, 3), seed=0, judge=judge)
    assert 0 < step.seconds_scoring < step.seconds_total < time.perf_counter() - begun
    assert seen[0] == arch, "the model before"
    assert step.given_back > 0
    assert step.given_back == free.plan.units - step.plan.units
    assert step.architecture in seen, "what was judged is what was done"


def test_what_the_guard_gives_back_leaves_widths_aligned():
    arch = architecture()
    model, (images, _) = lively_model(arch), inputs(arch)
    whole = sum(hidden_of(arch, i, j) for i, j in arch.blocks)

    def judge(candidate):
        return sum(hidden_of(candidate.architecture, i, j) for i, j in arch.blocks) / whole

    prune = replace(tiny_config().prune, rollback=0.2, align=8)
    step = prune_step(model, images, prune, stages=(0, 1, 2, 3), seed=0, judge=judge)
    assert step.given_back > 0
    assert step.plan.units > 0
    widths = [hidden_of(step.architecture, i, j) for i, j in arch.blocks]
    assert all(width % 8 == 0 for width in widths), widths


def test_units_go_by_their_rank_among_all_units_of_their_sublayer():
    """Two of ten hidden groups go before one of four heads: ranks 1/10 and 2/10 against 1/4, whatever the scores."""
    scores = {FIRST: torch.tensor([3.0, -9.0, 4.0, 5.0]), SECOND: torch.arange(10.0) - 1.5}
    plan = Plan({FIRST: (1,), SECOND: (0, 1, 2)}, scores)
    assert removal_order(plan) == [(SECOND, 0), (SECOND, 1), (FIRST, 1), (SECOND, 2)]
    assert first_units(plan, removal_order(plan), 3).remove == {FIRST: (1,), SECOND: (0, 1)}
