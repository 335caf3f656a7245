"""A Swin block that can be narrower than timm's or partly removed, and the convolutional stem."""

from __future__ import annotations

from functools import lru_cache
from typing import cast

import torch
from timm.layers.mlp import Mlp
from timm.models.swin_transformer import SwinTransformerBlock, window_partition, window_reverse
from torch import Tensor, nn

from fedskew.model.families.halves import PrunedHalves


class PrunedSwinBlock(PrunedHalves):
    """A timm Swin block with its own number of heads and hidden width, or with a sublayer removed.

    Args:
        side: tokens a side of the picture.
        window: as configured, even where the picture is smaller.
        shifted: whether the windows are moved by half of one, where there is more than one.
    """

    def __init__(
        self,
        *,
        width: int,
        side: int,
        head_dim: int,
        window: int,
        shifted: bool,
        heads: int,
        hidden: int,
        removed: str,
        drop_path: float,
    ) -> None:
        block = SwinTransformerBlock(
            width,
            (side, side),
            num_heads=max(1, heads),
            head_dim=head_dim,  # without it timm silently takes another softmax scale
            window_size=window,
            shift_size=window // 2 if shifted else 0,
            drop_path=drop_path,
            mlp_ratio=1 / width,  # placeholder of one channel: the real MLP follows
        )
        mlp = Mlp(width, max(1, hidden))
        super().__init__(block, block.attn if heads else None, mlp if hidden else None, removed)
        self.window, self.shift = block.window_size[0], block.shift_size[0]
        mask = cast("Tensor | None", block.attn_mask)
        self.register_buffer("attn_mask", mask if heads else None, persistent=False)

    def attend(self, attention: nn.Module, x: Tensor) -> Tensor:
        """timm's shifted-window attention, bit for bit, with one copy of the tokens where timm makes up to six."""
        batch, side, _, width = x.shape
        order = _window_order if type(x) is Tensor else _window_order.__wrapped__  # what a trace makes is not kept
        there, back = order(side, self.window, self.shift, x.device)
        tokens = x.reshape(batch, side * side, width)
        if side % self.window:
            tokens = nn.functional.pad(tokens, (0, 0, 0, 1))  # a token of zeros, that fills the last windows
        windows = tokens.index_select(1, there).view(-1, self.window**2, width)
        attended: Tensor = attention(windows, mask=self.attn_mask)  # [B·nW, W², C]
        return attended.view(batch, -1, width).index_select(1, back).view(batch, side, side, width)


@lru_cache
def _window_order(side: int, window: int, shift: int, device: torch.device) -> tuple[Tensor, Tensor]:
    """Where each token of the shifted windows comes from, and where each token of the picture, [side²], went.

    Windows that reach past the picture are filled with token side².
    """
    with torch.inference_mode(False):  # shared by all models of the process, those in training too
        tokens = torch.arange(side * side, device=device).view(1, side, side, 1)
        shifted = torch.roll(tokens, (-shift, -shift), (1, 2))
        missing = -side % window
        whole = nn.functional.pad(shifted, (0, 0, 0, missing, 0, missing), value=side * side)
        there = window_partition(whole, (window, window)).flatten()
        places = torch.arange(len(there), device=device).view(-1, window, window, 1)
        placed = window_reverse(places, (window, window), *whole.shape[1:3])[:, :side, :side]
        return there, torch.roll(placed, (shift, shift), (1, 2)).flatten()


class ConvStem(nn.Module):
    """Two overlapping 3 x 3 convolutions of stride 2 in place of one 4 x 4 convolution a patch.

    Neighbouring patches share pixels, which small data sets reward (Xiao et al., Early convolutions help transformers
    see better, 2021; Lee et al., arXiv 2112.13492).
    """

    def __init__(self, width: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(3, width // 2, 3, stride=2, padding=1)
        self.norm1 = nn.GroupNorm(1, width // 2)  # no running statistics: nothing to average wrongly
        self.conv2 = nn.Conv2d(width // 2, width, 3, stride=2, padding=1)
        self.norm = nn.LayerNorm(width)

    def forward(self, images: Tensor) -> Tensor:
        """Images [B, 3, S, S] to tokens [B, S/4, S/4, C]."""
        hidden = nn.functional.gelu(self.norm1(self.conv1(images)))
        tokens: Tensor = self.norm(self.conv2(hidden).permute(0, 2, 3, 1))
        return tokens
