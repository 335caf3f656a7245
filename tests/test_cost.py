"""The costs that the paper's table gives, counted without building a model."""

import pytest
import torch
from builders import architecture, heads_of, hidden_of, left
from hypothesis import given, settings
from hypothesis import strategies as st
from strategies import architectures

from fedskew.config.schema import ConfigError, ModelConfig
from fedskew.model import cost
from fedskew.model.catalogue import dense_architecture, model_names
from fedskew.model.fusion import build
from fedskew.model.groups import ATTENTION, MLP


def test_dense_swin_t_has_the_numbers_of_the_paper():
    arch = dense_architecture(ModelConfig(name="swin_tiny_patch4_window7_224", image_only=True))
    macs = cost.macs(arch)
    assert len(arch.classes) == 7
    assert cost.parameters(arch) / 1e6 == pytest.approx(27.52, abs=0.01)
    assert macs.linear / 1e9 == pytest.approx(4.350, abs=5e-4)
    assert macs.total / 1e9 == pytest.approx(4.490, abs=5e-4)


def test_dense_swin_t_splits_as_in_the_method():
    arch = dense_architecture(ModelConfig(image_only=True))
    norms = sum(4 * arch.spec.stages[i].width for i, _ in arch.blocks)
    attention, mlp = (
        sum(arch.spec.sublayer_cost(key, arch.units[key], "norm").parameters for key in arch.groups if key.kind == kind)
        for kind in (ATTENTION, MLP)
    )
    assert (attention - norms / 2) / 1e6 == pytest.approx(8.667, abs=1e-3)
    assert (mlp - norms / 2) / 1e6 == pytest.approx(17.274, abs=1e-3)
    assert (cost.parameters(arch) - attention - mlp + norms) / 1e6 == pytest.approx(1.583, abs=1e-3)


@settings(max_examples=100)
@given(architectures(), st.data())
def test_a_smaller_block_never_costs_more(arch, data):
    stage, block = data.draw(st.sampled_from(arch.blocks))
    smaller = left(
        arch, stage, block, heads=heads_of(arch, stage, block)[1:], hidden=hidden_of(arch, stage, block) // 2
    )
    assert cost.parameters(smaller) <= cost.parameters(arch)
    assert cost.memory_bytes(smaller) <= cost.memory_bytes(arch)
    assert cost.macs(smaller).linear <= cost.macs(arch).linear
    assert cost.macs(smaller).total <= cost.macs(arch).total


def test_macs_count_whole_windows_where_they_reach_past_the_picture():
    arch = architecture(image_size=40, stages=1, multimodal=False)
    attention, mlp = (arch.spec.sublayer_cost(key, arch.units[key], "norm") for key in list(arch.groups)[:2])
    assert attention.linear == 12 * 12 * 4 * 8 * 8, "10 tokens a side take three windows of 4"
    assert mlp.linear == 10 * 10 * 2 * 32 * 8
    assert (attention.products, mlp.products) == (12 * 12 * 2 * 8 * 16, 0)


@pytest.mark.parametrize("name", ["swin_s3_tiny_224", "swin_tiny_patch4_window7_224"])
def test_any_timm_swin_is_read_off_timm(name):
    arch = dense_architecture(ModelConfig(name=name, image_size=64, image_only=True))
    model = build(arch)
    assert sum(parameter.numel() for parameter in model.parameters()) == cost.parameters(arch)
    with torch.no_grad():
        assert model.eval()(torch.zeros(1, 3, 64, 64), torch.zeros(1, 0, dtype=torch.long)).shape == (1, 7)


def test_the_list_of_models_has_timms_and_our_small_ones():
    names = model_names()
    assert {"swin_base_patch4_window7_224", "swin_s3_small_224", "swin_mini_patch4_window4_64"} <= set(names)
    assert not any("v2" in name for name in names)


def test_an_unknown_model_names_the_nearest():
    with pytest.raises(ConfigError, match="swin_tiny_patch4_window7_224"):
        dense_architecture(ModelConfig(name="swin_tiny_patch4_window7"))


@pytest.mark.parametrize("size", [30, 4, 3])
def test_an_image_size_that_the_patches_do_not_divide_is_a_configuration_error(size):
    with pytest.raises(ConfigError, match="image_size"):
        dense_architecture(ModelConfig(name="swin_micro_patch4_window4_32", image_size=size))


def test_metadata_and_weights_follow_the_configuration():
    arch = dense_architecture(ModelConfig(name="swin_micro_patch4_window4_32", sex_weight=0.1))
    assert arch.weights == (0.85, 0.1, 0.05, 0.05)
    assert [name for name, _ in arch.vocabularies] == ["sex", "age", "localization"]
    alone = dense_architecture(ModelConfig(name="swin_micro_patch4_window4_32", image_only=True))
    assert (alone.weights, alone.vocabularies) == ((1.0,), ())
