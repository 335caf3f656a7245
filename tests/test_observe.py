"""What a criterion gets to see: the norms that the paper's equations speak of, in one pass that leaves no trace."""

import random

import numpy as np
import pytest
import torch
from builders import architecture, block_of, heads_of, inputs, lively_model
from torch.nn import functional

from fedskew.model.groups import ATTENTION, MLP, SublayerKey
from fedskew.pruning.criteria import make_criterion
from fedskew.pruning.observe import observe
from fedskew.pruning.units import bundles

KEY = SublayerKey(0, 0, ATTENTION)
SHIFTED = (0, 1)


def observe_all(model, images, group="ratio", **options):
    found = {}
    table = bundles(model.architecture, group)
    observe(model, images, lambda seen: found.update({seen.key: seen}), table, **options)
    return found


def in_stages(model, *stages):
    return bundles(model.architecture, "ratio", [key for key in model.architecture.groups if key.stage in stages])


def block_input(model, stage, block, images, metadata):
    captured = []
    handle = block_of(model, stage, block).register_forward_pre_hook(lambda _, args: captured.append(args[0]))
    with torch.no_grad():
        model(images, metadata)
    handle.remove()
    return captured[0]


def attention_by_hand(model, stage, block, tokens):
    """softmax(QKᵀ/√D + bias + mask)·V before the projection, as [B, side, side, heads, D], written pixel by pixel.

    Every query looks at the keys of its own window of the rolled grid that it was a neighbour of before rolling.
    """
    arch = model.architecture
    shape, side, window = arch.spec.stages[stage], arch.spec.resolution(stage), arch.spec.window(stage)
    module = block_of(model, stage, block)
    shift = window // 2 if block % 2 and side > window else 0
    heads, dim = len(heads_of(arch, stage, block)), shape.head_dim
    grid = -(-side // window) * window
    rolled = torch.zeros(tokens.shape[0], grid, grid, shape.width)
    for row in range(side):
        for column in range(side):
            rolled[:, row, column] = module.norm1(tokens[:, (row + shift) % side, (column + shift) % side])
    q, k, v = module.attn.qkv(rolled).unflatten(-1, (3, heads, dim)).unbind(3)  # each [B, grid, grid, heads, D]

    def region(position):  # tokens that were neighbours before rolling share a region; padding belongs to the last
        return 0 if position < grid - window else 1 if position < grid - shift else 2

    out = torch.zeros(tokens.shape[0], grid, grid, heads, dim)
    for row in range(grid):
        for column in range(grid):
            top, left = row // window * window, column // window * window
            logits, values = [], []
            for r in range(top, top + window):
                for c in range(left, left + window):
                    entry = (row - r + window - 1) * (2 * window - 1) + (column - c + window - 1)
                    logit = (q[:, row, column] * k[:, r, c]).sum(-1) / dim**0.5
                    logit = logit + module.attn.relative_position_bias_table[entry]
                    if shift and (region(row), region(column)) != (region(r), region(c)):
                        logit = logit - 100.0
                    logits.append(logit)
                    values.append(v[:, r, c])
            weights = torch.stack(logits, -1).softmax(-1)  # [B, heads, window²]
            out[:, row, column] = torch.einsum("bhk,bkhd->bhd", weights, torch.stack(values, 1))
    return out


@pytest.mark.parametrize("image_size", [32, 40], ids=["whole-windows", "padded-windows"])
@pytest.mark.parametrize("block", [(0, 0), SHIFTED, (1, 1)], ids=["plain", "shifted", "second-stage"])
def test_head_norms_are_those_of_the_attention_output_before_the_projection(image_size, block):
    arch = architecture(image_size=image_size, stages=2)
    model, (images, metadata) = lively_model(arch), inputs(arch)
    stage, index = block
    seen = observe_all(model, images)[SublayerKey(stage, index, ATTENTION)]
    with torch.no_grad():
        expected = attention_by_hand(model, stage, index, block_input(model, stage, index, images, metadata))
    side, window = arch.spec.resolution(stage), arch.spec.window(stage)
    windows = -(-side // window)
    norms = expected.norm(dim=-1)
    for number in range(windows**2):
        top, left = number // windows * window, number % windows * window
        for position in range(window**2):
            row, column = top + position // window, left + position % window
            assert seen.valid[number, position].item() == (row < side and column < side)
            torch.testing.assert_close(seen.norms[:, number, position], norms[:, row, column], atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("image_size", [32, 40], ids=["whole-windows", "padded-windows"])
@pytest.mark.parametrize("activation", ["before-gelu", "after-gelu"])
@pytest.mark.parametrize(("group", "size"), [("ratio", 4), ("width", 8), ("2", 2), ("32", 32)])
def test_mlp_norms_are_those_of_the_groups_in_unshifted_windows(image_size, activation, group, size):
    arch = architecture(image_size=image_size, stages=1)
    model, (images, _) = lively_model(arch), inputs(arch)
    captured = []
    handle = block_of(model, *SHIFTED).mlp.fc1.register_forward_hook(lambda *args: captured.append(args[2]))
    found = observe_all(model, images, group, activation=activation)
    handle.remove()
    seen, hidden = found[SublayerKey(*SHIFTED, MLP)], captured[0]
    hidden = functional.gelu(hidden) if activation == "after-gelu" else hidden  # [B, side, side, C]
    side, window = arch.spec.resolution(0), 4
    windows = -(-side // window)
    assert seen.norms.shape == (2, windows**2, window**2, 32 // size)
    for row in range(side):
        for column in range(side):
            number, position = row // window * windows + column // window, row % window * window + column % window
            expected = hidden[:, row, column].reshape(2, -1, size).norm(dim=-1)
            torch.testing.assert_close(seen.norms[:, number, position], expected)
            assert seen.valid[number, position]
    assert seen.valid.sum() == side**2


def test_an_observation_has_the_weights_that_go_with_each_unit(dense):
    arch, model, images, _ = dense
    found = observe_all(model, images)
    assert len(found) == 2 * sum(stage.depth for stage in arch.spec.stages)
    for key, seen in found.items():
        module = block_of(model, key.stage, key.block)
        sublayer = module.attn if key.kind == ATTENTION else module.mlp
        biases = sublayer.proj.bias.numel() if key.kind == ATTENTION else sublayer.fc2.bias.numel()
        whole = sum(parameter.numel() for parameter in sublayer.parameters()) - biases
        assert all(weight.shape[0] == seen.units for weight in seen.weights)
        assert sum(weight.numel() for weight in seen.weights) == whole, "every parameter but the output bias"
    l1 = make_criterion("l1-norm", reading="mean", seed=0)(found[KEY]).scores()
    qkv = block_of(model, 0, 0).attn.qkv
    attention = block_of(model, 0, 0).attn
    by_hand = (
        qkv.weight.view(3, 2, 4, 8)[:, 1].abs().sum()
        + qkv.bias.view(3, 2, 4)[:, 1].abs().sum()
        + attention.proj.weight.view(8, 2, 4)[:, 1].abs().sum()
        + attention.relative_position_bias_table[:, 1].abs().sum()
    )
    assert l1[1].item() == pytest.approx(by_hand.item(), rel=1e-5)


def test_only_the_stages_asked_for_are_observed_each_once(dense):
    _, model, images, _ = dense
    keys = []
    observe(model, images, lambda seen: keys.append(seen.key), in_stages(model, 1, 3))
    assert len(keys) == len(set(keys)) == 8
    assert {key.stage for key in keys} == {1, 3}
    ran = []
    for stage in range(4):
        block_of(model, stage, 0).norm1.register_forward_hook(lambda *_, stage=stage: ran.append(stage))
    observe(model, images, lambda seen: None, in_stages(model, 1))
    assert ran == [0, 1], "the network runs no further than the last of them"


def fingerprint(model):
    """Everything about a model that observing could change."""
    modules, parameters = list(model.modules()), list(model.parameters())
    return (
        {name: tensor.clone() for name, tensor in model.state_dict().items()},
        sum(len(module._forward_hooks) + len(module._forward_pre_hooks) for module in modules),
        [None if parameter.grad is None else parameter.grad.clone() for parameter in parameters],
        [parameter.requires_grad for parameter in parameters],
        [module.training for module in modules],
    )


def assert_untouched(before, after):
    assert all(torch.equal(before[0][name], after[0][name]) for name in before[0]), "weights"
    assert before[1] == after[1], "hooks"
    assert all(x is y is None or torch.equal(x, y) for x, y in zip(before[2], after[2], strict=True)), "gradients"
    assert before[3:] == after[3:], "requires_grad, mode"


def test_observing_is_one_forward_pass_that_leaves_no_trace(dense):
    arch, _, images, metadata = dense
    model = lively_model(arch).train()
    block_of(model, 1, 0).eval()  # a part in another mode than the whole
    model(images, metadata).sum().backward()
    block_of(model, 0, 0).attn.qkv.weight.requires_grad_(False)
    passes = []
    handle = model.encoder.patch_embed.register_forward_hook(lambda *_: passes.append(torch.is_grad_enabled()))
    before, states = fingerprint(model), (torch.get_rng_state(), np.random.get_state()[1].copy(), random.getstate())
    observe_all(model, images)
    assert passes == [False], "one pass, without gradients"
    assert_untouched(before, fingerprint(model))
    handle.remove()
    assert torch.equal(states[0], torch.get_rng_state())
    assert (states[1] == np.random.get_state()[1]).all()
    assert states[2] == random.getstate()


def test_a_failed_observation_leaves_no_trace_either(dense):
    arch, _, images, _ = dense
    model = lively_model(arch).train()
    before = fingerprint(model)

    def fail(seen):
        raise ValueError("no")

    with pytest.raises(ValueError, match="no"):
        observe(model, images, fail, in_stages(model, 0, 1))
    assert_untouched(before, fingerprint(model))


def test_random_scores_depend_on_seed_and_sublayer_alone(dense):
    _, model, images, _ = dense
    found = observe_all(model, images)
    first, again, other = (make_criterion("random", reading="mean", seed=seed) for seed in (1, 1, 2))
    scores = {key: first(seen).scores() for key, seen in found.items()}
    assert all(torch.equal(scores[key], again(seen).scores()) for key, seen in found.items())
    assert not torch.equal(scores[KEY], other(found[KEY]).scores())
    assert scores[KEY].tolist() == [0.12148553133010864, 0.6448807120323181], "as in earlier versions"
    twin = SublayerKey(0, 1, ATTENTION)
    assert not torch.equal(scores[KEY], scores[twin])


def test_the_reversed_criterion_is_minus_the_skewness(dense):
    _, model, images, _ = dense
    seen = observe_all(model, images)[KEY]
    pair = [make_criterion(name, reading="pool", seed=0)(seen).scores() for name in ("skewness", "skewness-reversed")]
    assert torch.equal(pair[0], -pair[1])
