"""Tensors that are not trained any more."""

from __future__ import annotations

from collections.abc import Iterable

from fedskew.model.architecture import Architecture
from fedskew.model.fusion import MultimodalModel, stage_prefixes
from fedskew.model.layout import Part


def train_only(model: MultimodalModel, part: Part) -> None:
    """Stop gradients of everything that is not in a part."""
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(name in part)


def without_stages(arch: Architecture, stages: Iterable[int]) -> Part:
    """Everything but the tensors of some stages."""
    return Part(without=tuple(prefix for stage in sorted(stages) for prefix in stage_prefixes(arch, stage)))
