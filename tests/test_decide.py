"""Which units go: rules, floors, alignment, budgets; nothing is removed by looking at a plan."""

import math

import pytest
import torch
from builders import architecture
from hypothesis import given, settings
from hypothesis import strategies as st

from fedskew.model import cost
from fedskew.model.architecture import BlockShape
from fedskew.model.groups import ATTENTION, MLP, SublayerKey
from fedskew.pruning.decide import Limits, Plan, apply_plan, decide, lowest_first, unit_saving, unwanted, within_budget
from fedskew.pruning.units import group_size, unit_count

NAN = float("nan")
ARCH = architecture()
HEADS = SublayerKey(2, 0, ATTENTION)  # 8 heads
GROUPS = SublayerKey(2, 1, MLP)  # 32 groups of 4 channels


def scores_of(*values):
    return torch.tensor(values, dtype=torch.float32)


def limits_strategy():
    return st.builds(
        Limits,
        max_share=st.sampled_from([0.0, 0.1, 0.25, 0.5, 1.0]),
        min_heads=st.integers(0, 3),
        min_width=st.sampled_from([0, 1, 6, 16, 1000]),
        align=st.sampled_from([1, 3, 8, 16, 64]),
        group=st.sampled_from(["ratio", "width", "1", "2"]),
    )


@st.composite
def scored(draw, group="ratio", *, pruned=True):
    """An architecture, perhaps pruned already, and scores of its sublayers with ties, NaN and infinities."""
    arch = architecture(stages=draw(st.integers(1, 3)), removed=draw(st.sampled_from(["norm", "skip"])))
    if pruned and draw(st.booleans()):
        size = max(group_size(group, arch, i) for i in range(len(arch.stages)))
        arch = arch.with_blocks({(0, 0): BlockShape((1,), size), (0, 1): BlockShape((), 0)})
    value = st.sampled_from([-1.0, -0.5, 0.0, 0.5, 1.0, NAN, math.inf, -math.inf]) | st.floats(-3, 3, width=32)
    scores = {}
    for i, j in arch.positions():
        for kind in (ATTENTION, MLP):
            key = SublayerKey(i, j, kind)
            if count := unit_count(arch, key, group):
                generator = torch.Generator().manual_seed(draw(st.integers(0, 2**31)))
                scores[key] = torch.randn(count, generator=generator)
                for unit in draw(st.sets(st.integers(0, count - 1), max_size=4)):
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
    plan = decide({heads: own}, ARCH, Limits(), rule="match", like={heads: like})
    assert plan.remove[heads] == (0, 1, 2), "the lowest of the own scores"


def test_nan_goes_first_then_the_lowest():
    assert lowest_first(scores_of(0.5, -2, NAN, math.inf, -math.inf)) == [2, 4, 1, 0, 3]
    plan = decide({HEADS: scores_of(3, -1, 2, NAN, 5, 6, 7, 8)}, ARCH, Limits(), rule="share", share=0.3)
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
    limits = Limits(limits.max_share, limits.min_heads, limits.min_width, limits.align, "ratio")
    plan = decide(scores, arch, limits, rule=rule, share=share)
    assert set(plan.remove) == set(scores)
    smaller = apply_plan(arch, plan, "ratio")
    for key, gone in plan.remove.items():
        before, after = arch.block(key.stage, key.block), smaller.block(key.stage, key.block)
        count = len(scores[key])
        assert list(gone) == sorted(set(gone))
        assert len(gone) <= limits.max_share * count + 1e-9, "at most the largest share"
        assert len(gone) <= unwanted(scores[key], rule, share=share), "never more than the rule wants"
        assert set(gone) == set(lowest_first(scores[key])[: len(gone)]), "the lowest scores"
        if key.kind == ATTENTION:
            assert len(after.heads) >= min(len(before.heads), limits.min_heads), "the floor of heads"
        else:
            assert after.hidden >= min(before.hidden, limits.min_width), "the floor of the width"
            assert after.hidden % limits.align == 0 or after.hidden == before.hidden, "aligned or untouched"


@pytest.mark.parametrize("group", ["ratio", "width", "1", "2"])
@pytest.mark.parametrize("align", [8, 16, 12])
def test_alignment_holds_for_every_group_size(group, align):
    for count in range(unit_count(ARCH, GROUPS, group) + 1):
        scores = torch.ones(unit_count(ARCH, GROUPS, group))
        scores[:count] = -1
        plan = decide({GROUPS: scores}, ARCH, Limits(align=align, group=group))
        hidden = apply_plan(ARCH, plan, group).block(2, 1).hidden
        assert hidden % align == 0 or hidden == 128


def test_attention_is_removed_wholly_only_where_that_is_allowed():
    bad = {HEADS: -torch.ones(8), GROUPS: -torch.ones(32)}
    assert len(decide(bad, ARCH, Limits()).remove[HEADS]) == 7
    assert decide(bad, ARCH, Limits(min_heads=0)).remove[HEADS] == tuple(range(8))
    assert decide(bad, ARCH, Limits()).remove[GROUPS] == tuple(range(32)), "an MLP may go by default"
    assert len(decide(bad, ARCH, Limits(min_width=5)).remove[GROUPS]) == 30, "two groups hold 5 channels"


@settings(max_examples=150)
@given(scored(), limits_strategy(), st.floats(0, 1), st.floats(0, 1), st.booleans())
def test_budgets_are_never_crossed(case, limits, min_parameters, min_macs, everything):
    arch, scores = case
    limits = Limits(1.0, limits.min_heads, limits.min_width, limits.align, "ratio")
    if everything:
        scores = {key: -torch.ones_like(values) for key, values in scores.items()}
    wanted = decide(scores, arch, limits)
    plan = within_budget(wanted, arch, limits, min_parameters=min_parameters, min_macs=min_macs)
    smaller, dense = apply_plan(arch, plan, "ratio"), arch.dense()
    floor = min(cost.parameters(arch), min_parameters * cost.parameters(dense))
    assert cost.parameters(smaller) >= floor - 1e-6 * floor, "parameters"
    floor = min(cost.macs(arch).linear, min_macs * cost.macs(dense).linear)
    assert cost.macs(smaller).linear >= floor - 1e-6 * floor, "MACs"
    for key, gone in plan.remove.items():
        assert set(gone) <= set(wanted.remove[key])
        assert set(gone) == set(lowest_first(scores[key])[: len(gone)]), "each sublayer loses its lowest first"
        if key.kind == MLP:
            left = smaller.block(key.stage, key.block).hidden
            assert left % limits.align == 0 or not gone, "aligned or untouched"


@pytest.mark.parametrize("removed", ["norm", "skip"])
@pytest.mark.parametrize("key", [HEADS, GROUPS], ids=["attention", "mlp"])
def test_the_last_unit_counts_with_what_goes_along(key, removed):
    """Output bias and norm go with a sublayer's last unit: a budget that has room for the unit alone must hold."""
    arch, limits = architecture(removed=removed), Limits(min_heads=0)
    plan = decide({key: -torch.ones(unit_count(arch, key, "ratio"))}, arch, limits)
    units_alone = cost.parameters(arch) - plan.units * unit_saving(arch, key, "ratio")[0]
    budget = units_alone / cost.parameters(arch)
    smaller = apply_plan(arch, within_budget(plan, arch, limits, min_parameters=budget, min_macs=0), "ratio")
    assert cost.parameters(smaller) >= units_alone
    least = cost.parameters(apply_plan(arch, plan, "ratio")) / cost.parameters(arch)
    enough = within_budget(plan, arch, limits, min_parameters=least - 1e-9, min_macs=0)
    assert enough.units == plan.units


def test_a_budget_is_used_up():
    scores = {key: -torch.ones(unit_count(ARCH, key, "ratio")) for i, j in ARCH.positions()
              for key in (SublayerKey(i, j, ATTENTION), SublayerKey(i, j, MLP))}  # fmt: skip
    plan = within_budget(decide(scores, ARCH, Limits()), ARCH, Limits(), min_parameters=0.5, min_macs=0)
    left = cost.parameters(apply_plan(ARCH, plan, "ratio")) / cost.parameters(ARCH)
    assert 0.5 <= left < 0.51


def test_without_a_budget_the_plan_stays():
    plan = decide({HEADS: -torch.ones(8)}, ARCH, Limits())
    assert within_budget(plan, ARCH, Limits(), min_parameters=0, min_macs=0) is plan


@pytest.mark.parametrize(("key", "group"), [(HEADS, "ratio"), (GROUPS, "ratio"), (GROUPS, "width")])
def test_the_saving_of_a_unit_is_what_its_removal_saves(key, group):
    smaller = apply_plan(ARCH, Plan({key: (0,)}, {}), group)
    saved = cost.parameters(ARCH) - cost.parameters(smaller), cost.macs(ARCH).linear - cost.macs(smaller).linear
    assert unit_saving(ARCH, key, group) == saved


def test_a_plan_can_be_looked_at_and_changes_nothing():
    scores = {HEADS: scores_of(1, -1, 2, -2, 3, 4, 5, 6), GROUPS: torch.linspace(-1, 1, 32)}
    copies = {key: values.clone() for key, values in scores.items()}
    text = ARCH.to_json()
    plan = decide(scores, ARCH, Limits())
    assert plan.remove == {HEADS: (1, 3), GROUPS: tuple(range(16))}
    assert plan.units == 18
    assert all(torch.equal(scores[key], copies[key]) for key in scores)
    smaller = apply_plan(ARCH, plan, "ratio")
    assert ARCH.to_json() == text
    assert smaller.block(2, 0) == BlockShape((0, 2, 4, 5, 6, 7), 128)
    assert smaller.block(2, 1) == BlockShape(tuple(range(8)), 64)
    again = apply_plan(smaller, Plan({HEADS: (1, 5)}, {}), "ratio")
    assert again.block(2, 0).heads == (0, 4, 5, 6), "units of the present model, heads in the dense numbering"


@pytest.mark.parametrize(("group", "size"), [("ratio", 4), ("width", 32), ("1", 1), ("64", 64)])
def test_group_sizes_follow_the_reading(group, size):
    assert group_size(group, ARCH, 2) == size
    assert unit_count(ARCH, GROUPS, group) == 128 // size


def test_a_group_that_does_not_divide_the_width_is_named():
    with pytest.raises(ValueError, match=r"prune.mlp-group 3 .* 128 of stage 2"):
        group_size("3", ARCH, 2)
    pruned = ARCH.with_blocks({(2, 1): BlockShape((0,), 6)})
    with pytest.raises(ValueError, match=r"another prune\.mlp-group"):
        unit_count(pruned, GROUPS, "ratio")
