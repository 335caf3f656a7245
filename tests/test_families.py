"""Two families in one house: a Vision Transformer is pruned by the same table, rules and messages as a Swin."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest
import timm
import torch
from builders import architecture, inputs, left, lively_model, run_here, tiny_config, vit
from safetensors.torch import save_file
from test_blockwise import assert_as_naive
from timm.models.vision_transformer import VisionTransformer
from torch.utils.flop_counter import FlopCounterMode

from fedskew.config.schema import ConfigError, ModelConfig
from fedskew.learning.freezing import train_only, without_stages
from fedskew.learning.optimiser import parameter_groups
from fedskew.model import cost
from fedskew.model.catalogue import dense_architecture, model_names
from fedskew.model.codec import architecture_from_json
from fedskew.model.families import SPECS
from fedskew.model.families.known import KNOWN
from fedskew.model.fusion import build
from fedskew.model.groups import ATTENTION, MLP, SublayerKey
from fedskew.model.modelfile import load_model
from fedskew.model.pretrained import load_pretrained
from fedskew.pruning.observe import observe
from fedskew.pruning.units import bundles
from fedskew.runs.start_checks import check_settings

FAMILIES = pytest.mark.parametrize("family", [architecture, vit], ids=["swin", "vit"])


def assert_close(found, expected):
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("class_token", [True, False])
@pytest.mark.parametrize("removed", ["norm", "skip"])
def test_the_dense_vit_is_timms(class_token, removed):
    arch = vit(class_token=class_token, removed=removed)
    model, (images, metadata) = lively_model(arch), inputs(arch)
    pool = "token" if class_token else "avg"
    theirs = VisionTransformer(img_size=32, patch_size=8, num_classes=0, global_pool=pool, embed_dim=12, depth=3,
                               num_heads=3, mlp_ratio=2, class_token=class_token).eval()  # fmt: skip
    for block in theirs.blocks:
        block.attn = timm.layers.Attention(12, 3, attn_head_dim=5, qkv_bias=True).eval()
    theirs.load_state_dict(model.encoder.state_dict(), strict=True)
    with torch.no_grad():
        feature = 0.9 * theirs(images)
        for column, (name, _) in enumerate(arch.vocabularies):
            feature = feature + (0.03, 0.07)[column] * model.embeddings[name].weight[metadata[:, column]]
        assert_close(model(images, metadata), model.classifier(feature))


@FAMILIES
@pytest.mark.parametrize("removed", ["norm", "skip"])
@pytest.mark.parametrize("pruned", [False, True], ids=["dense", "pruned"])
def test_macs_are_those_of_torchs_counter(family, removed, pruned):
    arch = family(removed=removed)
    if pruned:
        arch = left(left(arch, 0, 0, heads=(1,), hidden=7), 0, 1, heads=(), hidden=0)
    model = build(arch).eval()
    for module in model.modules():
        if hasattr(module, "fused_attn"):
            module.fused_attn = False  # torch counts no fused attention on CPUs
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        model(*inputs(arch, count=1))
    assert counter.get_total_flops() == 2 * cost.macs(arch).total


def test_the_norms_of_a_vit_are_those_of_its_tokens_by_hand():
    arch = vit()
    model, (images, _) = lively_model(arch), inputs(arch)
    seen, captured = {}, []
    block = model.encoder.blocks[1]
    handle = block.register_forward_pre_hook(lambda _, args: captured.append(args[0]))
    with torch.no_grad():
        model.encoder(images)
    handle.remove()
    observe(model, images, lambda now: seen.update({now.key: now}), bundles(arch, "ratio"))
    with torch.no_grad():
        normed = block.norm1(captured[0])  # [B, 17, 12]
        q, k, v = block.attn.qkv(normed).unflatten(-1, (3, 3, 5)).unbind(2)  # each [B, 17, 3, 5]
        weights = torch.einsum("bqhd,bkhd->bhqk", q, k).div(5**0.5).softmax(-1)
        heads = torch.einsum("bhqk,bkhd->bqhd", weights, v)
        hidden = block.mlp.fc1(block.norm2(captured[0] + block.attn(normed)))
    found = seen[SublayerKey(0, 1, ATTENTION)]
    assert found.norms.shape == (2, 1, 17, 3)
    assert_close(found.norms[:, 0], heads.norm(dim=-1))
    assert found.valid.all()
    assert_close(seen[SublayerKey(0, 1, MLP)].norms[:, 0], hidden.unflatten(-1, (12, 2)).norm(dim=-1))


@pytest.mark.parametrize(
    "values", [{}, {"rule": "share", "share": 0.4}, {"criterion": "l1-norm", "rule": "match"}], ids=str
)
def test_algorithm_1_goes_through_a_vit_block_by_block(values):
    arch = vit(removed="skip" if values else "norm")
    model, (images, _) = lively_model(arch, seed=3), inputs(arch, 4)
    prune = replace(tiny_config().prune, order="block", min_heads=0, reading="pool", **values)
    plan, _ = assert_as_naive(model, images, prune, (0,))
    assert plan.units > 0


@pytest.mark.parametrize("method", ["skewness", "l1-norm", "random", "skewness-reversed"])
def test_a_whole_run_with_a_vit_shrinks(generated, tmp_path, method):
    run = run_here(tiny_config(model={"name": "vit_micro_patch4_32"}, run={"output_dir": str(tmp_path)},
                               prune={"criterion": method, "rule": "share", "share": 0.34}))  # fmt: skip
    records = run.records()
    assert records[-1]["parameters"] < records[0]["parameters"]
    model = load_model(run.path / "model.safetensors")
    assert model.architecture.spec.family == "vit"
    assert sum(parameter.numel() for parameter in model.parameters()) == records[-1]["parameters"]


def test_positions_and_class_token_do_not_decay():
    model = build(vit())
    decayed, plain = ({id(parameter) for parameter in group["params"]} for group in parameter_groups(model, 0.1))
    assert {id(model.encoder.pos_embed), id(model.encoder.cls_token)} <= plain
    assert id(model.encoder.blocks[0].attn.qkv.weight) in decayed


def test_the_one_stage_of_a_vit_is_frozen_as_a_whole():
    model = build(vit())
    train_only(model, without_stages(model.architecture, (0,)))
    frozen = {name for name, parameter in model.named_parameters() if not parameter.requires_grad}
    assert frozen == {name for name, _ in model.named_parameters() if name.startswith("encoder.")}
    assert model.classifier.weight.requires_grad


@pytest.mark.parametrize("name", ["swin_tiny_patch4_window7_224", "vit_tiny_patch16_224"])
def test_stochastic_depth_grows_from_block_to_block_as_timms(name):
    def rates(model):
        return [getattr(getattr(block, half), "drop_prob", 0.0) for block in model.modules()
                for half in ("drop_path1", "drop_path2") if hasattr(block, half)]  # fmt: skip

    ours = build(dense_architecture(ModelConfig(name=name, image_size=64, image_only=True)), drop_path=0.3)
    theirs = timm.create_model(name, img_size=64, drop_path_rate=0.3)
    assert rates(ours.encoder) == pytest.approx(rates(theirs))
    assert max(rates(ours.encoder)) == pytest.approx(0.3)


def test_timms_vits_are_read_off_timm():
    for name in ("vit_tiny_patch16_224", "deit_tiny_patch16_224"):
        arch = dense_architecture(ModelConfig(name=name, image_size=32, image_only=True))
        theirs = timm.create_model(name, num_classes=0, img_size=32)
        found = {key: tensor.shape for key, tensor in build(arch).encoder.state_dict().items()}
        assert found == {key: tensor.shape for key, tensor in theirs.state_dict().items()}


def test_weights_of_a_vit_are_loaded_and_those_of_a_swin_refused(tmp_path):
    config = ModelConfig(name="vit_tiny_patch16_224", image_size=32, image_only=True,
                         pretrained=str(tmp_path / "vit.safetensors"))  # fmt: skip
    theirs = timm.create_model("vit_tiny_patch16_224", num_classes=0, img_size=32)
    save_file(theirs.state_dict(), tmp_path / "vit.safetensors")
    model = build(dense_architecture(config))
    load_pretrained(model, config)
    assert all(torch.equal(tensor, theirs.state_dict()[name]) for name, tensor in model.encoder.state_dict().items())
    save_file(lively_model(architecture()).encoder.state_dict(), tmp_path / "vit.safetensors")
    with pytest.raises(ConfigError, match="ViT or DeiT"):
        load_pretrained(model, config)


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("swinv2_tiny_window8_256", ("another family (swinv2)", "Swin v1, ViT or DeiT", "vit_mini_patch8_64")),
        ("resnet50", ("another family (resnet)", "Swin v1, ViT or DeiT")),
        ("vit_tiny_patch16_225", ("did you mean vit_tiny_patch16_224?",)),
        ("deit3_small_patch16_224", ("did you mean",)),
    ],
)
def test_a_model_of_no_family_is_refused_and_the_families_named(name, words):
    with pytest.raises(ConfigError) as error:
        dense_architecture(ModelConfig(name=name))
    assert all(word in str(error.value) for word in words), str(error.value)


def test_what_is_one_stage_is_not_frozen_stage_by_stage():
    with pytest.raises(ConfigError, match=r"prune\.freeze .* vit_micro_patch4_32 is one stage"):
        check_settings(tiny_config(model={"name": "vit_micro_patch4_32"}, prune={"freeze": True}))
    check_settings(tiny_config(model={"name": "vit_micro_patch4_32"}, prune={"freeze": True, "criterion": "none"}))


def test_only_swins_have_another_stem():
    with pytest.raises(ConfigError, match=r"model\.stem is conv: only Swins"):
        dense_architecture(ModelConfig(name="vit_micro_patch4_32", stem="conv"))


def test_every_family_has_small_models_and_each_name_belongs_to_one():
    assert set(SPECS) == set(KNOWN)
    assert len(set(model_names())) == len(model_names())
    for family, known in KNOWN.items():
        for name, spec in known.small.items():
            assert (spec.family, str(spec.image_size)) == (family, name.rpartition("_")[2])


VERSION_1 = {  # as fedskew wrote it when it knew Swins alone
    "classes": ["a", "b"], "image_size": 32, "name": "old", "patch_size": 4, "removed": "skip", "version": 1,
    "stages": [
        {"blocks": [{"heads": [0, 2], "hidden": 20}, {"heads": [], "hidden": 0}], "dense_heads": 3, "dense_hidden": 24,
         "head_dim": 2, "width": 6, "window": 4},
        {"blocks": [{"heads": [1], "hidden": 5}], "dense_heads": 2, "dense_hidden": 48, "head_dim": 3, "width": 12,
         "window": 2},
    ],
    "vocabularies": [["sex", ["unknown", "f"]]], "weights": [0.9, 0.1],
}  # fmt: skip


@pytest.mark.parametrize("stem", [None, "conv"])
def test_files_of_version_1_stay_readable(stem):
    arch = architecture_from_json(json.dumps(VERSION_1 | ({"stem": stem} if stem else {})))
    assert arch.spec.stem == (stem or "patch")
    assert [(stage.depth, stage.heads, stage.hidden, stage.window) for stage in arch.spec.stages] == [
        (2, 3, 24, 4), (1, 2, 48, 2),
    ]  # fmt: skip
    assert {str(key): kept for key, kept in arch.kept} == {
        "0.0.attention": (0, 2), "0.0.mlp": 20, "0.1.attention": (), "0.1.mlp": 0, "1.0.attention": (1,), "1.0.mlp": 5,
    }  # fmt: skip
    assert (arch.removed, arch.weights, arch.vocabularies) == ("skip", (0.9, 0.1), (("sex", ("unknown", "f")),))
    build(arch)
    assert architecture_from_json(arch.to_json()) == arch


@pytest.mark.parametrize(
    ("field", "value", "named"),
    [
        ("image_size", 30, "image_size"), ("patch_size", 0, "patch_size"), ("width", 0, "width"),
        ("heads", 513, "heads"), ("depth", 0, "depth"), ("class_token", 1, "class_token"),
        ("class_token", None, "class_token"),
        ("hidden", 2.0, "hidden"), ("head_dim", "5", "head_dim"),
    ],
)  # fmt: skip
def test_a_vit_that_cannot_be_built_is_refused_by_the_name_of_the_field(field, value, named):
    document = json.loads(vit().to_json())
    document["spec"][field] = value
    with pytest.raises(ValueError, match=named):
        architecture_from_json(json.dumps(document))
