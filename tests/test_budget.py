"""The rule `budget`: every criterion ends at the same widths, within one unit of the size that was asked for."""

from __future__ import annotations

import math
import re
from dataclasses import replace

import pytest
import torch
from builders import architecture, inputs, lively_model, run_here, tiny_config, vit
from hypothesis import given, settings
from hypothesis import strategies as st

import fedskew
from fedskew.config.schema import ConfigError
from fedskew.model import cost
from fedskew.model.groups import ATTENTION, SublayerKey
from fedskew.pruning.annotations import Annotations
from fedskew.pruning.budget import check_budget, only_step, quotas
from fedskew.pruning.criteria import CRITERIA
from fedskew.pruning.decide import apply_plan, decide, limits_of
from fedskew.pruning.schedule import budget_steps, stages_to_prune, steps_left
from fedskew.pruning.step import propose, prune_step
from fedskew.pruning.units import table_of
from fedskew.runs.start_checks import check_settings
from fedskew.sweeps.study import StudyError, read_study

SWIN = architecture()
ALL = (0, 1, 2, 3)


def budget(**values):
    return replace(tiny_config().prune, **({"rule": "budget"} | values))


def shares(arch):
    dense = arch.dense()
    return cost.parameters(arch) / cost.parameters(dense), cost.macs(arch).linear / cost.macs(dense).linear


def after(arch, config, stages, left=None):
    """The architecture after a step of the rule, whatever the scores."""
    table = table_of(arch, config, stages)
    quota = quotas(arch, config, stages, left or dict.fromkeys(stages, 1))
    scores = {key: torch.rand(units.count) for key, units in table.items()}
    return apply_plan(arch, decide(scores, table, limits_of(config), rule="budget", quota=quota))


def through(arch, config, rounds, skipped=()):
    """The architectures after each pruning round of a run."""
    found = []
    for number in range(rounds + 1):
        if stages := stages_to_prune(config, number, arch.stages):
            left = steps_left(config, number, arch.stages, rounds)
            arch = arch if number in skipped else after(arch, config, stages, left)
            found.append(arch)
    return found


def one_less(arch, key, channels):
    """The architecture with one unit less in a sublayer; None if a floor of one head or no channel forbids it."""
    now = arch.left[key]
    if isinstance(now, int):
        return arch.with_left({key: now - channels}) if now >= channels else None
    return arch.with_left({key: now[1:]}) if len(now) > 1 else None


def by_greed(arch, target, least, channels):
    """The largest sublayer by the share of its dense units that is left after a cut loses a unit, until none fits."""
    open_ = set(arch.groups)
    while open_:
        options = []
        for key in open_:
            smaller = one_less(arch, key, channels)
            if smaller is None:
                continue
            options.append((1 - smaller.units[key] / arch.groups[key].units, key, smaller))
        if not options:
            break
        _, key, smaller = min(options, key=lambda option: option[:2])
        if target(smaller) >= least:
            arch = smaller
        else:
            open_.discard(key)
    return arch


@pytest.mark.parametrize("family", [architecture, vit], ids=["swin", "vit"])
@pytest.mark.parametrize("kind", ["min_parameters", "min_macs"])
@pytest.mark.parametrize("share", [0.35, 0.62, 0.85])
def test_a_step_ends_where_greed_does_and_no_unit_more_could_go(family, kind, share):
    arch = family(stages=3) if family is architecture else family()
    config = budget(**{kind: share}, mlp_group="2" if family is vit else "4")
    found = after(arch, config, tuple(range(arch.stages)))
    measure = (lambda a: cost.parameters(a)) if kind == "min_parameters" else (lambda a: cost.macs(a).linear)
    least = share * measure(arch)
    channels = 2 if family is vit else 4
    expected = by_greed(arch, measure, least, channels)
    assert found.units == expected.units
    assert measure(found) >= least
    for key in found.groups:
        smaller = one_less(found, key, channels)
        assert smaller is None or measure(smaller) < least, key


def test_all_criteria_end_at_the_same_widths_and_keep_different_units(dense):
    arch, model, images, metadata = dense
    known = Annotations(torch.tensor([1, 4]), metadata, torch.ones(2, 64, 64).tril())
    widths, heads = set(), set()
    for criterion in CRITERIA:
        for order in ("step", "block"):
            config = budget(criterion=criterion, order=order, min_parameters=0.4)
            found = apply_plan(arch, propose(model, images, config, ALL, 0, known=known).plan)
            widths.add(tuple(found.units.items()))
            heads.add(tuple(kept for _, kept in found.kept if isinstance(kept, tuple)))
            assert shares(found)[0] == pytest.approx(0.4, abs=0.005)
    assert len(widths) == 1
    assert len(heads) > len(CRITERIA)


def test_of_two_budgets_the_one_that_is_reached_first_counts():
    both = after(SWIN, budget(min_parameters=0.3, min_macs=0.6), ALL)
    assert shares(both)[1] == pytest.approx(0.6, abs=0.01)
    assert shares(both)[0] > 0.4
    other = after(SWIN, budget(min_parameters=0.8, min_macs=0.3), ALL)
    assert shares(other)[0] == pytest.approx(0.8, abs=0.01)


def test_each_step_takes_the_same_factor_and_the_last_one_lands():
    config = budget(min_parameters=0.35, first_round=2, last_round=5, steps_per_stage=1, calibrate=True)
    schedule = {number: steps_left(config, number, 4, 9) for number in range(1, 7)}
    assert schedule[2] == schedule[1] == {0: 4, 1: 3, 2: 2, 3: 1}
    assert schedule[4] == {0: 2, 1: 2, 2: 2, 3: 1}
    assert schedule[6] == {}
    steps = through(SWIN, config, 9)
    final = after(SWIN, config, ALL)
    assert len(steps) == 4
    assert abs(shares(steps[-1])[0] - shares(final)[0]) < 0.01
    key = SublayerKey(0, 1, "mlp")  # 8 groups of 4 channels, pruned in all four steps
    last = final.units[key] // 4
    assert [step.units[key] // 4 for step in steps] == [round(8 * (last / 8) ** (k / 4)) for k in (1, 2, 3, 4)]
    assert steps[0].units[SublayerKey(3, 0, "mlp")] == 256, "a stage that is not unlocked yet keeps all"


@pytest.mark.parametrize("schedule", [{}, {"calibrate": False}, {"freeze": True}, {"freeze": True, "thaw": True},
                                      {"steps_per_stage": 2, "interval": 2}, {"max_stage": 2},
                                      {"first_round": 0, "last_round": 3}, {"order": "block", "min_heads": 0}],
                         ids=str)  # fmt: skip
def test_every_schedule_lands_within_a_unit(schedule):
    share = 0.8 if "max_stage" in schedule else 0.55
    config = budget(min_parameters=share, **schedule)
    rounds = 20
    check_budget(SWIN, config, budget_steps(config, 4, rounds))
    found = through(SWIN, config, rounds)[-1]
    assert share <= shares(found)[0] < share + 0.01
    for stage in range(config.max_stage + 1, 4):
        assert all(found.units[key] == SWIN.units[key] for key in found.units if key.stage == stage)


def test_what_a_round_could_not_do_is_made_up_for_by_those_after_it():
    config = budget(min_macs=0.5, first_round=1, last_round=6)
    plain, missed = through(SWIN, config, 6), through(SWIN, config, 6, skipped=(3, 5))
    assert shares(missed[3])[1] == shares(missed[4])[1]
    assert missed[-1].units == plain[-1].units


def test_a_model_that_is_small_enough_loses_nothing():
    config = budget(min_parameters=0.5)
    small = after(SWIN, config, ALL)
    assert after(small, config, ALL).units == small.units
    assert after(small, replace(config, min_parameters=0.9), ALL).units == small.units


@given(
    share=st.floats(0.05, 0.95), macs=st.booleans(), align=st.sampled_from([1, 8, 16]), min_heads=st.integers(0, 2),
    min_width=st.sampled_from([0, 4, 24]), group=st.sampled_from(["ratio", "width", "2"]), heads=st.booleans(),
    max_share=st.sampled_from([0.4, 1.0]), steps=st.integers(1, 4),
)  # fmt: skip
@settings(max_examples=60)
def test_floors_and_alignment_hold_and_what_is_said_to_be_the_least_is_within_reach(
    share, macs, align, min_heads, min_width, group, heads, max_share, steps
):
    arch = architecture(stages=3, depth=1)
    kind = "min_macs" if macs else "min_parameters"
    config = budget(align=align, min_heads=min_heads, min_width=min_width, mlp_group=group, heads=heads,
                    max_share=max_share, last_round=2 + steps, **{kind: share})  # fmt: skip
    plan = list(budget_steps(config, 3, 9))
    for _ in range(1 if max_share == 1 else 3):
        try:
            check_budget(arch, config, plan)
            break
        except ConfigError as error:
            (least,) = re.findall(rf"{kind.replace('_', '-')}=\S+ is not reached: (\S+) is the least", str(error))
            config = replace(config, **{kind: float(least)})
    check_budget(arch, config, plan)
    share = getattr(config, kind)
    found = through(arch, config, 9)[-1]
    assert shares(found)[macs] >= share - 1e-9
    for key, units in found.units.items():
        if key.kind == ATTENTION:
            assert units >= min(min_heads, arch.units[key])
            assert heads or units == arch.units[key]
        else:
            assert units >= min_width
            assert units % align == 0 or units == arch.units[key]


@pytest.mark.parametrize(
    ("values", "told"),
    [
        ({}, r"needs the size to go down to: set prune\.min-parameters or prune\.min-macs"),
        ({"min_parameters": 0.05, "min_width": 16}, r"min-parameters=0\.05 is not reached: 0\.\d+ is the least"),
        ({"min_macs": 0.2, "mlp": False}, r"prune\.min-macs=0\.2 is not reached: 0\.\d+ is the least"),
        ({"min_parameters": 0.3, "min_macs": 0.2, "last_round": 1}, "min-parameters=0.3 .* and prune.min-macs=0.2"),
    ],
)
def test_a_budget_that_is_none_or_out_of_reach_is_one_line_at_the_start(values, told, tmp_path):
    config = tiny_config(prune={"rule": "budget"} | values)
    with pytest.raises(ConfigError, match=told) as error:
        check_settings(config)
    assert "\n" not in str(error.value)
    words = " ".join(f"prune.{key.replace('_', '-')}={value}" for key, value in values.items())
    (tmp_path / "study.yaml").write_text(
        "preset: demo\nset: model.name=swin_micro_patch4_window4_32 federation.rounds=2\n"
        f"cells:\n  own: {{set: prune.rule=budget prune.first-round=1 {words}}}\n"
    )
    with pytest.raises(StudyError, match=f"cell own: .*{told}"):
        read_study(tmp_path / "study.yaml", tmp_path / "out")


def test_the_least_share_is_that_of_the_floors():
    config = budget(min_parameters=0.01)
    with pytest.raises(ConfigError) as error:
        check_budget(SWIN, config, only_step(ALL))
    bare = SWIN.with_left({key: (0,) if key.kind == ATTENTION else 0 for key in SWIN.groups})
    (least,) = re.findall(r"is not reached: (\S+) is the least", str(error.value))
    assert float(least) == math.ceil(1e4 * shares(bare)[0]) / 1e4


def test_a_run_ends_at_its_budget(generated, tmp_path):
    prune = {"criterion": "taylor", "rule": "budget", "min_parameters": 0.6, "first_round": 1, "batch_size": 16}
    run = run_here(tiny_config(prune=prune, federation={"rounds": 3}, run={"output_dir": str(tmp_path)}))
    records = run.records()
    assert records[-1]["parameters"] / records[0]["parameters"] == pytest.approx(0.6, abs=0.02)
    model = fedskew.load(run)
    assert shares(model.architecture)[0] >= 0.6


def test_a_step_that_is_rolled_back_whole_changes_nothing(dense):
    _, model, images, _ = dense
    verdicts = iter([0.9, *[0.1] * 10])
    step = prune_step(model, images, budget(min_parameters=0.5, rollback=0.1), stages=ALL, seed=0,
                      judge=lambda _: next(verdicts), left=dict.fromkeys(ALL, 3))  # fmt: skip
    assert step.plan.units == 0
    assert step.given_back > 0


def test_pruning_in_python_takes_labels_and_a_budget(finished_run):
    model = fedskew.load(finished_run)
    side, classes = model.architecture.image_size, len(model.classes)
    images, metadata = inputs(model.architecture, 6)
    labels = torch.arange(6) % classes
    now = shares(model.architecture)[0]
    target = round(now * 0.8, 3)
    smaller, plan = fedskew.prune(model, images, labels=labels, metadata=metadata, criterion="taylor", rule="budget",
                                  min_parameters=target)  # fmt: skip
    assert plan.units > 0
    assert shares(smaller.architecture)[0] == pytest.approx(target, abs=0.02)
    masks = torch.zeros(6, side, side)
    masks[:, :10, 5:] = 1
    fedskew.prune(model, images, masks=masks, criterion="lesion-attention", rule="share")
    with pytest.raises(ConfigError, match="is not reached"):
        fedskew.prune(model, images, rule="budget", min_parameters=0.0001)
    with pytest.raises(ConfigError, match="need labels"):
        fedskew.prune(model, images, criterion="taylor", rule="share")
    for wrong, told in (({"labels": labels[:5]}, r"labels must be \[6\]"),
                        ({"labels": labels + classes}, f"labels must be indices below {classes}"),
                        ({"labels": labels, "metadata": metadata[:, :1]}, r"metadata must be \[6, 3\]"),
                        ({"labels": labels, "metadata": metadata - 5}, "metadata must be indices"),
                        ({"masks": masks[:, :4]}, r"masks must be \[6, 32, 32\]")):  # fmt: skip
        with pytest.raises(ValueError, match=told):
            fedskew.prune(model, images, criterion="taylor", rule="share", **wrong)


def test_lively_models_of_both_families_reach_a_budget_in_block_order():
    arch = vit(depth=2)
    model, (images, metadata) = lively_model(arch), inputs(arch, 4)
    config = budget(order="block", criterion="taylor", min_macs=0.6)
    plan = propose(model, images, config, (0,), 0, known=Annotations(torch.arange(4), metadata)).plan
    found = apply_plan(arch, plan)
    assert shares(found)[1] >= 0.6
    assert found.units == after(arch, config, (0,)).units
