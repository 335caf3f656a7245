"""What all pruned transformer blocks share: two halves with residual connections, either of which may be gone."""

from __future__ import annotations

from torch import Tensor, nn


class PrunedHalves(nn.Module):
    """The forward pass of a timm block with `norm1`, `norm2`, `mlp` and drop paths whose sublayers may be removed.

    A removed sublayer computes x + LN(x) (`norm`, paper Eq. 8 and 11) or x (`skip`).
    """

    def remove(self, heads: int, hidden: int, removed: str) -> None:
        """Take away what has no units left."""
        self.has_attention, self.has_mlp, self.removed = bool(heads), bool(hidden), removed
        if not heads:
            self.attn = None
            if removed == "skip":
                self.norm1 = nn.Identity()
        if not hidden:
            self.mlp = None
            if removed == "skip":
                self.norm2 = nn.Identity()

    def attend(self, x: Tensor) -> Tensor:
        """The attention of normalised tokens, of their shape."""
        raise NotImplementedError

    def forward(self, x: Tensor) -> Tensor:
        """Tokens to tokens of the same shape."""
        return self.second_half(self.first_half(x))

    def first_half(self, x: Tensor) -> Tensor:
        """Tokens plus their attention, or what is left of it."""
        if self.has_attention:
            return x + self.drop_path1(self.attend(self.norm1(x)))
        return x + self.drop_path1(self.norm1(x)) if self.removed == "norm" else x

    def second_half(self, x: Tensor) -> Tensor:
        """Tokens plus their MLP, or what is left of it."""
        if self.has_mlp:
            return x + self.drop_path2(self.mlp(self.norm2(x)))
        return x + self.drop_path2(self.norm2(x)) if self.removed == "norm" else x
