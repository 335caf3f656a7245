"""The multimodal Swin of the paper (section 4), with blocks that can be narrower than timm's or partly removed."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import nullcontext
from functools import lru_cache
from typing import Any

import torch
from timm.layers import Mlp
from timm.models.swin_transformer import SwinTransformer, SwinTransformerBlock, window_partition
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from fedskew.architecture import Architecture, BlockShape


class PrunedBlock(SwinTransformerBlock):
    """A timm Swin block with its own number of heads and hidden width, or with a sublayer removed.

    A removed sublayer computes x + LN(x) (`norm`, paper Eq. 8 and 11) or x (`skip`).
    """

    def __init__(self, arch: Architecture, stage: int, block: int, drop_path: float) -> None:
        shape, left = arch.stages[stage], arch.block(stage, block)
        side = arch.resolution(stage)
        super().__init__(
            shape.width,
            (side, side),
            num_heads=max(1, len(left.heads)),
            head_dim=shape.head_dim,  # without it timm silently takes another softmax scale
            window_size=shape.window,
            shift_size=shape.window // 2 if block % 2 else 0,
            drop_path=drop_path,
            mlp_ratio=1 / shape.width,  # placeholder of one channel: the real MLP follows
        )
        self._shrink(left, shape.width, arch.removed)

    def _shrink(self, left: BlockShape, width: int, removed: str) -> None:
        self.has_attention, self.has_mlp, self.removed = bool(left.heads), bool(left.hidden), removed
        self.mlp = Mlp(width, left.hidden) if self.has_mlp else None
        if not self.has_attention:
            self.attn = None
            self.register_buffer("attn_mask", None, persistent=False)
            if removed == "skip":
                self.norm1 = nn.Identity()
        if not self.has_mlp and removed == "skip":
            self.norm2 = nn.Identity()

    def _attn(self, x: Tensor) -> Tensor:
        """timm's shifted-window attention, bit for bit, with one copy of the tokens where timm makes up to six."""
        batch, side, _, width = x.shape
        window = self.window_size[0]
        if side % window:
            return super()._attn(x)
        there, back = _window_order(side, window, self.shift_size[0], x.device)
        windows = x.reshape(batch, side * side, width).index_select(1, there).view(-1, window * window, width)
        windows = self.attn(windows, mask=self.attn_mask)  # [B·nW, W², C]
        return windows.view(batch, side * side, width).index_select(1, back).view(batch, side, side, width)

    def forward(self, x: Tensor) -> Tensor:
        """Tokens [B, H, W, C] to tokens [B, H, W, C]."""
        return self.second_half(self.first_half(x))

    def first_half(self, x: Tensor) -> Tensor:
        """Tokens plus their attention, or what is left of it."""
        if self.has_attention:
            return x + self.drop_path1(self._attn(self.norm1(x)))
        return x + self.drop_path1(self.norm1(x)) if self.removed == "norm" else x

    def second_half(self, x: Tensor) -> Tensor:
        """Tokens plus their MLP, or what is left of it."""
        if self.has_mlp:
            return x + self.drop_path2(self.mlp(self.norm2(x)))
        return x + self.drop_path2(self.norm2(x)) if self.removed == "norm" else x


@lru_cache
def _window_order(side: int, window: int, shift: int, device: torch.device) -> tuple[Tensor, Tensor]:
    """Where each token of the shifted windows comes from, and where each token of the picture went: [side²] each."""
    with torch.inference_mode(False):  # shared by all models of the process, those in training too
        tokens = torch.arange(side * side, device=device).view(1, side, side, 1)
        shifted = torch.roll(tokens, (-shift, -shift), (1, 2))
        there = window_partition(shifted, (window, window)).flatten()
        return there, there.argsort()


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
        return self.norm(self.conv2(hidden).permute(0, 2, 3, 1))


class MultimodalSwin(nn.Module):
    """Image encoder, metadata embeddings and a linear classifier on their weighted sum.

    Without `initialise` the encoder's weights are whatever the memory held: they must be loaded.
    """

    def __init__(
        self, arch: Architecture, *, drop_path: float = 0.0, embedding_std: float = 1.0, initialise: bool = True
    ) -> None:
        super().__init__()
        self.architecture = arch
        with nullcontext() if initialise else _WithoutInitialisation():
            self.encoder = _encoder(arch, drop_path)
        self.embeddings = nn.ModuleDict(
            {name: nn.Embedding(len(values), arch.features) for name, values in arch.vocabularies}
        )
        for embedding in self.embeddings.values():
            nn.init.normal_(embedding.weight, std=embedding_std)  # the pooled feature has a deviation near 1
        self.classifier = nn.Linear(arch.features, len(arch.classes))
        nn.init.trunc_normal_(self.classifier.weight, std=0.02)
        nn.init.zeros_(self.classifier.bias)

    def forward(self, images: Tensor, metadata: Tensor) -> Tensor:
        """Class logits [B, classes] of images [B, 3, S, S] and metadata indices [B, vocabularies]."""
        fused = self.architecture.weights[0] * self.encoder(images)  # [B, features]
        for i, embedding in enumerate(self.embeddings.values()):
            fused = fused + self.architecture.weights[i + 1] * embedding(metadata[:, i])
        return self.classifier(fused)

    def block(self, stage: int, block: int) -> PrunedBlock:
        """One block of the encoder."""
        return self.encoder.layers[stage].blocks[block]


def build(
    arch: Architecture,
    state: dict[str, Tensor] | None = None,
    *,
    drop_path: float = 0.0,
    embedding_std: float = 1.0,
) -> MultimodalSwin:
    """The model of an architecture, with random weights (torch's global seed) or with `state`, loaded strictly."""
    model = MultimodalSwin(arch, drop_path=drop_path, embedding_std=embedding_std, initialise=state is None)
    if state is not None:
        model.load_state_dict(state, strict=True)
    return model


def build_block(arch: Architecture, stage: int, block: int, state: dict[str, Tensor]) -> PrunedBlock:
    """One block of an architecture with its tensors (named without the block's prefix), for evaluation."""
    with _WithoutInitialisation():
        module = PrunedBlock(arch, stage, block, 0.0)
    module.load_state_dict(state, strict=True)
    return module.eval()


class _WithoutInitialisation(TorchFunctionMode):
    """Saves the time of drawing weights that are loaded next. Buffers are no parameters and computed as always."""

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        """In-place operations on parameters do nothing."""
        target = args[0] if args else (kwargs or {}).get("tensor")
        name = getattr(func, "__name__", "")
        if isinstance(target, nn.Parameter) and name.endswith("_") and not name.endswith("__"):
            return target
        return func(*args, **(kwargs or {}))


def _encoder(arch: Architecture, drop_path: float) -> SwinTransformer:
    """timm's Swin with pooled output [B, features], its blocks replaced by `PrunedBlock`s."""
    stages = len(arch.stages)
    encoder = SwinTransformer(
        img_size=arch.image_size,
        patch_size=arch.patch_size,
        num_classes=0,
        embed_dim=arch.stages[0].width,
        depths=(1,) * stages,  # one small block a stage, thrown away below
        num_heads=(1,) * stages,
        head_dim=1,
        window_size=tuple((stage.window, stage.window) for stage in arch.stages),
        mlp_ratio=1.0,
        drop_path_rate=0.0,
        weight_init="skip",
    )
    rates = torch.linspace(0, drop_path, sum(len(stage.blocks) for stage in arch.stages)).tolist()
    for i, stage in enumerate(arch.stages):
        blocks = [PrunedBlock(arch, i, j, rates.pop(0)) for j in range(len(stage.blocks))]
        encoder.layers[i].blocks = nn.Sequential(*blocks)
    if arch.stem == "conv":
        encoder.patch_embed = ConvStem(arch.stages[0].width)
    encoder.init_weights(needs_reset=False)
    return encoder
