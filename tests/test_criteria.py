"""Every criterion against a second derivation: SciPy, NumPy, or autograd on a loss written out by hand."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from builders import architecture, inputs, lively_model, tiny_config, vit
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats
from test_blockwise import assert_as_naive

import fedskew.pruning.gradients as gradients_module
import fedskew.pruning.score as score_module
from fedskew.config.schema import ConfigError
from fedskew.model.groups import ATTENTION, MLP, SublayerKey
from fedskew.pruning.annotations import Annotations
from fedskew.pruning.criteria import CRITERIA, READINGS, WITHOUT_SIGN, make_criterion
from fedskew.pruning.observe import Observation, observe
from fedskew.pruning.score import check_annotations, few_value_warnings, score_units, view
from fedskew.pruning.step import propose
from fedskew.pruning.units import bundles
from fedskew.runs.start_checks import check_combination, idle_settings

KEY = SublayerKey(0, 0, MLP)
FAMILIES = pytest.mark.parametrize("family", [architecture, vit], ids=["swin", "vit"])


def prune_settings(**values):
    return replace(tiny_config().prune, **values)


def scores_of(criterion, norms, valid=None, weights=(), **more):
    """Scores of units by norms [images, windows, positions, units]."""
    valid = torch.ones(norms.shape[1:3], dtype=torch.bool) if valid is None else torch.from_numpy(valid)
    seen = Observation(KEY, torch.as_tensor(norms), valid, [torch.as_tensor(weight) for weight in weights])
    return make_criterion(criterion, **({"reading": "pool", "seed": 0} | more))(seen).scores().numpy()


@pytest.mark.parametrize("reading", READINGS)
def test_the_kurtosis_is_scipys_in_every_reading(reading):
    norms = np.random.default_rng(3).exponential(2, (3, 4, 9, 5))
    valid = np.random.default_rng(4).random((4, 9)) < 0.8
    found = scores_of("kurtosis", norms, valid, reading=reading)
    if reading == "pool":
        expected = stats.kurtosis(norms[:, valid], axis=(0, 1))
    elif reading == "mean":
        means = (norms * valid[..., None]).sum((0, 1)) / (3 * valid.sum(0)[:, None])
        expected = stats.kurtosis(means, axis=0)
    elif reading == "first":
        expected = stats.kurtosis(norms[0, 0][valid[0]], axis=0)
    else:
        expected = np.mean([[stats.kurtosis(norms[b, w][valid[w]]) for w in range(4)] for b in range(3)], axis=(0, 1))
    np.testing.assert_allclose(found, expected, rtol=1e-5)


@pytest.mark.parametrize("reading", ["pool", "mean", "per-window"])
def test_the_kurtosis_of_chunks_is_that_of_all_images(monkeypatch, reading):
    arch = architecture(image_size=40, stages=2)
    model, (images, _) = lively_model(arch), inputs(arch, 5)
    config, table = prune_settings(criterion="kurtosis", reading=reading), bundles(arch, "ratio")
    whole = {}
    observe(model, images, lambda seen: whole.update({seen.key: seen}), table)
    monkeypatch.setattr(score_module, "PIXELS_AT_ONCE", 2 * 40**2)
    found = score_units(model, images, config, table, seed=0)
    for key, seen in whole.items():
        expected = make_criterion("kurtosis", reading=reading, seed=0)(seen).scores()
        torch.testing.assert_close(found[key].scores, expected, atol=1e-4, rtol=1e-4)
        assert found[key].signs is not None, "a kurtosis has a sign, whose agreement can be told"


def test_a_constant_has_no_kurtosis():
    found = scores_of("kurtosis", np.concatenate([np.full((2, 1, 8, 1), 3.0), np.arange(16.0).reshape(2, 1, 8, 1)], 3))
    assert np.isnan(found[0])
    assert found[1] == pytest.approx(stats.kurtosis(np.arange(16.0)))


def test_few_values_of_a_kurtosis_are_warned_of(dense):
    _, model, images, _ = dense
    config = prune_settings(criterion="kurtosis", reading="mean")
    (line,) = few_value_warnings(score_units(model, images, config, bundles(model.architecture, "ratio"), 0), "mean")
    assert "stage 3" in line
    assert "4 values" in line


def test_the_activation_norm_is_the_mean_of_what_lies_in_the_picture():
    norms, valid = np.arange(24.0).reshape(2, 2, 3, 2), np.array([[True, True, False], [True, False, False]])
    found = scores_of("activation-norm", norms, valid)
    np.testing.assert_allclose(found, norms[:, valid].mean((0, 1)), rtol=1e-6)  # not the mean of the windows' means


def test_the_l2_norm_is_the_length_of_all_weights_together():
    weights = [np.array([[3.0, 0.0], [1.0, 2.0]]), np.array([[4.0], [2.0]])]
    assert scores_of("l2-norm", np.zeros((1, 1, 1, 2)), weights=weights).tolist() == [5.0, 3.0]


def band(values, boundary):
    """Scores of `automatic` of units whose L1 norms are given."""
    return scores_of("automatic", np.zeros((1, 1, 1, len(values))), weights=[np.asarray(values)[:, None]],
                     boundary=boundary)  # fmt: skip


def test_the_automatic_boundary_is_the_band_of_its_paper():
    sums = np.array([1.0, 4, 4, 4, 4, 4, 4, 4, 4, 7, 5, 3])
    found = band(sums, 1.5)
    np.testing.assert_allclose(found, 1.5 - np.abs(sums - sums.mean()) / sums.std(), rtol=1e-6)
    assert (found <= 0).tolist() == [True, *[False] * 8, True, False, False], "both tails go"
    assert band([2.0, 2.0, 2.0], 0.7).tolist() == pytest.approx([0.7] * 3), "no deviation: all stay"
    assert band([0.0, 0.0], 0.7).tolist() == pytest.approx([0.7] * 2)
    on_the_boundary = band([1.0, 1.0, 1.0, 1.0, 6.0], 2.0)
    assert (on_the_boundary > 0).all(), "|s − μ| = c·σ stays"


SUMS = st.lists(st.floats(0, 1e4, width=32), min_size=1, max_size=40)
BOUNDARIES = st.floats(0.3, 4)


@given(SUMS, BOUNDARIES)
@settings(max_examples=200)
def test_at_most_n_over_c_squared_units_lie_outside_the_band(sums, boundary):
    assert (band(sums, boundary) <= 0).sum() <= len(sums) / boundary**2


@given(st.lists(st.floats(0, 1e4, width=32), min_size=1, max_size=10), st.data())
@settings(max_examples=200)
def test_none_of_few_units_lies_outside_the_band(sums, data):
    boundary = data.draw(st.floats(max(0.3, (len(sums) - 1) ** 0.5), 5))
    assert (band(sums, boundary) > 0).all()


@given(SUMS, BOUNDARIES, st.sampled_from([0.125, 8.0]), st.randoms())
def test_the_band_does_not_depend_on_scale_or_order(sums, boundary, scale, random):
    order = list(range(len(sums)))
    random.shuffle(order)
    found = band(sums, boundary)
    np.testing.assert_allclose(band(np.asarray(sums) * scale, boundary), found, atol=1e-4)
    np.testing.assert_allclose(band(np.asarray(sums)[order], boundary), found[order], atol=1e-4)


def labels_of(arch, count):
    return torch.arange(count) * 3 % len(arch.classes)


def taylor_by_hand(model, images, metadata, labels, group):
    """Σ|w·g| of every unit, from the gradients that autograd leaves in a model whose loss is the mean of all."""
    model.zero_grad()
    torch.nn.functional.cross_entropy(model(images, metadata), labels).backward()
    found = {}
    for key, units in bundles(model.architecture, group).items():
        each = torch.zeros(units.count)
        for cut in units.group.cuts:
            weight = model.encoder.get_parameter(cut.name)
            terms = (weight * weight.grad).abs().movedim(cut.axis, 0)
            terms = terms.reshape(len(terms), -1).sum(1)  # one a row or column
            width = len(terms) // cut.parts // units.count
            for row, term in enumerate(terms.tolist()):
                each[row % (width * units.count) // width] += term
        found[key] = each.detach()
    model.zero_grad()
    return found


@FAMILIES
@pytest.mark.parametrize("views", [1, 4])
@pytest.mark.parametrize("group", ["ratio", "width"])
def test_taylor_is_the_gradient_of_the_whole_whatever_the_chunks(monkeypatch, family, views, group):
    arch = family()
    model, (images, metadata) = lively_model(arch), inputs(arch, 7)
    labels = labels_of(arch, 7)
    side = arch.image_size
    expected = taylor_by_hand(model, torch.cat([view(images, number) for number in range(views)]),
                              metadata.repeat(views, 1), labels.repeat(views), group)  # fmt: skip
    config, known = prune_settings(criterion="taylor", views=views, mlp_group=group), Annotations(labels, metadata)
    whole = score_units(model, images, config, bundles(arch, group), 0, known)
    monkeypatch.setattr(score_module, "PIXELS_AT_ONCE", 3 * side**2)
    monkeypatch.setattr(gradients_module, "PIXELS_AT_ONCE", 2 * side**2)
    parts = score_units(model, images, config, bundles(arch, group), 0, known)
    for key, scores in expected.items():
        torch.testing.assert_close(whole[key].scores, scores, rtol=1e-4, atol=1e-6)
        torch.testing.assert_close(parts[key].scores, scores, rtol=1e-4, atol=1e-6)
        assert whole[key].signs is None, "scores without a sign have no agreement"


def test_looking_at_gradients_leaves_no_trace():
    arch = architecture(stages=2)
    model, (images, metadata) = lively_model(arch).train(), inputs(arch)
    model.encoder.layers[0].requires_grad_(False)
    frozen = {name for name, parameter in model.named_parameters() if not parameter.requires_grad}
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    known = Annotations(labels_of(arch, 2), metadata)
    scored = score_units(model, images, prune_settings(criterion="taylor"), bundles(arch, "ratio"), 0, known)
    assert (scored[KEY].scores > 0).all(), "frozen weights have gradients too"
    assert all(parameter.grad is None for parameter in model.parameters())
    assert {name for name, parameter in model.named_parameters() if not parameter.requires_grad} == frozen
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())
    assert all(module.training for module in model.modules())


@FAMILIES
@pytest.mark.parametrize("criterion", ["taylor", "kurtosis", "automatic", "activation-norm", "l2-norm"])
def test_block_by_block_is_cutting_the_model_and_looking_again(family, criterion):
    arch = architecture(stages=2) if family is architecture else vit()
    model, (images, metadata) = lively_model(arch, seed=2), inputs(arch, 4)
    rule = {"rule": "share", "share": 0.4} if criterion in WITHOUT_SIGN else {"boundary": 0.8}
    prune = prune_settings(criterion=criterion, order="block", views=2, **rule)
    stages = tuple(range(arch.stages))
    plan, _ = assert_as_naive(model, images, prune, stages, Annotations(labels_of(arch, 4), metadata))
    assert plan.units > 0


def test_metadata_that_are_not_given_count_as_unknown():
    arch = architecture(stages=2)
    model, (images, metadata) = lively_model(arch), inputs(arch)
    config, table, labels = prune_settings(criterion="taylor"), bundles(arch, "ratio"), labels_of(arch, 2)
    found = [score_units(model, images, config, table, 0, Annotations(labels, given))[KEY].scores
             for given in (None, torch.zeros_like(metadata), metadata)]  # fmt: skip
    assert torch.equal(found[0], found[1])
    assert not torch.equal(found[0], found[2])


@FAMILIES
@pytest.mark.parametrize("views", [1, 8])
def test_lesion_attention_is_the_share_of_the_norm_inside_the_masks(family, views):
    arch = family(image_size=40) if family is architecture else family()
    model, (images, _) = lively_model(arch), inputs(arch, 3)
    side = arch.image_size
    masks = torch.zeros(3, side, side)
    masks[0, : side // 2, : side // 4], masks[1, side // 3 :, side // 5 :], masks[2, 5:9, 20:] = 1, 1, 1
    config = prune_settings(criterion="lesion-attention", rule="share", views=views)
    found = score_units(model, images, config, bundles(arch, "ratio"), 0, Annotations(masks=masks))
    above, below = {}, {}
    for number in range(views):
        shown, inside = view(images, number), view(masks, number)
        for key, norms in tokens_by_hand(model, shown).items():  # [B, side, side, units]
            share = torch.nn.functional.interpolate(inside[:, None], norms.shape[1:3], mode="area")[:, 0]
            above[key] = above.get(key, 0) + torch.einsum("bhw,bhwu->u", share, norms)
            below[key] = below.get(key, 0) + norms.sum((0, 1, 2))
    for key in above:
        torch.testing.assert_close(found[key].scores, above[key] / below[key], rtol=1e-4, atol=1e-5)


def tokens_by_hand(model, images):
    """Norms of the MLPs' units, token by token of the picture, straight from the modules."""
    arch, found, handles = model.architecture, {}, []
    for key, units in bundles(arch, "ratio").items():
        if key.kind == MLP:
            module = model.encoder.get_submodule(units.group.probe.module)

            def keep(_, __, output, key=key, units=units):
                norms = output.unflatten(-1, (units.count, -1)).norm(dim=-1)
                prefix, side = units.group.probe.prefix, units.group.probe.side
                found[key] = norms[:, prefix:].unflatten(1, (side, side)) if norms.ndim == 3 else norms

            handles.append(module.register_forward_hook(keep))
    with torch.no_grad():
        model.encoder(images)
    for handle in handles:
        handle.remove()
    return found


def test_what_a_criterion_needs_of_the_images_is_asked_for(dense):
    _, model, images, metadata = dense
    for criterion, told in (("taylor", "looks at gradients of the loss.*need labels.*none are given"),
                            ("lesion-attention", "looks at lesion masks, and no run has any")):  # fmt: skip
        for order in ("step", "block"):
            config = prune_settings(criterion=criterion, rule="share", order=order)
            with pytest.raises(ConfigError, match=told):
                propose(model, images, config, (0,), 0, known=Annotations(metadata=metadata))
    with pytest.raises(ConfigError, match="lesion masks"):
        check_combination(tiny_config(prune={"criterion": "lesion-attention", "rule": "share"}))
    check_combination(tiny_config(prune={"criterion": "taylor", "rule": "share"}))


def test_a_reference_of_skewness_goes_with_gradients(dense):
    arch, model, images, metadata = dense
    known, table = Annotations(labels_of(arch, len(images)), metadata), bundles(arch, "ratio")
    matched = score_units(model, images, prune_settings(criterion="taylor", rule="match"), table, 0, known)
    plain = score_units(model, images, prune_settings(), table, 0)
    assert all(torch.equal(matched[key].reference, plain[key].scores) for key in table)


def test_scores_of_criteria_without_sign_are_never_negative(dense):
    arch, model, images, metadata = dense
    known = Annotations(labels_of(arch, len(images)), metadata, torch.ones(len(images), 64, 64))
    for name in CRITERIA:
        scored = score_units(model, images, prune_settings(criterion=name), bundles(arch, "ratio"), 0, known)
        negative = any((found.scores < 0).any() for found in scored.values())
        assert negative != (name in WITHOUT_SIGN) or name == "automatic", name
        assert check_annotations(prune_settings(criterion=name), known) is not None


def test_a_boundary_without_the_automatic_criterion_is_idle():
    def told(criterion):
        return list(idle_settings(tiny_config(prune={"boundary": 3.0, "criterion": criterion})))

    assert [line for line in told("skewness") if line.startswith("prune.boundary=3 has no effect")]
    assert told("automatic") == []


def test_heads_have_scores_by_every_criterion(dense):
    arch, model, images, metadata = dense
    known = Annotations(labels_of(arch, len(images)), metadata, torch.ones(len(images), 64, 64))
    for name in CRITERIA:
        scored = score_units(model, images, prune_settings(criterion=name), bundles(arch, "ratio"), 0, known)
        heads = scored[SublayerKey(2, 1, ATTENTION)].scores
        assert heads.shape == (8,)
        assert heads.dtype == torch.float32
        assert heads.unique().numel() > 1 or name in ("lesion-attention", "automatic"), name
