"""Which units go: rules, floors, alignment, budgets; nothing is removed by looking at a plan."""

import math
from dataclasses import replace
from fractions import Fraction

import pytest
import torch
from builders import architecture, heads_of, hidden_of, left, plan_of, tiny_config
from hypothesis import given, settings
from hypothesis import strategies as st

from fedskew.model import cost
from fedskew.model.groups import ATTENTION, MLP, SublayerKey
from fedskew.pruning.decide import (
    Limits,
    apply_plan,
    decide,
    limits_of,
    lowest_first,
    unit_saving,
    unwanted,
    within_budget,
)
from fedskew.pruning.units import bundle_size, bundles

NAN = float("nan")
ARCH = architecture()
HEADS = SublayerKey(2, 0, ATTENTION)  # 8 heads
GROUPS = SublayerKey(2, 1, MLP)  # 32 groups of 4 channels


TABLE = bundles(ARCH, "ratio")


def scores_of(*values):
    return torch.tensor(values, dtype=torch.float32)


def limits_strategy():
    return st.builds(
        Limits,
        max_share=st.sampled_from([0.0, 0.1, 0.25, 0.5, 1.0]),
        min_heads=st.integers(0, 3),
        min_width=st.sampled_from([0, 1, 6, 16, 1000]),
        align=st.sampled_from([1, 3, 8, 16, 64]),
    )


@st.composite
def scored(draw, group="ratio", *, pruned=True):
    """An architecture, perhaps pruned already, and scores of its sublayers with ties, NaN and infinities."""
    arch = architecture(stages=draw(st.integers(1, 3)), removed=draw(st.sampled_from(["norm", "skip"])))
    if pruned and draw(st.booleans()):
        arch = left(arch, 0, 0, heads=(1,), hidden=bundle_size(group, arch.groups[SublayerKey(0, 0, MLP)]))
        arch = left(arch, 0, 1, heads=(), hidden=0)
    value = st.sampled_from([-1.0, -0.5, 0.0, 0.5, 1.0, NAN, math.inf, -math.inf]) | st.floats(-3, 3, width=32)
    scores = {}
    for key, units in bundles(arch, group).items():
        generator = torch.Generator().manual_seed(draw(st.integers(0, 2**31)))
        scores[key] = torch.randn(units.count, generator=generator)
        for unit in draw(st.sets(st.integers(0, units.count - 1), max_size=4)):
            scores[key][unit] = draw(value)
    return arch, scores


@pytest.mark.parametrize(
    ("values", "count"),
    [((1, 2, 3), 0), ((0, 2, -1), 2), ((NAN, 1, NAN), 2), ((-0.0, 1e-38), 1), ((math.inf, -math.inf), 1), ((), 0)],
)
def test_the_sign_rule_keeps_what_is_above_0_and_nothing_else(values, count):
    assert unwanted(scores_of(*values), "sign") == count


@pytest.mark.parametrize(
    ("share", "units", "count"),
    [(0.0, 8, 0), (0.3, 8, 2), (1.0, 8, 8), (0.3, 3, 1), (0.29, 100, 29), (0.25, 2, 1), (0.25, 10, 3), (0.25, 1, 0)],
)
def test_the_share_rule_takes_a_share_rounded_to_the_nearest(share, units, count):
    assert unwanted(torch.rand(units), "share", share=share) == count


def test_the_match_rule_takes_as_many_as_the_sign_rule_would_by_other_scores():
    own, like = scores_of(5, 6, 7, 8), scores_of(-1, 2, NAN, 0)
    assert unwanted(own, "match", like=like) == 3
    heads = SublayerKey(1, 0, ATTENTION)
    plan = decide({heads: own}, TABLE, Limits(), rule="match", like={heads: like})
    assert plan.remove[heads] == (0, 1, 2), "the lowest of the own scores"


def test_nan_goes_first_then_the_lowest():
    assert lowest_first(scores_of(0.5, -2, NAN, math.inf, -math.inf)) == [2, 4, 1, 0, 3]
    plan = decide({HEADS: scores_of(3, -1, 2, NAN, 5, 6, 7, 8)}, TABLE, Limits(), rule="share", share=0.3)
    assert plan.remove[HEADS] == (1, 3)


@given(st.lists(st.sampled_from([-1.0, 0.0, 1.0, NAN]), min_size=1, max_size=30))
def test_ties_are_broken_by_the_index(values):
    order = lowest_first(scores_of(*values))
    keys = [(-math.inf if math.isnan(values[unit]) else values[unit], unit) for unit in order]
    assert keys == sorted(keys)


@settings(max_examples=200)
@given(scored(), limits_strategy(), st.sampled_from(["sign", "share"]), st.floats(0, 1))
def test_limits_hold_for_every_sublayer(case, limits, rule, share):
    arch, scores = case
    limits = Limits(limits.max_share, limits.min_heads, limits.min_width, limits.align)
    plan = decide(scores, bundles(arch, "ratio"), limits, rule=rule, share=share)
    assert set(plan.remove) == set(scores)
    smaller = apply_plan(arch, plan)
    for key, gone in plan.remove.items():
        before, after = arch.units[key], smaller.units[key]
        count = len(scores[key])
        assert list(gone) == sorted(set(gone))
        assert len(gone) <= limits.max_share * count + 1e-9, "at most the largest share"
        assert len(gone) <= unwanted(scores[key], rule, share=share), "never more than the rule wants"
        assert set(gone) == set(lowest_first(scores[key])[: len(gone)]), "the lowest scores"
        if key.kind == ATTENTION:
            assert after >= min(before, limits.min_heads), "the floor of heads"
        else:
            assert after >= min(before, limits.min_width), "the floor of the width"
            assert after % limits.align == 0 or after == before, "aligned or untouched"


@pytest.mark.parametrize("group", ["ratio", "width", "1", "2"])
@pytest.mark.parametrize("align", [8, 16, 12])
def test_alignment_holds_for_every_group_size(group, align):
    table = bundles(ARCH, group)
    for count in range(table[GROUPS].count + 1):
        scores = torch.ones(table[GROUPS].count)
        scores[:count] = -1
        plan = decide({GROUPS: scores}, table, Limits(align=align))
        hidden = apply_plan(ARCH, plan).units[GROUPS]
        assert hidden % align == 0 or hidden == 128


def test_attention_is_removed_wholly_only_where_that_is_allowed():
    bad = {HEADS: -torch.ones(8), GROUPS: -torch.ones(32)}
    assert len(decide(bad, TABLE, Limits()).remove[HEADS]) == 7
    assert decide(bad, TABLE, Limits(min_heads=0)).remove[HEADS] == tuple(range(8))
    assert decide(bad, TABLE, Limits()).remove[GROUPS] == tuple(range(32)), "an MLP may go by default"
    assert len(decide(bad, TABLE, Limits(min_width=5)).remove[GROUPS]) == 30, "two groups hold 5 channels"


@settings(max_examples=150)
@given(scored(), limits_strategy(), st.floats(0, 1), st.floats(0, 1), st.booleans())
def test_budgets_are_never_crossed(case, limits, min_parameters, min_macs, everything):
    arch, scores = case
    limits = Limits(1.0, limits.min_heads, limits.min_width, limits.align)
    if everything:
        scores = {key: -torch.ones_like(values) for key, values in scores.items()}
    table = bundles(arch, "ratio")
    wanted = decide(scores, table, limits)
    plan = within_budget(wanted, arch, table, limits, min_parameters=min_parameters, min_macs=min_macs)
    smaller, dense = apply_plan(arch, plan), arch.dense()
    floor = min(cost.parameters(arch), min_parameters * cost.parameters(dense))
    assert cost.parameters(smaller) >= floor - 1e-6 * floor, "parameters"
    floor = min(cost.macs(arch).linear, min_macs * cost.macs(dense).linear)
    assert cost.macs(smaller).linear >= floor - 1e-6 * floor, "MACs"
    for key, gone in plan.remove.items():
        assert set(gone) <= set(wanted.remove[key])
        assert set(gone) == set(lowest_first(scores[key])[: len(gone)]), "each sublayer loses its lowest first"
        if key.kind == MLP:
            assert smaller.units[key] % limits.align == 0 or not gone, "aligned or untouched"


@pytest.mark.parametrize("removed", ["norm", "skip"])
@pytest.mark.parametrize("key", [HEADS, GROUPS], ids=["attention", "mlp"])
def test_the_last_unit_counts_with_what_goes_along(key, removed):
    """Output bias and norm go with a sublayer's last unit: a budget that has room for the unit alone must hold."""
    arch, limits = architecture(removed=removed), Limits(min_heads=0)
    table = bundles(arch, "ratio")
    plan = decide({key: -torch.ones(table[key].count)}, table, limits)
    units_alone = cost.parameters(arch) - plan.units * unit_saving(arch, table[key])[0]
    budget = units_alone / cost.parameters(arch)
    smaller = apply_plan(arch, within_budget(plan, arch, table, limits, min_parameters=budget, min_macs=0))
    assert cost.parameters(smaller) >= units_alone
    least = cost.parameters(apply_plan(arch, plan)) / cost.parameters(arch)
    enough = within_budget(plan, arch, table, limits, min_parameters=least - 1e-9, min_macs=0)
    assert enough.units == plan.units


def test_a_budget_is_used_up():
    scores = {key: -torch.ones(units.count) for key, units in TABLE.items()}
    plan = within_budget(decide(scores, TABLE, Limits()), ARCH, TABLE, Limits(), min_parameters=0.5, min_macs=0)
    share = cost.parameters(apply_plan(ARCH, plan)) / cost.parameters(ARCH)
    assert 0.5 <= share < 0.51


@pytest.mark.parametrize("least", [0.3, 0.4, 0.55, 0.7, 0.85])
def test_what_costs_least_by_its_rank_for_the_macs_it_saves_goes_first(least):
    """The documented order from exact fractions and from models that really lack the unit."""
    generator = torch.Generator().manual_seed(5)
    scores = {key: torch.randn(units.count, generator=generator) for key, units in TABLE.items()}
    limits = Limits(min_width=4)
    wanted = decide(scores, TABLE, limits, rule="share", share=1.0)
    found = within_budget(wanted, ARCH, TABLE, limits, min_parameters=least, min_macs=least)
    entries = []
    for key in wanted.remove:
        order = sorted(range(TABLE[key].count), key=lambda unit, key=key: float(scores[key][unit]))
        without = apply_plan(ARCH, plan_of(ARCH, {key: (order[0],)}, scores=scores))
        saved = [count(ARCH) - count(without) for count in (cost.parameters, lambda arch: cost.macs(arch).linear)]
        entries += [
            (Fraction(rank + 1, len(order)) / saved[1], key, unit, saved)
            for rank, unit in enumerate(order)
            if unit in wanted.remove[key]
        ]
    left_over = [(1 - least) * whole for whole in (cost.parameters(ARCH), cost.macs(ARCH).linear)]
    expected = {key: set() for key in wanted.remove}
    for _, key, unit, saved in sorted(entries, key=lambda entry: entry[:3]):
        if all(own <= rest for own, rest in zip(saved, left_over, strict=True)):
            left_over = [rest - own for own, rest in zip(saved, left_over, strict=True)]
            expected[key].add(unit)
    assert {key: set(units) for key, units in found.remove.items()} == expected
    assert 0 < found.units < wanted.units


def test_without_a_budget_the_plan_stays():
    plan = decide({HEADS: -torch.ones(8)}, TABLE, Limits())
    assert within_budget(plan, ARCH, TABLE, Limits(), min_parameters=0, min_macs=0) is plan


@pytest.mark.parametrize(("key", "group"), [(HEADS, "ratio"), (GROUPS, "ratio"), (GROUPS, "width")])
def test_the_saving_of_a_unit_is_what_its_removal_saves(key, group):
    smaller = apply_plan(ARCH, plan_of(ARCH, {key: (0,)}, group))
    saved = cost.parameters(ARCH) - cost.parameters(smaller), cost.macs(ARCH).linear - cost.macs(smaller).linear
    assert unit_saving(ARCH, bundles(ARCH, group)[key]) == saved


def test_a_plan_can_be_looked_at_and_changes_nothing():
    scores = {HEADS: scores_of(1, -1, 2, -2, 3, 4, 5, 6), GROUPS: torch.linspace(-1, 1, 32)}
    copies = {key: values.clone() for key, values in scores.items()}
    text = ARCH.to_json()
    plan = decide(scores, TABLE, Limits())
    assert plan.remove == {HEADS: (1, 3), GROUPS: tuple(range(16))}
    assert plan.units == 18
    assert all(torch.equal(scores[key], copies[key]) for key in scores)
    smaller = apply_plan(ARCH, plan)
    assert ARCH.to_json() == text
    assert (heads_of(smaller, 2, 0), hidden_of(smaller, 2, 0)) == ((0, 2, 4, 5, 6, 7), 128)
    assert (heads_of(smaller, 2, 1), hidden_of(smaller, 2, 1)) == (tuple(range(8)), 64)
    again = apply_plan(smaller, plan_of(smaller, {HEADS: (1, 5)}))
    assert heads_of(again, 2, 0) == (0, 4, 5, 6), "units of the present model, heads in the dense numbering"


@pytest.mark.parametrize(("group", "size"), [("ratio", 4), ("width", 32), ("1", 1), ("64", 64)])
def test_group_sizes_follow_the_reading(group, size):
    found = bundles(ARCH, group, (HEADS, GROUPS))
    assert (found[GROUPS].size, found[GROUPS].count) == (size, 128 // size)
    assert (found[HEADS].size, found[HEADS].count) == (1, 8)


def test_a_group_that_does_not_divide_the_width_is_named():
    with pytest.raises(ValueError, match=r"prune.mlp-group 3 .* 128 of stage 2"):
        bundle_size("3", ARCH.groups[GROUPS])
    pruned = left(ARCH, 2, 1, heads=(0,), hidden=6)
    with pytest.raises(ValueError, match=r"another prune\.mlp-group"):
        bundles(pruned, "ratio")


def test_each_limit_is_the_setting_of_its_name():
    settings = {"max_share": 0.3, "min_heads": 2, "min_width": 24, "align": 8}
    assert limits_of(replace(tiny_config().prune, **settings)) == Limits(**settings)
