"""The promise that everything stands on: the sliced model computes what the dense one does with units masked."""

from dataclasses import replace

import pytest
import torch
from builders import architecture, block_of, heads_of, hidden_of, inputs, lively_model, plan_of, tiny_config, vit
from hypothesis import given, settings
from hypothesis import strategies as st
from masking import MaskedReference, kept_parameters
from timm.models.swin_transformer import SwinTransformer, SwinTransformerBlock

from fedskew.config.schema import ModelConfig
from fedskew.model.catalogue import dense_architecture
from fedskew.model.codec import architecture_from_json
from fedskew.model.families.swin_modules import PrunedSwinBlock, _window_order
from fedskew.model.fusion import build
from fedskew.model.groups import ATTENTION, MLP
from fedskew.pruning.criteria import READINGS
from fedskew.pruning.slicing import slice_model
from fedskew.pruning.step import propose, prune_step
from fedskew.pruning.units import bundles

TOLERANCE = 1e-5
ALL_STAGES = (0, 1, 2, 3)


def assert_equal_outputs(found, expected, message=""):
    scale = expected.abs().max().item()
    error = (found - expected).abs().max().item()
    assert error <= TOLERANCE * max(1.0, scale), f"{message}: off by {error:.2e} of {scale:.2e}"


def check_plan(model, plan, group, images, metadata, reference=None):
    """Slice by a plan and compare with the masked dense model; returns the smaller model and the reference."""
    reference = reference or MaskedReference(model)
    state, smaller = slice_model(model.state_dict(), model.architecture, plan)
    reference.follow(plan, group)
    pruned = build(architecture_from_json(smaller.to_json()), state).eval()
    with torch.no_grad():
        found = pruned(images, metadata)
    assert_equal_outputs(found, reference(images, metadata))
    return pruned, reference


def remove_all(arch, choose):
    """A plan that removes the units that `choose(key, count)` gives, in every sublayer."""
    counts = {key: units.count for key, units in bundles(arch, "ratio").items()}
    remove = {key: tuple(choose(key, count)) for key, count in counts.items()}
    return plan_of(arch, remove, scores={key: torch.zeros(count) for key, count in counts.items()})


@pytest.mark.parametrize("multimodal", [True, False], ids=["multimodal", "image-only"])
@pytest.mark.parametrize("removed", ["norm", "skip"])
def test_the_dense_model_is_timms(multimodal, removed):
    """Without it, the equality below could hold between two models that are both wrong."""
    arch = architecture(image_size=40, multimodal=multimodal, removed=removed)
    model, (images, metadata) = lively_model(arch), inputs(arch)
    heads = tuple(stage.heads for stage in arch.spec.stages)
    timm = SwinTransformer(img_size=40, patch_size=4, num_classes=0, embed_dim=8, depths=(2,) * 4, num_heads=heads,
                           window_size=4, head_dim=4).eval()  # fmt: skip
    timm.load_state_dict(model.encoder.state_dict(), strict=True)
    with torch.no_grad():
        feature = timm(images) * arch.weights[0]
        for column, (name, _) in enumerate(arch.vocabularies):
            feature = feature + arch.weights[column + 1] * model.embeddings[name].weight[metadata[:, column]]
        assert_equal_outputs(model(images, metadata), model.classifier(feature))


@pytest.mark.parametrize("shifted", [False, True], ids=["plain", "shifted"])
@pytest.mark.parametrize(("side", "window"), [(8, 4), (10, 4), (7, 3), (5, 7)], ids=str)
def test_a_swin_block_is_timms_bit_for_bit(side, window, shifted):
    """In training too: padded windows, moved ones, and one window that is larger than the picture."""
    ours = PrunedSwinBlock(width=12, side=side, head_dim=4, window=window, shifted=shifted, heads=3, hidden=24,
                           removed="norm", drop_path=0.0)  # fmt: skip
    theirs = SwinTransformerBlock(12, (side, side), num_heads=3, head_dim=4, window_size=window, mlp_ratio=2.0,
                                  shift_size=window // 2 if shifted else 0)  # fmt: skip
    theirs.load_state_dict(ours.state_dict(), strict=True)
    tokens = torch.randn(2, side, side, 12, generator=torch.Generator().manual_seed(side), requires_grad=True)
    found, expected = (block(tokens) for block in (ours, theirs))
    assert torch.equal(found, expected)
    weights = torch.randn(found.shape, generator=torch.Generator().manual_seed(1))
    gradients = ([torch.autograd.grad((out * weights).sum(), [tokens, *block.parameters()])
                  for block, out in ((ours, found), (theirs, expected))])  # fmt: skip
    assert all(torch.equal(a, b) for a, b in zip(*gradients, strict=True))


def test_a_traced_pass_leaves_nothing_behind(dense):
    """Window orders are kept from pass to pass; those of a trace are fakes, and would make fakes of later answers."""
    _, model, images, metadata = dense
    with torch.no_grad():
        expected = model(images, metadata)
    _window_order.cache_clear()
    torch.export.export(model, (images, metadata))
    with torch.no_grad():
        found = model(images, metadata)
    assert type(found) is torch.Tensor
    assert torch.equal(found, expected)


@pytest.mark.parametrize("removed", ["norm", "skip"])
@pytest.mark.parametrize("group", ["ratio", "width", "2"])
@pytest.mark.parametrize("activation", ["before-gelu", "after-gelu"])
@pytest.mark.parametrize("reading", READINGS)
@pytest.mark.parametrize("family", [architecture, vit], ids=["swin", "vit"])
def test_pruned_equals_masked_for_every_reading(family, reading, activation, group, removed):
    arch = family(removed=removed)
    model, (images, metadata) = lively_model(arch, seed=3), inputs(arch)
    settings_ = replace(
        tiny_config().prune, reading=reading, mlp_activation=activation, mlp_group=group, removed=removed, min_heads=0
    )
    plan = propose(model, images, settings_, ALL_STAGES, seed=0).plan
    assert 0 < plan.units < sum(len(scores) for scores in plan.scores.values()), "the plan must remove something"
    pruned, _ = check_plan(model, plan, group, images, metadata)
    assert kept_parameters(pruned.architecture) < kept_parameters(arch)


@pytest.mark.parametrize("image_size", [64, 40], ids=["whole-windows", "padded-windows"])
@pytest.mark.parametrize("multimodal", [True, False], ids=["multimodal", "image-only"])
@pytest.mark.parametrize("fused", [False, True], ids=["plain", "fused"])
def test_pruned_equals_masked_for_every_kind_of_model(image_size, multimodal, fused):
    arch = architecture(image_size=image_size, multimodal=multimodal)
    model, (images, metadata) = lively_model(arch), inputs(arch)
    plan = remove_all(arch, lambda key, count: range(key.stage % 2, count, 2))
    pruned, reference = check_plan(model, plan, "ratio", images, metadata)
    for i, j in arch.blocks:
        for block in (block_of(pruned, i, j), block_of(model, i, j)):
            block.attn.fused_attn = fused
    with torch.no_grad():
        assert_equal_outputs(pruned(images, metadata), reference(images, metadata), "fused attention")


@pytest.mark.parametrize("removed", ["norm", "skip"])
@pytest.mark.parametrize(
    "kinds", [(ATTENTION,), (MLP,), (ATTENTION, MLP)], ids=["attention", "mlp", "both"]
)  # fmt: skip
@pytest.mark.parametrize("block", [(0, 0), (0, 1), (1, 1), (3, 0), None], ids=str)
def test_a_sublayer_that_is_wholly_removed_is_the_identity_of_its_input(block, kinds, removed):
    arch = architecture(removed=removed)
    model, (images, metadata) = lively_model(arch), inputs(arch)

    def choose(key, count):
        return range(count) if key.kind in kinds and block in (None, (key.stage, key.block)) else ()

    pruned, _ = check_plan(model, remove_all(arch, choose), "ratio", images, metadata)
    gone = block_of(pruned, *(block or (2, 1)))
    assert (gone.attn is None, gone.mlp is None) == (ATTENTION in kinds, MLP in kinds), "its tensors are gone"
    norms = sum("norm" in name for name, _ in gone.named_parameters())
    assert norms == (4 if removed == "norm" else 4 - 2 * len(kinds)), "`skip` drops the norms too"


@pytest.mark.parametrize("removed", ["norm", "skip"])
@pytest.mark.parametrize("family", [architecture, vit], ids=["swin", "vit"])
def test_calibration_composes(family, removed):
    """Pruning what is left, again and again, equals masking the union in the dense model."""
    arch = family(removed=removed)
    model, (images, metadata) = lively_model(arch, seed=5), inputs(arch, count=3)
    reference, current = MaskedReference(model), model
    for step in range(4):
        prune = replace(
            tiny_config().prune, rule="share", share=0.4, min_heads=0, criterion="skewness" if step % 2 else "l1-norm"
        )
        plan = propose(current, images, prune, ALL_STAGES[: step + 1], seed=step).plan
        current, _ = check_plan(current, plan, "ratio", images, metadata, reference)
    wholly = remove_all(current.architecture, lambda key, count: range(count) if (key.stage or key.block) == 1 else ())
    current, _ = check_plan(current, wholly, "ratio", images, metadata, reference)
    assert kept_parameters(current.architecture) < 0.5 * kept_parameters(arch)
    for i, j in arch.blocks:
        assert list(heads_of(current.architecture, i, j)) == reference.left[i, j, "heads"], "the dense numbering"


@settings(max_examples=60)
@given(st.data())
def test_any_plan_whatever_composes(data):
    draw = data.draw
    shared = {"multimodal": draw(st.booleans()), "removed": draw(st.sampled_from(["norm", "skip"]))}
    if draw(st.integers(0, 3)) == 0:
        arch = vit(depth=draw(st.integers(1, 3)), class_token=draw(st.booleans()), **shared)
    else:
        arch = architecture(image_size=draw(st.sampled_from([32, 36, 52])), stages=draw(st.integers(1, 3)),
                            window=draw(st.sampled_from([2, 3, 4])), **shared)  # fmt: skip
    group = draw(st.sampled_from(["ratio", "width", "1", "8"]))
    model = current = lively_model(arch, seed=draw(st.integers(0, 5)))
    reference, (images, metadata) = MaskedReference(model), inputs(arch)
    for _ in range(draw(st.integers(1, 2))):
        remove, shape = {}, current.architecture
        for key, units in bundles(shape, group).items():
            if draw(st.booleans()):
                some = st.sets(st.integers(0, units.count - 1), max_size=units.count)
                remove[key] = tuple(sorted(draw(some | st.just(set(range(units.count))))))
        current, _ = check_plan(current, plan_of(shape, remove, group), group, images, metadata, reference)


def test_swin_t_at_224_pixels():
    arch = dense_architecture(ModelConfig())
    model, (images, metadata) = lively_model(arch), inputs(arch, count=1)
    prune = tiny_config(prune={"min_heads": 0}).prune
    plan = propose(model, images, prune, ALL_STAGES, seed=0).plan
    emptied = {
        key: tuple(range(len(plan.scores[key]))) for key in plan.remove if key.block == 1 and key.stage in (0, 3)
    }
    plan = plan.less(dict(plan.remove) | emptied)
    pruned, _ = check_plan(model, plan, "ratio", images, metadata)
    assert kept_parameters(pruned.architecture) < 0.8 * kept_parameters(arch)


def test_slicing_copies_what_is_kept_and_changes_nothing_else(dense):
    arch, model, _, _ = dense
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    plan = remove_all(arch, lambda key, count: (0,) if key.stage == 0 else ())
    state, smaller = slice_model(model.state_dict(), arch, plan)
    assert all(torch.equal(before[name], tensor) for name, tensor in model.state_dict().items()), "the model itself"
    for name, tensor in state.items():
        if not name.startswith("encoder.layers.0.blocks"):
            assert torch.equal(tensor, before[name]), name
    kept = before["encoder.layers.0.blocks.0.mlp.fc1.weight"][4:]
    assert torch.equal(state["encoder.layers.0.blocks.0.mlp.fc1.weight"], kept)
    assert (heads_of(smaller, 0, 0), hidden_of(smaller, 0, 0)) == ((1,), 28)
    sliced = state["encoder.layers.0.blocks.0.attn.qkv.weight"]
    assert sliced.is_contiguous()
    assert sliced.untyped_storage().nbytes() == sliced.numel() * 4, "no larger tensor is kept alive"


def test_a_step_leaves_the_model_as_it_was_and_returns_a_model_that_loads(dense):
    arch, model, images, _ = dense
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    step = prune_step(
        model, images, tiny_config().prune, stages=ALL_STAGES, seed=0, judge=lambda _: pytest.fail("no guard")
    )
    assert step.plan.units > 0
    assert step.architecture != arch
    assert step.seconds_total >= step.seconds_scoring > 0
    assert all(torch.equal(before[name], tensor) for name, tensor in model.state_dict().items())
    build(step.architecture, step.state)


def test_sublayers_that_the_configuration_leaves_alone_stay(dense):
    arch, model, images, _ = dense
    for alone, kind in (("heads", ATTENTION), ("mlp", MLP)):
        prune = replace(tiny_config().prune, **{alone: False})
        step = prune_step(model, images, prune, stages=ALL_STAGES, seed=0, judge=None)
        changed = {key.kind for key in arch.groups if arch.left[key] != step.architecture.left[key]}
        assert changed == {ATTENTION, MLP} - {kind}


@pytest.mark.parametrize("method", ["skewness", "skewness-reversed", "random", "l1-norm"])
def test_every_criterion_removes_as_many_units_as_the_sign_rule_of_skewness_would(dense, method):
    _, model, images, _ = dense
    plain = propose(model, images, tiny_config().prune, ALL_STAGES, seed=0).plan
    prune = replace(tiny_config().prune, criterion=method, rule="match")
    plan = propose(model, images, prune, ALL_STAGES, seed=0).plan
    assert {key: len(units) for key, units in plan.remove.items()} == {
        key: len(units) for key, units in plain.remove.items()
    }
    assert (dict(plan.remove) == dict(plain.remove)) == (method == "skewness")
