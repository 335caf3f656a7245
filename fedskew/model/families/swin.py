"""Swin Transformers: the shape of an encoder, its heads and MLP channels, and what they cost (paper, section 3)."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict, dataclass, replace
from fractions import Fraction
from functools import cached_property
from typing import Any, ClassVar, Self, cast

import torch
from timm.models.swin_transformer import SwinTransformer, SwinTransformerStage
from torch import nn

from fedskew.model.bounds import ArchitectureError, check_choice, check_integer, list_of, mapping_of
from fedskew.model.families.halves import block_segments
from fedskew.model.families.swin_modules import ConvStem, PrunedSwinBlock
from fedskew.model.groups import (
    ATTENTION,
    MLP,
    PICTURE,
    WINDOWS,
    Cost,
    Cut,
    Probe,
    PrunableGroup,
    Segment,
    SublayerKey,
    Units,
    whole_heads,
)

FLOAT_BYTES, INDEX_BYTES = 4, 8


@dataclass(frozen=True)
class SwinStage:
    """The dense widths of a stage."""

    width: int  # channels C of the tokens
    head_dim: int  # channels D of a head
    heads: int
    hidden: int
    window: int
    depth: int  # blocks

    def check(self, where: str) -> None:
        """Raise `ArchitectureError` for what is out of bounds."""
        bounds = {"width": 8192, "head_dim": 1024, "heads": 512, "hidden": 65_536, "window": 64, "depth": 100}
        for name, most in bounds.items():
            check_integer(getattr(self, name), f"{where}.{name}", 1, most)

    def narrowed(self, share: Fraction) -> SwinStage:
        """The stage with a share of its heads and channels; raises `ArchitectureError` where these are not whole."""
        sizes = {name: getattr(self, name) * share for name in ("width", "heads", "hidden")}
        if not all(size.denominator == 1 for size in sizes.values()):
            raise ArchitectureError(
                f"a stage of {self.heads} heads and {self.width} channels cannot have {share} of them"
            )
        return replace(self, **{name: int(size) for name, size in sizes.items()})


@dataclass(frozen=True)
class SwinSpec:
    """A timm Swin v1, or one with a convolutional stem."""

    family: ClassVar[str] = "swin"
    stems: ClassVar[tuple[str, ...]] = ("patch", "conv")  # see `swin_modules`
    undecayed: ClassVar[tuple[str, ...]] = ("relative_position_bias_table",)

    image_size: int
    patch_size: int
    stages: tuple[SwinStage, ...]
    stem: str = "patch"

    def __post_init__(self) -> None:
        check_integer(self.image_size, "image_size", 8, 1024)
        check_integer(self.patch_size, "patch_size", 1, 32)
        if self.image_size % self.patch_size:
            raise ArchitectureError(f"image_size {self.image_size} is no multiple of patch_size {self.patch_size}")
        check_choice(self.stem, "stem", self.stems)
        if self.stem == "conv" and self.patch_size != 4:
            raise ArchitectureError(f"stem `conv` makes patches of 4 pixels, patch_size is {self.patch_size}")
        check_integer(len(self.stages), "number of stages", 1, 6)
        for i, stage in enumerate(self.stages):
            stage.check(f"stages[{i}]")
            if i and stage.width != 2 * self.stages[i - 1].width:
                raise ArchitectureError(f"stages[{i}].width is {stage.width}, expected twice the stage before")

    @property
    def features(self) -> int:
        """See `Spec`."""
        return self.stages[-1].width

    @property
    def stage_count(self) -> int:
        """See `Spec`."""
        return len(self.stages)

    def resolution(self, stage: int) -> int:
        """Tokens a side in a stage (patch merging rounds up)."""
        side = self.image_size // self.patch_size
        for _ in range(stage):
            side = (side + 1) // 2
        return side

    def window(self, stage: int) -> int:
        """Tokens a side of a window, never more than the stage has."""
        return min(self.stages[stage].window, self.resolution(stage))

    def shift(self, stage: int, block: int) -> int:
        """By how many tokens a block moves its windows: every other one, where there is more than one window."""
        moved = block % 2 and self.resolution(stage) > self.window(stage)
        return self.stages[stage].window // 2 if moved else 0

    @cached_property
    def groups(self) -> tuple[PrunableGroup, ...]:
        """See `Spec`."""
        return tuple(
            group
            for i, stage in enumerate(self.stages)
            for j in range(stage.depth)
            for group in (self._heads(i, j), self._channels(i, j))
        )

    def _heads(self, i: int, j: int) -> PrunableGroup:
        stage, block = self.stages[i], f"layers.{i}.blocks.{j}."
        cuts = (
            Cut(f"{block}attn.qkv.weight", 0, parts=3, width=stage.head_dim),
            Cut(f"{block}attn.qkv.bias", 0, parts=3, width=stage.head_dim),
            Cut(f"{block}attn.proj.weight", 1, width=stage.head_dim),
            Cut(f"{block}attn.relative_position_bias_table", 1),
        )
        probe = Probe(f"{block}attn.proj", False, WINDOWS, self.resolution(i), self.window(i), self.shift(i, j))
        return PrunableGroup(SublayerKey(i, j, ATTENTION), stage.heads, True, stage.width, cuts,
                             f"{block}attn.", f"{block}norm1.", probe)  # fmt: skip

    def _channels(self, i: int, j: int) -> PrunableGroup:
        stage, block = self.stages[i], f"layers.{i}.blocks.{j}."
        cuts = (Cut(f"{block}mlp.fc1.weight", 0), Cut(f"{block}mlp.fc1.bias", 0), Cut(f"{block}mlp.fc2.weight", 1))
        before, after = (
            Probe(f"{block}mlp.{name}", True, PICTURE, self.resolution(i), self.window(i)) for name in ("fc1", "act")
        )
        return PrunableGroup(SublayerKey(i, j, MLP), stage.hidden, False, stage.width, cuts,
                             f"{block}mlp.", f"{block}norm2.", before, after)  # fmt: skip

    def variant(self, *, image_size: int, stem: str, width: float = 1.0) -> Self:
        """See `Spec`; all stages get the share that the first one can have."""
        share = Fraction(whole_heads(self.stages[0].heads, width), self.stages[0].heads)
        stages = tuple(stage.narrowed(share) for stage in self.stages)
        return replace(self, image_size=image_size, stem=stem, stages=stages)

    def fixed_cost(self) -> Cost:
        """See `Spec`: stem, patch merging and the final norm."""
        cost = self._stem_cost() + Cost(parameters=2 * self.features)
        for i in range(1, len(self.stages)):
            merged, width = 4 * self.stages[i - 1].width, self.stages[i].width
            cost += Cost(2 * merged + merged * width, self.resolution(i) ** 2 * merged * width)  # norm and reduction
        return cost

    def _stem_cost(self) -> Cost:
        width, tokens = self.stages[0].width, self.resolution(0) ** 2
        if self.stem == "conv":
            half = width // 2
            parameters = (27 + 1) * half + 2 * half + (9 * half + 1) * width + 2 * width
            return Cost(parameters, 4 * tokens * 27 * half + tokens * 9 * half * width)
        pixels = 3 * self.patch_size**2
        return Cost((pixels + 1) * width + 2 * width, tokens * pixels * width)

    def sublayer_cost(self, key: SublayerKey, units: int, removed: str) -> Cost:
        """See `Spec`."""
        stage, side = self.stages[key.stage], self.resolution(key.stage)
        norm = 2 * stage.width
        if not units:
            return Cost(norm if removed == "norm" else 0)
        if key.kind == MLP:
            parameters = norm + units * (stage.width + 1) + (units + 1) * stage.width
            return Cost(parameters, side**2 * 2 * units * stage.width)
        window, inner = self.window(key.stage), units * stage.head_dim
        windows = (-(-side // window)) ** 2
        tokens = windows * window**2  # attention runs on whole windows
        table = (2 * window - 1) ** 2 * units
        mask = windows * window**4 * FLOAT_BYTES if self.shift(key.stage, key.block) else 0
        return Cost(
            norm + 3 * inner * (stage.width + 1) + (inner + 1) * stage.width + table,
            tokens * 4 * inner * stage.width,
            tokens * 2 * inner * window**2,
            window**4 * INDEX_BYTES + mask,  # relative_position_index and attn_mask
        )

    def stage_prefixes(self, stage: int) -> tuple[str, ...]:
        """See `Spec`; the first stage takes the stem with it."""
        return (f"layers.{stage}.", "patch_embed.") if stage == 0 else (f"layers.{stage}.",)

    def encoder(self, units: Units, removed: str, drop_path: float) -> SwinTransformer:
        """See `Spec`: timm's Swin, its blocks replaced by narrower ones."""
        count = len(self.stages)
        encoder = SwinTransformer(
            img_size=self.image_size,
            patch_size=self.patch_size,
            num_classes=0,
            embed_dim=self.stages[0].width,
            depths=(1,) * count,  # one small block a stage, thrown away below
            num_heads=(1,) * count,
            head_dim=1,
            window_size=tuple((stage.window, stage.window) for stage in self.stages),  # type: ignore[arg-type]  # timm takes one a stage
            mlp_ratio=1.0,
            drop_path_rate=0.0,
            weight_init="skip",
        )
        rates = torch.linspace(0, drop_path, sum(stage.depth for stage in self.stages)).tolist()
        for i, stage in enumerate(self.stages):
            blocks = [self._block(i, j, units, removed, rates.pop(0)) for j in range(stage.depth)]
            encoder.layers[i].blocks = nn.Sequential(*blocks)
        if self.stem == "conv":
            encoder.patch_embed = ConvStem(self.stages[0].width)
        encoder.init_weights(needs_reset=False)
        return encoder

    def _block(self, i: int, j: int, units: Units, removed: str, drop_path: float) -> PrunedSwinBlock:
        stage = self.stages[i]
        return PrunedSwinBlock(
            width=stage.width,
            side=self.resolution(i),
            head_dim=stage.head_dim,
            window=stage.window,
            shifted=j % 2 == 1,
            heads=units[SublayerKey(i, j, ATTENTION)],
            hidden=units[SublayerKey(i, j, MLP)],
            removed=removed,
            drop_path=drop_path,
        )

    def half(self, key: SublayerKey, units: Units, removed: str) -> tuple[str, nn.Module, Segment]:
        """See `Spec`."""
        block = self._block(key.stage, key.block, units, removed, 0.0)
        return f"layers.{key.stage}.blocks.{key.block}.", block, block.segment(key)

    def segments(self, encoder: nn.Module) -> Iterator[Segment]:
        """See `Spec`."""
        swin = cast(SwinTransformer, encoder)
        yield Segment(None, swin.patch_embed)
        for i, layer in enumerate(cast(Iterator[SwinTransformerStage], swin.layers)):
            yield Segment(None, layer.downsample)
            yield from block_segments(layer.blocks, i)
        yield Segment(None, lambda tokens: swin.forward_head(swin.norm(tokens)))

    def to_mapping(self) -> dict[str, Any]:
        """See `Spec`."""
        return asdict(self)

    @classmethod
    def from_mapping(cls, value: Any) -> Self:
        """See `Spec`."""
        content = mapping_of(value, cls, "spec")
        stages = [
            SwinStage(**mapping_of(stage, SwinStage, f"stages[{i}]"))
            for i, stage in enumerate(list_of(content["stages"], "stages"))
        ]
        return cls(**content | {"stages": tuple(stages)})
