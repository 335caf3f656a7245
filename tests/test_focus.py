"""Lesion focus: tokens come back to their places, controls are controls, and the summary tells a claim from chance."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch
from builders import architecture, inputs, lively_model, tiny_config
from scipy import stats
from timm.models.swin_transformer import window_partition

import fedskew.pruning.score as score_module
from fedskew.data.masks import read_masks
from fedskew.data.samples import DataError
from fedskew.learning.datasets import open_data
from fedskew.model.groups import ATTENTION, MLP, WINDOWS, Probe, SublayerKey
from fedskew.pruning.criteria import skewness
from fedskew.pruning.norms import to_picture
from fedskew.pruning.observe import observe
from fedskew.pruning.units import bundles
from fedskew.tools.lesion_attention import UnitFocus, control_masks, focus_of, measure_focus
from fedskew.tools.lesion_summary import focus_summary, stratified_probability


@pytest.mark.parametrize("shift", [0, 2])
def test_tokens_come_back_from_shifted_windows(shift):
    tokens = torch.randn(2, 8, 8, 3)
    windows = window_partition(torch.roll(tokens, (-shift, -shift), (1, 2)), (4, 4))  # [B·nW, 4, 4, 3]
    norms = windows.flatten(1, 2).unflatten(0, (2, 4))
    assert torch.equal(to_picture(norms, Probe("", True, WINDOWS, 8, 4, shift)), tokens)


def test_focus_tells_inside_from_outside_on_each_image():
    inside = torch.zeros(2, 2, 8, 8)
    inside[0, 0, 2:6, 2:6] = 1
    inside[1, 0, :2] = 1
    inside[:, 1, 6:] = 1  # the second kind of mask lies elsewhere
    own = inside[:, 0]
    norms = torch.stack([1 + own, 2 - own, torch.ones(2, 8, 8)], -1)
    focus = focus_of(norms, inside)
    assert focus.shape == (2, 2, 3)
    for image in range(2):
        assert torch.allclose(focus[image, 0], torch.tensor([2.0, 0.5, 1.0]).log(), atol=1e-4)
    assert focus[1, 1, 0] < 0, "active elsewhere than in the second mask"


def test_half_a_token_inside_counts_half():
    norms, inside = torch.tensor([1.0, 2.0, 4.0]).view(1, 1, 3, 1), torch.tensor([1.0, 0.5, 0.0]).view(1, 1, 1, 3)
    assert focus_of(norms, inside).item() == pytest.approx(np.log((2 / 1.5) / (5 / 1.5)), abs=1e-5)


def test_controls_know_nothing_of_the_lesion_at_hand():
    generator = torch.Generator().manual_seed(0)
    masks = torch.zeros(9, 20, 20)
    for number in range(9):
        masks[number, : 2 + number, : 5 + number % 3] = 1
    found = control_masks(masks, seed=4)
    assert torch.equal(found["own"], masks)
    numbers = [int(mask.sum()) for mask in found["other"]]
    assert sorted(numbers) == sorted(int(mask.sum()) for mask in masks), "each mask once"
    assert all(not torch.equal(a, b) for a, b in zip(masks, found["other"], strict=True)), "never its own"
    assert not torch.equal(found["other"], control_masks(masks, seed=5)["other"]), "drawn from the seed"
    assert torch.equal(found["other"], control_masks(masks, seed=4)["other"])
    disc = found["disc"][0]
    assert all(torch.equal(disc, other) for other in found["disc"])
    assert disc.sum() == pytest.approx(masks.mean() * 400, abs=0.5), "the mean area"
    rows, columns = torch.nonzero(disc, as_tuple=True)
    furthest = ((rows - 9.5) ** 2 + (columns - 9.5) ** 2).max()
    outside = torch.nonzero(disc == 0)
    assert ((outside - 9.5) ** 2).sum(1).min() >= furthest, "a disc in the middle"
    random = torch.rand(2, 6, 6, generator=generator).round()
    assert torch.equal(control_masks(random, 0)["other"], random.flip(0)), "of two images, the other one"
    with pytest.raises(ValueError, match="at least 2"):
        control_masks(masks[:1], 0)


def test_every_unit_is_measured_on_every_image_that_counts(monkeypatch):
    arch = architecture(image_size=64, stages=3)
    model, (images, _) = lively_model(arch), inputs(arch, 5)
    masks = torch.zeros(5, 64, 64)
    for number in range(5):
        masks[number, 8 * number :, 16:48] = 1
    masks[3] = 1  # no outside: does not count, neither on image 3 nor where image 3 lends its mask
    controls = control_masks(masks, seed=0)
    counted = [i for i in range(5) if all(0.01 < controls[kind][i].mean() < 0.99 for kind in controls)]
    assert len(counted) == 3
    whole = measure_focus(model, images, controls, reading="pool")
    monkeypatch.setattr(score_module, "PIXELS_AT_ONCE", 2 * 64**2)
    for key, unit in measure_focus(model, images, controls, reading="pool").items():
        assert unit.focus["own"].shape == (3, len(unit.skewness)) == unit.focus["disc"].shape
        for kind in controls:
            torch.testing.assert_close(unit.focus[kind], whole[key].focus[kind], msg="in chunks")
    seen = {}
    observe(model, images, lambda now: seen.update({now.key: now}), bundles(arch, "ratio"))
    key = SublayerKey(0, 0, MLP)
    torch.testing.assert_close(whole[key].skewness, skewness(seen[key], reading="pool").scores())
    tokens = to_picture(seen[key].norms, arch.groups[key].probe)
    inside = controls["other"].unflatten(1, (16, 4)).unflatten(3, (16, 4)).mean((2, 4))  # share of each token
    for row, image in enumerate(counted):
        weight = inside[image][..., None]
        means = [(tokens[image] * part).sum((0, 1)) / part.sum() for part in (weight, 1 - weight)]
        torch.testing.assert_close(whole[key].focus["other"][row], (means[0] / means[1]).log(), atol=1e-4, rtol=1e-4)


def test_the_stratified_probability_is_van_elterens_mean_of_mann_whitneys():
    generator = np.random.default_rng(0)
    values = generator.integers(0, 6, (4, 17)).astype(float)  # with ties
    kept = generator.random(17) < 0.4
    strata = [np.arange(0, 6), np.arange(6, 17)]
    found = stratified_probability(values, kept, strata)
    for row, value in zip(values, found, strict=True):
        total, weights = 0.0, 0.0
        for units in strata:
            a, b = row[units][kept[units]], row[units][~kept[units]]
            weight = len(a) * len(b) / (len(a) + len(b) + 1)
            total += weight * stats.mannwhitneyu(a, b).statistic / (len(a) * len(b))
            weights += weight
        assert value == pytest.approx(total / weights)


IMAGES, UNITS = 60, 12


def invented(own, other, disc, *, seed=0, stages=2, blocks=2):
    """Focus in which kept units exceed pruned ones of their sublayer by `own`, `other`, `disc` on average."""
    generator = np.random.default_rng(seed)
    found = {}
    for stage in range(stages):
        for block in range(blocks):
            for kind in (ATTENTION, MLP):
                score = torch.from_numpy(generator.normal(size=UNITS)).float()
                noise = generator.normal(size=(IMAGES, UNITS))
                focus = {
                    mask: torch.from_numpy(
                        noise + 0.05 * generator.normal(size=(IMAGES, UNITS)) + lift * (score > 0).numpy()
                    )
                    for mask, lift in (("own", own), ("other", other), ("disc", disc))
                }
                found[SublayerKey(stage, block, kind)] = UnitFocus(score, focus)
    return found


def test_a_real_effect_of_the_own_mask_is_seen_and_a_confounded_one_is_not():
    summary = focus_summary(invented(1.0, 0.0, 0.0), seed=1)
    for kind in (ATTENTION, MLP):
        assert list(summary[kind]) == ["across", "within", "stage 0", "stage 1"]
        for scope in summary[kind].values():
            assert scope["own"]["low"] > 0.5
            assert scope["own"]["low"] <= scope["own"]["probability"] <= scope["own"]["high"]
            assert scope["own_minus_other"]["low"] > 0 < scope["own_minus_disc"]["low"]
            assert scope["verdict"] == "the own mask gives more than both controls"
    confounded = focus_summary(invented(1.0, 1.0, 1.0), seed=1)["mlp"]["within"]
    assert confounded["own"]["low"] > 0.5, "kept units have more focus"
    assert confounded["own_minus_other"]["low"] <= 0 <= confounded["own_minus_other"]["high"], "but on any mask"
    assert confounded["verdict"] == "the own mask gives no more than another image's mask and a central disc"
    central = focus_summary(invented(1.0, 0.0, 1.5), seed=1)["mlp"]["within"]
    assert central["verdict"] == "the own mask gives no more than a central disc"


def test_differences_between_sublayers_count_across_but_not_within():
    """All units of a stage are alike, but stage 1 has more focus and more kept units."""
    generator = np.random.default_rng(2)
    found = {}
    for stage, kept in ((0, 2), (1, 10)):
        score = torch.where(torch.arange(UNITS) < kept, 1.0, -1.0)
        focus = torch.from_numpy(2 * stage + generator.normal(size=(IMAGES, UNITS)))
        found[SublayerKey(stage, 0, MLP)] = UnitFocus(score, dict.fromkeys(("own", "other", "disc"), focus))
    summary = focus_summary(found)
    assert list(summary) == ["mlp"]
    assert summary["mlp"]["across"]["own"]["low"] > 0.7
    within = summary["mlp"]["within"]["own"]
    assert abs(within["probability"] - 0.5) < 0.2 < summary["mlp"]["across"]["own"]["probability"] - 0.5
    assert summary["mlp"]["within"]["own_minus_other"] == {"difference": 0.0, "low": 0.0, "high": 0.0}


def test_the_interval_of_a_paired_difference_is_that_of_the_same_images():
    """A bootstrap by hand with the same draws: percentiles of own minus other, not of two independent ones."""
    found = {key: unit for key, unit in invented(0.4, 0.2, 0.0).items() if key == SublayerKey(1, 0, ATTENTION)}
    (unit,) = found.values()
    drawn = np.random.default_rng(7).multinomial(IMAGES, np.full(IMAGES, 1 / IMAGES), 1000)
    kept = (unit.skewness > 0).numpy()
    apart = []
    for counts in drawn:
        rows = np.repeat(np.arange(IMAGES), counts)
        chances = []
        for mask in ("own", "other"):
            means = unit.focus[mask].numpy()[rows].mean(0)
            chances.append((means[kept][:, None] > means[~kept]).mean())
        apart.append(chances[0] - chances[1])
    scope = focus_summary(found, seed=7)["attention"]["stage 1"]
    low, high = np.percentile(apart, [2.5, 97.5])
    assert (scope["own_minus_other"]["low"], scope["own_minus_other"]["high"]) == pytest.approx((low, high), abs=1e-4)
    assert low < high


def test_a_sublayer_with_one_sign_only_and_a_silent_unit_do_not_count():
    found = invented(1.0, 0.0, 0.0, stages=1, blocks=2)
    first, second = SublayerKey(0, 0, MLP), SublayerKey(0, 1, MLP)
    found[first] = UnitFocus(torch.ones(UNITS), found[first].focus)
    silent = found[second].skewness.clone()
    silent[0] = torch.nan
    found[second] = UnitFocus(silent, found[second].focus)
    scope = focus_summary(found)["mlp"]["within"]
    assert scope["kept"] + scope["pruned"] == UNITS - 1
    found[second] = UnitFocus(-torch.ones(UNITS), found[second].focus)
    nothing = focus_summary(found)["mlp"]
    assert nothing["within"]["own"] == {"probability": None, "low": None, "high": None}
    assert nothing["within"]["verdict"] == "nothing to compare"
    assert nothing["across"]["kept"] == nothing["across"]["pruned"] == UNITS
    json.dumps(focus_summary(found), allow_nan=False)


def test_masks_lie_where_the_images_are(generated):
    data = open_data(tiny_config().data, 32)
    ids = [sample.image_id for sample in data.samples[:20]]
    masks = read_masks(generated, ids, image_size=32, fit="squash")
    pixels = data.cached.images[:20, 2:34, 2:34].mean(-1)
    darker = [(image[mask < 0.5].mean() - image[mask > 0.5].mean()) for image, mask in zip(pixels, masks, strict=True)]
    assert sum(difference > 0 for difference in darker) > 14, "lesions are darker than the skin around them"


def test_a_missing_mask_is_named(generated):
    with pytest.raises(DataError, match=r"ISIC_nowhere_segmentation\.png"):
        read_masks(generated, ["ISIC_nowhere"], image_size=32, fit="squash")
