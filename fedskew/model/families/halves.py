"""What all pruned transformer blocks share: two halves with residual connections, either of which may be gone."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Protocol, cast

from torch import Tensor, nn

from fedskew.model.groups import ATTENTION, MLP, Segment, SublayerKey


class TimmBlock(Protocol):
    """What a block takes over from one of timm's."""

    norm1: nn.Module
    norm2: nn.Module

    @property
    def drop_path1(self) -> nn.Module:
        """Of the attention."""
        ...

    @property
    def drop_path2(self) -> nn.Module:
        """Of the MLP."""
        ...


class PrunedHalves(nn.Module):
    """A timm block whose sublayers may be removed, with its names of tensors.

    A removed sublayer computes x + LN(x) (`norm`, paper Eq. 8 and 11) or x (`skip`).

    Args:
        block: whose norms and drop paths it takes over.
        attention: None if it has no units left; the same of `mlp`.
    """

    def __init__(self, block: TimmBlock, attention: nn.Module | None, mlp: nn.Module | None, removed: str) -> None:
        super().__init__()
        self.removed = removed
        self.norm1 = nn.Identity() if attention is None and removed == "skip" else block.norm1
        self.attn = attention
        self.drop_path1 = block.drop_path1
        self.norm2 = nn.Identity() if mlp is None and removed == "skip" else block.norm2
        self.mlp = mlp
        self.drop_path2 = block.drop_path2

    def attend(self, attention: nn.Module, x: Tensor) -> Tensor:
        """The attention of normalised tokens, of their shape."""
        raise NotImplementedError

    def forward(self, x: Tensor) -> Tensor:
        """Tokens to tokens of the same shape."""
        return self.second_half(self.first_half(x))

    def first_half(self, x: Tensor) -> Tensor:
        """Tokens plus their attention, or what is left of it."""
        if self.attn is None and self.removed == "skip":
            return x
        added: Tensor = self.drop_path1(self.norm1(x) if self.attn is None else self.attend(self.attn, self.norm1(x)))
        return x + added

    def second_half(self, x: Tensor) -> Tensor:
        """Tokens plus their MLP, or what is left of it."""
        if self.mlp is None and self.removed == "skip":
            return x
        added: Tensor = self.drop_path2(self.norm2(x) if self.mlp is None else self.mlp(self.norm2(x)))
        return x + added

    def segment(self, key: SublayerKey) -> Segment:
        """One of the halves, as a piece of the encoder's forward pass."""
        return Segment(key, self.first_half if key.kind == ATTENTION else self.second_half)


def block_segments(blocks: Iterable[nn.Module], stage: int) -> Iterator[Segment]:
    """The halves of a stage's `PrunedHalves`, in the order of the forward pass."""
    for j, block in enumerate(blocks):
        yield from (cast(PrunedHalves, block).segment(SublayerKey(stage, j, kind)) for kind in (ATTENTION, MLP))
