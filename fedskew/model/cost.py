"""Parameters, multiply-accumulates and memory of an architecture, counted without building it.

MACs are given twice: `linear` counts linear and convolution layers (the paper's "GFLOPs"), `total` adds the two
attention products QKᵀ and softmax·V.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from fedskew.architecture import Architecture, BlockShape, StageShape

FLOAT_BYTES = 4


@dataclass(frozen=True)
class Macs:
    """Multiply-accumulates of one image."""

    linear: int
    total: int


def parameters(arch: Architecture) -> int:
    """Trainable values of the whole model, embeddings and classifier included."""
    last = arch.stages[-1]
    count = stem_parameters(arch)
    for i, stage in enumerate(arch.stages):
        if i:
            merged = 4 * arch.stages[i - 1].width
            count += 2 * merged + merged * stage.width  # patch merging: norm and reduction
        count += sum(sum(block_parameters(arch, i, block)) for block in stage.blocks)
    count += 2 * last.width + (last.width + 1) * len(arch.classes)  # final norm and classifier
    return count + sum(len(values) for _, values in arch.vocabularies) * last.width


def stem_parameters(arch: Architecture) -> int:
    """Parameters of the patch embedding and its norm."""
    width = arch.stages[0].width
    if arch.stem == "conv":
        half = width // 2
        return (27 + 1) * half + 2 * half + (9 * half + 1) * width + 2 * width
    return (3 * arch.patch_size**2 + 1) * width + 2 * width


def stem_macs(arch: Architecture) -> int:
    """MACs of the patch embedding."""
    width, tokens = arch.stages[0].width, arch.resolution(0) ** 2
    if arch.stem == "conv":
        return 4 * tokens * 27 * (width // 2) + tokens * 9 * (width // 2) * width
    return tokens * 3 * arch.patch_size**2 * width


def block_parameters(arch: Architecture, stage: int, block: BlockShape) -> tuple[int, int]:
    """Parameters of a block's attention and MLP sublayers, each with its norm."""
    shape = arch.stages[stage]
    norm = 2 * shape.width
    empty = norm if arch.removed == "norm" else 0
    inner = len(block.heads) * shape.head_dim
    table = (2 * arch.window(stage) - 1) ** 2 * len(block.heads)
    attention = norm + 3 * inner * (shape.width + 1) + (inner + 1) * shape.width + table
    mlp = norm + block.hidden * (shape.width + 1) + (block.hidden + 1) * shape.width
    return (attention if block.heads else empty), (mlp if block.hidden else empty)


def macs(arch: Architecture) -> Macs:
    """Multiply-accumulates of one image, without and with the attention products."""
    linear, products = stem_macs(arch), 0
    for i, stage in enumerate(arch.stages):
        tokens = arch.resolution(i) ** 2
        if i:
            linear += tokens * 4 * arch.stages[i - 1].width * stage.width
        for block in stage.blocks:
            attention, mlp, product = block_macs(arch, i, block)
            linear, products = linear + attention + mlp, products + product
    linear += arch.features * len(arch.classes)
    return Macs(linear, linear + products)


def block_macs(arch: Architecture, stage: int, block: BlockShape) -> tuple[int, int, int]:
    """MACs of a block: attention's linear layers, the MLP, and the attention products."""
    shape, side, window = arch.stages[stage], arch.resolution(stage), arch.window(stage)
    padded = (-(-side // window) * window) ** 2  # attention runs on whole windows
    inner = len(block.heads) * shape.head_dim
    attention = padded * 4 * inner * shape.width
    mlp = side**2 * 2 * block.hidden * shape.width
    return attention, mlp, padded * 2 * inner * window**2


def memory_bytes(arch: Architecture) -> int:
    """Bytes of parameters and buffers (window indices, attention masks) in float32: the paper's memory footprint."""
    buffers = 0
    for i, stage in enumerate(arch.stages):
        window, side = arch.window(i), arch.resolution(i)
        windows = (-(-side // window)) ** 2
        for j, block in enumerate(stage.blocks):
            if block.heads:
                buffers += window**4 * 8  # relative_position_index, int64
                if _is_shifted(arch, i, stage, j):
                    buffers += windows * window**4 * FLOAT_BYTES  # attn_mask
    return parameters(arch) * FLOAT_BYTES + buffers


def _is_shifted(arch: Architecture, index: int, stage: StageShape, block: int) -> bool:
    return block % 2 == 1 and arch.resolution(index) > arch.window(index) and stage.window > 1
