"""Lesion focus: tokens come back to their places, and a unit that is active inside the lesion only is seen as such."""

from __future__ import annotations

import pytest
import torch
from builders import architecture, inputs, lively_model, tiny_config
from timm.models.swin_transformer import window_partition

from fedskew.data.masks import read_masks
from fedskew.data.prepare import open_data
from fedskew.data.samples import DataError
from fedskew.pruning.focus import _focus, focus_summary, measure_focus, to_tokens


@pytest.mark.parametrize("shift", [0, 2])
def test_tokens_come_back_from_shifted_windows(shift):
    tokens = torch.randn(2, 8, 8, 3)
    windows = window_partition(torch.roll(tokens, (-shift, -shift), (1, 2)), (4, 4))  # [B·nW, 4, 4, 3]
    norms = windows.flatten(1, 2).unflatten(0, (2, 4))
    assert torch.equal(to_tokens(norms, 8, shift), tokens)


def test_focus_tells_inside_from_outside():
    inside = torch.zeros(2, 8, 8)
    inside[:, 2:6, 2:6] = 1
    norms = torch.stack([1 + inside, 2 - inside, torch.ones(2, 8, 8)], -1)
    focus = _focus(norms, inside)
    assert torch.allclose(focus, torch.tensor([2.0, 0.5, 1.0]).log(), atol=1e-4)


def test_every_unit_is_measured_and_summed_up():
    arch = architecture(image_size=64, stages=3)
    images, metadata = inputs(arch, 4)
    masks = torch.zeros(4, 64, 64)
    masks[:, 16:48, 16:48] = 1
    found = measure_focus(lively_model(arch), images, metadata, masks)
    heads = sum(len(unit.focus) for key, unit in found.items() if key.kind == "attention")
    summary = focus_summary(found)
    assert summary["attention"]["kept"] + summary["attention"]["pruned"] == heads
    assert 0 <= summary["mlp"]["probability"] <= 1


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
