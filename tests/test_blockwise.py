"""Algorithm 1 literally (`prune.order=block`): every sublayer is scored on the model that the cuts before it left."""

from dataclasses import replace

import pytest
import torch
from builders import architecture, block_of, hidden_of, inputs, left, lively_model, plan_of, tiny_config

import fedskew.pruning.score as score_module
from fedskew.model import cost
from fedskew.model.fusion import build
from fedskew.model.groups import ATTENTION, MLP, SublayerKey
from fedskew.pruning.annotations import NOTHING
from fedskew.pruning.criteria import READINGS
from fedskew.pruning.decide import decide, limits_of
from fedskew.pruning.score import score_units
from fedskew.pruning.slicing import slice_model
from fedskew.pruning.step import propose, prune_step
from fedskew.pruning.units import bundles, table_of

STAGES = (0, 1, 2, 3)


def settings(**values):
    return replace(tiny_config().prune, **({"order": "block", "min_heads": 0, "reading": "pool"} | values))


def naive(model, images, config, stages, seed=0, known=NOTHING):
    """Scores and removed units when the model is built anew and run whole after every single cut."""
    state, arch = model.state_dict(), model.architecture
    scores, remove = {}, {}
    for i, j in model.architecture.blocks:
        for kind in (ATTENTION, MLP):
            key = SublayerKey(i, j, kind)
            table = table_of(arch, config, STAGES)
            if i not in stages or key not in table:
                continue
            present = score_units(build(arch, state), images, config, {key: table[key]}, seed, known)[key]
            like = {key: present.reference} if config.rule == "match" else None
            units = bundles(arch, config.mlp_group)
            plan = decide({key: present.scores}, units, limits_of(config), rule=config.rule, share=config.share,
                          like=like)  # fmt: skip
            scores[key], remove[key] = present.scores, plan.remove[key]
            state, arch = slice_model(state, arch, plan)
    return scores, remove, arch


def assert_as_naive(model, images, config, stages=STAGES, known=NOTHING):
    scores, remove, arch = naive(model, images, config, stages, known=known)
    proposal = propose(model, images, config, stages, seed=0, known=known)
    assert set(proposal.plan.remove) == set(remove)
    for key, values in scores.items():
        torch.testing.assert_close(
            proposal.plan.scores[key], values, atol=1e-3, rtol=1e-3, equal_nan=True, msg=str(key)
        )
    assert dict(proposal.plan.remove) == remove
    return proposal.plan, arch


@pytest.mark.parametrize("removed", ["norm", "skip"])
@pytest.mark.parametrize("reading", READINGS)
def test_block_order_equals_rebuilding_the_model_after_every_cut(reading, removed):
    arch = architecture(image_size=40, removed=removed)  # padded and shifted windows
    model, (images, _) = lively_model(arch, seed=3), inputs(arch, 4)
    config = settings(reading=reading, removed=removed)
    plan, _ = assert_as_naive(model, images, config)
    at_once = propose(model, images, replace(config, order="step"), STAGES, seed=0).plan
    assert dict(plan.remove) != dict(at_once.remove), "or this test would not tell the orders apart"


@pytest.mark.parametrize("removed", ["norm", "skip"])
@pytest.mark.parametrize("kind", ["heads", "mlp"])
def test_a_sublayer_that_goes_wholly_is_what_the_next_one_is_scored_behind(kind, removed):
    arch = architecture(image_size=40, removed=removed)
    model, (images, _) = lively_model(arch, seed=3), inputs(arch, 4)
    alone = "mlp" if kind == "heads" else "heads"
    emptied = settings(removed=removed, rule="share", share=1.0, **{alone: False})
    _, smaller = assert_as_naive(model, images, emptied)
    emptied_kind = ATTENTION if kind == "heads" else MLP
    assert not any(units for key, units in smaller.units.items() if key.kind == emptied_kind)


@pytest.mark.parametrize(
    "values",
    [
        {"rule": "match", "criterion": "l1-norm"},
        {"rule": "match", "criterion": "random"},
        {"rule": "share", "share": 0.4},
        {"mlp_activation": "after-gelu", "mlp_group": "width"},
        {"align": 8, "min_heads": 1, "min_width": 8},
        {"max_share": 0.25},
        {"heads": False},
        {"mlp": False},
        {"views": 4},
    ],
    ids=str,
)
def test_rules_limits_and_readings_hold_in_block_order(values, monkeypatch):
    monkeypatch.setattr(score_module, "PIXELS_AT_ONCE", 2 * 64**2)  # several chunks
    arch = architecture()
    model, (images, _) = lively_model(arch, seed=1), inputs(arch, 5)
    plan, _ = assert_as_naive(model, images, settings(**values))
    assert plan.units > 0


def test_only_the_unlocked_stages_are_scored_and_the_network_runs_no_further():
    arch = architecture()
    model, (images, _) = lively_model(arch), inputs(arch, 4)
    ran = []
    handle = model.encoder.layers[2].register_forward_hook(lambda *_: ran.append(2))
    last = block_of(model, 2, 0).norm1.register_forward_hook(lambda *_: ran.append(2))
    plan, _ = assert_as_naive(model, images, settings(), stages=(1,))
    ran.clear()
    propose(model, images, settings(), (1,), seed=0)
    assert ran == []
    handle.remove()
    last.remove()
    assert {key.stage for key in plan.remove} == {1}


def test_the_step_cuts_what_the_plan_says_in_units_of_the_model_before_it():
    arch = architecture()
    model, (images, _) = lively_model(arch, seed=2), inputs(arch, 4)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    config = settings()
    step = prune_step(model, images, config, stages=STAGES, seed=0, judge=None)
    assert all(torch.equal(before[name], tensor) for name, tensor in model.state_dict().items()), "model untouched"
    state, smaller = slice_model(before, arch, step.plan)
    assert smaller == step.architecture
    assert all(torch.equal(tensor, step.state[name]) for name, tensor in state.items())
    moments = {name: torch.arange(tensor.numel(), dtype=torch.float32).view(tensor.shape)
               for name, tensor in before.items()}  # fmt: skip
    sliced, _ = slice_model(moments, arch, step.plan)
    assert {name: tensor.shape for name, tensor in sliced.items()} == {n: t.shape for n, t in step.state.items()}
    _, _, naive_arch = naive(model, images, config, STAGES)
    assert step.architecture == naive_arch
    assert all(sublayer.signs for sublayer in step.scored.values()), "halves are compared in this order too"


def test_a_pruned_model_is_stepped_through_in_its_own_units():
    arch = architecture()
    model, (images, _) = lively_model(arch, seed=4), inputs(arch, 4)
    first = plan_of(arch, {SublayerKey(0, 0, ATTENTION): (0,), SublayerKey(1, 1, MLP): tuple(range(0, 16, 2)),
                           SublayerKey(2, 0, MLP): tuple(range(32))})  # fmt: skip
    state, smaller = slice_model(model.state_dict(), arch, first)
    assert hidden_of(smaller, 2, 0) == 0
    plan, _ = assert_as_naive(build(smaller, state).eval(), images, settings())
    assert SublayerKey(2, 0, MLP) not in plan.remove, "what is gone is not scored"


def test_nothing_is_left_to_remove_where_nothing_was_trained():
    """Freezing and calibrating do not contradict each other: in block order a frozen stage scores as it did."""
    arch = architecture()
    model, (images, _) = lively_model(arch, seed=5), inputs(arch, 4)
    config = settings()
    step = prune_step(model, images, config, stages=(0, 1), seed=0, judge=None)
    assert step.plan.units > 0
    again = propose(build(step.architecture, step.state).eval(), images, config, (0, 1), seed=0)
    assert again.plan.units == 0
    at_once = replace(config, order="step")
    step = prune_step(model, images, at_once, stages=(0, 1), seed=0, judge=None)
    assert propose(build(step.architecture, step.state).eval(), images, at_once, (0, 1), seed=0).plan.units > 0


def test_a_budget_is_kept_by_giving_up_a_part_over_all_sublayers():
    arch = architecture()
    model, (images, _) = lively_model(arch), inputs(arch, 4)
    free = propose(model, images, settings(), STAGES, seed=0).plan
    _, smallest = slice_model(model.state_dict(), arch, free)
    budget = 0.5 * (1 + cost.parameters(smallest) / cost.parameters(arch))
    kept = propose(model, images, settings(min_parameters=budget), STAGES, seed=0).plan
    _, smaller = slice_model(model.state_dict(), arch, kept)
    assert budget <= cost.parameters(smaller) / cost.parameters(arch) < budget + 0.02
    assert all(set(units) <= set(free.remove[key]) for key, units in kept.remove.items())
    assert any(kept.remove[key] for key in kept.remove if key.stage == 3), "not used up by the first stages"


def test_the_guard_gives_units_back_in_block_order_too():
    arch = architecture()
    model, (images, _) = lively_model(arch), inputs(arch, 4)
    whole = sum(hidden_of(arch, i, j) for i, j in arch.blocks)

    def judge(candidate):
        return sum(hidden_of(candidate.architecture, i, j) for i, j in arch.blocks) / whole

    config = settings(rollback=0.2, align=8)
    step = prune_step(model, images, config, stages=STAGES, seed=0, judge=judge)
    assert step.given_back > 0
    assert judge(build(step.architecture, step.state)) >= 0.8
    assert all(hidden_of(step.architecture, i, j) % 8 == 0 for i, j in arch.blocks)


def test_a_half_block_that_loses_nothing_runs_once():
    arch = architecture(stages=1)
    arch = left(arch, 0, 1, heads=(0, 1), hidden=32)
    model, (images, _) = lively_model(arch), inputs(arch, 4)
    runs = []
    for j in range(2):
        block_of(model, 0, j).mlp.fc1.register_forward_hook(lambda *_, j=j: runs.append(j))
    propose(model, images, settings(rule="share", share=0.0), (0,), seed=0)
    assert runs == [0, 0, 1, 1], "once for each half of the images"
