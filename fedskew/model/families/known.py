"""The encoders that have a name: timm's own, read off timm's models, and small ones for CPUs. And timm's weights."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import timm
from timm.models import swin_transformer, vision_transformer
from torch import Tensor, nn

from fedskew.model.families.swin import SwinSpec, SwinStage
from fedskew.model.families.vit import ViTSpec
from fedskew.model.groups import Spec
from fedskew.model.uninitialised import WithoutInitialisation


@dataclass(frozen=True)
class KnownFamily:
    """A family's named encoders, and how timm's weights are brought into them.

    Attributes:
        title: what a person calls the family.
        pattern: of timm's names that are of the family.
        read: the spec of one of timm's models.
        module: timm's class; others' weights do not fit.
        fit: timm's function that renames and resizes a checkpoint's tensors for an encoder.
        example: a tag of pretrained weights.
    """

    title: str
    small: Mapping[str, Spec]
    pattern: str
    read: Callable[[Any], Spec]
    module: type[nn.Module]
    fit: Callable[[dict[str, Tensor], Any], dict[str, Tensor]]
    example: str

    @cached_property
    def names(self) -> tuple[str, ...]:
        """Small ones first."""
        return (*self.small, *(name for name in timm.list_models() if re.fullmatch(self.pattern, name)))

    def spec(self, name: str) -> Spec:
        """The spec of one of `names`."""
        if name in self.small:
            return self.small[name]
        with WithoutInitialisation():
            return self.read(timm.create_model(name, num_classes=0))


def _swin(image_size: int, width: int, depths: tuple[int, ...], heads: tuple[int, ...]) -> SwinSpec:
    """Patches of 4 pixels, windows of 4 tokens, and MLPs four times as wide as the tokens."""
    stages = tuple(
        SwinStage(width * 2**i, width * 2**i // count, count, 4 * width * 2**i, 4, depth)
        for i, (depth, count) in enumerate(zip(depths, heads, strict=True))
    )
    return SwinSpec(image_size, 4, stages)


def _read_swin(model: Any) -> SwinSpec:
    stages = []
    for layer, window in zip(model.layers, model._ref_window_sizes, strict=True):
        block = layer.blocks[0]
        heads, hidden = block.attn.num_heads, block.mlp.fc1.out_features
        stages.append(SwinStage(block.dim, block.dim // heads, heads, hidden, window[0], len(layer.blocks)))
    return SwinSpec(model.patch_embed.img_size[0], model.patch_embed.patch_size[0], tuple(stages))


def _read_vit(model: Any) -> ViTSpec:
    attention, patches = model.blocks[0].attn, model.patch_embed
    return ViTSpec(
        patches.img_size[0], patches.patch_size[0], model.embed_dim, attention.head_dim, attention.num_heads,
        model.blocks[0].mlp.fc1.out_features, len(model.blocks), model.has_class_token,
    )  # fmt: skip


KNOWN: dict[str, KnownFamily] = {
    SwinSpec.family: KnownFamily(
        title="Swin v1",
        small={  # names follow timm's: patch, window, image size
            "swin_micro_patch4_window4_32": _swin(32, 24, (2, 2), (3, 6)),
            "swin_mini_patch4_window4_64": _swin(64, 32, (2, 2, 2), (2, 4, 8)),
            "swin_small64_patch4_window4_64": _swin(64, 48, (2, 2, 6, 2), (3, 6, 12, 24)),
            # small64's parameters, 7 % fewer MACs, eight broader blocks for twelve: learns faster (docs/results.md)
            "swin_wide64_patch4_window4_64": _swin(64, 56, (2, 2, 2, 2), (4, 8, 16, 32)),
        },
        pattern=r"swin_(?!v2).*",
        read=_read_swin,
        module=swin_transformer.SwinTransformer,
        fit=swin_transformer.checkpoint_filter_fn,
        example="swin_tiny_patch4_window7_224.ms_in1k",
    ),
    ViTSpec.family: KnownFamily(
        title="ViT or DeiT",
        small={
            "vit_micro_patch4_32": ViTSpec(32, 4, 36, 12, 3, 144, 3),
            "vit_mini_patch8_64": ViTSpec(64, 8, 96, 16, 6, 384, 6),
        },
        pattern=r"(vit|deit)_[a-z]+_patch\d+_\d+",  # with learnt positions, one class token and nothing more
        read=_read_vit,
        module=vision_transformer.VisionTransformer,
        fit=vision_transformer.checkpoint_filter_fn,
        example="deit_tiny_patch16_224.fb_in1k",
    ),
}
