"""Parameters, multiply-accumulates and memory of an architecture, counted without building it.

MACs are given twice: `linear` counts linear and convolution layers (the paper's "GFLOPs"), `total` adds the two
attention products QKᵀ and softmax·V.
"""

from __future__ import annotations

from dataclasses import dataclass

from fedskew.model.architecture import Architecture


@dataclass(frozen=True)
class Macs:
    """Multiply-accumulates of one image."""

    linear: int
    total: int


def parameters(arch: Architecture) -> int:
    """Trainable values of the whole model, embeddings and classifier included."""
    return arch.cost.parameters


def macs(arch: Architecture) -> Macs:
    """Multiply-accumulates of one image, without and with the attention products."""
    return Macs(arch.cost.linear, arch.cost.linear + arch.cost.products)


def memory_bytes(arch: Architecture) -> int:
    """Bytes of parameters and buffers in float32: the paper's memory footprint."""
    return arch.memory_bytes
