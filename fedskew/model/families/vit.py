"""Plain Vision Transformers (ViT, DeiT): the same heads and MLP channels, over all tokens instead of windows."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict, dataclass, replace
from functools import cached_property
from typing import Any, ClassVar, Self, cast

import torch
from timm.layers.attention import Attention
from timm.layers.mlp import Mlp
from timm.models.vision_transformer import Block, VisionTransformer
from torch import Tensor, nn

from fedskew.model.bounds import ArchitectureError, check_flag, check_integer, mapping_of
from fedskew.model.families.halves import PrunedHalves, block_segments
from fedskew.model.groups import (
    ATTENTION,
    MLP,
    TOKENS,
    Cost,
    Cut,
    Probe,
    PrunableGroup,
    Segment,
    SublayerKey,
    Units,
    whole_heads,
)

BOUNDS = {
    "image_size": (8, 1024), "patch_size": (1, 64), "width": (1, 8192), "head_dim": (1, 1024), "heads": (1, 512),
    "hidden": (1, 65_536), "depth": (1, 100),
}  # fmt: skip


class PrunedViTBlock(PrunedHalves):
    """A timm ViT block with its own number of heads and hidden width, or with a sublayer removed."""

    def __init__(self, *, width: int, head_dim: int, heads: int, hidden: int, removed: str, drop_path: float) -> None:
        block = Block(width, num_heads=1, mlp_ratio=1 / width, drop_path=drop_path)  # small: only its norms stay
        attention = Attention(width, max(1, heads), attn_head_dim=head_dim, qkv_bias=True)
        mlp = Mlp(width, max(1, hidden))
        super().__init__(block, attention if heads else None, mlp if hidden else None, removed)

    def attend(self, attention: nn.Module, x: Tensor) -> Tensor:
        """Attention of all tokens [B, N, C] to all."""
        attended: Tensor = attention(x)
        return attended


@dataclass(frozen=True)
class ViTSpec:
    """A timm Vision Transformer with learnt positions. All its blocks are one stage.

    With a class token the image feature is that token's, without one the mean of all.
    """

    family: ClassVar[str] = "vit"
    stems: ClassVar[tuple[str, ...]] = ("patch",)
    undecayed: ClassVar[tuple[str, ...]] = ("pos_embed", "cls_token")
    stage_count: ClassVar[int] = 1

    image_size: int
    patch_size: int
    width: int
    head_dim: int
    heads: int
    hidden: int
    depth: int
    class_token: bool = True

    def __post_init__(self) -> None:
        for name, (low, high) in BOUNDS.items():
            check_integer(getattr(self, name), name, low, high)
        check_flag(self.class_token, "class_token")
        if self.image_size % self.patch_size:
            raise ArchitectureError(f"image_size {self.image_size} is no multiple of patch_size {self.patch_size}")

    @property
    def features(self) -> int:
        """See `Spec`."""
        return self.width

    @property
    def side(self) -> int:
        """Tokens a side of the picture."""
        return self.image_size // self.patch_size

    @property
    def tokens(self) -> int:
        """Tokens of an image."""
        return self.side**2 + self.class_token

    @cached_property
    def groups(self) -> tuple[PrunableGroup, ...]:
        """See `Spec`."""
        return tuple(group for j in range(self.depth) for group in (self._heads(j), self._channels(j)))

    def _probe(self, module: str, output: bool) -> Probe:
        return Probe(module, output, TOKENS, self.side, self.side, prefix=int(self.class_token))

    def _heads(self, j: int) -> PrunableGroup:
        block = f"blocks.{j}."
        cuts = (
            Cut(f"{block}attn.qkv.weight", 0, parts=3, width=self.head_dim),
            Cut(f"{block}attn.qkv.bias", 0, parts=3, width=self.head_dim),
            Cut(f"{block}attn.proj.weight", 1, width=self.head_dim),
        )
        return PrunableGroup(SublayerKey(0, j, ATTENTION), self.heads, True, self.width, cuts,
                             f"{block}attn.", f"{block}norm1.", self._probe(f"{block}attn.proj", False))  # fmt: skip

    def _channels(self, j: int) -> PrunableGroup:
        block = f"blocks.{j}."
        cuts = (Cut(f"{block}mlp.fc1.weight", 0), Cut(f"{block}mlp.fc1.bias", 0), Cut(f"{block}mlp.fc2.weight", 1))
        before, after = (self._probe(f"{block}mlp.{name}", True) for name in ("fc1", "act"))
        return PrunableGroup(SublayerKey(0, j, MLP), self.hidden, False, self.width, cuts,
                             f"{block}mlp.", f"{block}norm2.", before, after)  # fmt: skip

    def variant(self, *, image_size: int, stem: str, width: float = 1.0) -> Self:
        """See `Spec`."""
        heads = whole_heads(self.heads, width)
        channels, hidden = (size * heads // self.heads for size in (self.width, self.hidden))
        return replace(self, image_size=image_size, heads=heads, width=channels, hidden=hidden)

    def fixed_cost(self) -> Cost:
        """See `Spec`: patches, positions, class token and the final norm."""
        pixels = 3 * self.patch_size**2
        parameters = (pixels + 1) * self.width + self.tokens * self.width + self.class_token * self.width
        return Cost(parameters + 2 * self.width, self.side**2 * pixels * self.width)

    def sublayer_cost(self, key: SublayerKey, units: int, removed: str) -> Cost:
        """See `Spec`."""
        width, norm = self.width, 2 * self.width
        if not units:
            return Cost(norm if removed == "norm" else 0)
        if key.kind == MLP:
            return Cost(norm + units * (width + 1) + (units + 1) * width, self.tokens * 2 * units * width)
        inner = units * self.head_dim
        parameters = norm + 3 * inner * (width + 1) + (inner + 1) * width
        return Cost(parameters, self.tokens * 4 * inner * width, 2 * self.tokens**2 * inner)

    def stage_prefixes(self, stage: int) -> tuple[str, ...]:
        """See `Spec`."""
        return ("",)

    def encoder(self, units: Units, removed: str, drop_path: float) -> VisionTransformer:
        """See `Spec`: timm's ViT, its blocks replaced by narrower ones."""
        encoder = VisionTransformer(
            img_size=self.image_size,
            patch_size=self.patch_size,
            num_classes=0,
            global_pool="token" if self.class_token else "avg",
            embed_dim=self.width,
            depth=1,  # a small block, thrown away below
            num_heads=1,
            mlp_ratio=1.0,
            class_token=self.class_token,
        )
        rates = torch.linspace(0, drop_path, self.depth).tolist()
        encoder.blocks = nn.Sequential(*(self._block(j, units, removed, rates[j]) for j in range(self.depth)))
        encoder.init_weights(needs_reset=False)
        return encoder

    def _block(self, j: int, units: Units, removed: str, drop_path: float) -> PrunedViTBlock:
        return PrunedViTBlock(
            width=self.width,
            head_dim=self.head_dim,
            heads=units[SublayerKey(0, j, ATTENTION)],
            hidden=units[SublayerKey(0, j, MLP)],
            removed=removed,
            drop_path=drop_path,
        )

    def half(self, key: SublayerKey, units: Units, removed: str) -> tuple[str, nn.Module, Segment]:
        """See `Spec`."""
        block = self._block(key.block, units, removed, 0.0)
        return f"blocks.{key.block}.", block, block.segment(key)

    def segments(self, encoder: nn.Module) -> Iterator[Segment]:
        """See `Spec`."""
        vit = cast(VisionTransformer, encoder)
        yield Segment(None, lambda images: vit.norm_pre(vit._pos_embed(vit.patch_embed(images))))
        yield from block_segments(vit.blocks, 0)
        yield Segment(None, lambda tokens: vit.forward_head(vit.norm(tokens)))

    def to_mapping(self) -> dict[str, Any]:
        """See `Spec`."""
        return asdict(self)

    @classmethod
    def from_mapping(cls, value: Any) -> Self:
        """See `Spec`."""
        return cls(**mapping_of(value, cls, "spec"))
