"""Which tensors belong to stages that are not trained any more."""

from __future__ import annotations

from collections.abc import Iterable

from fedskew.model.architecture import Architecture
from fedskew.model.fusion import MultimodalModel, stage_prefixes


def freeze_stages(model: MultimodalModel, stages: Iterable[int]) -> tuple[str, ...]:
    """Stop gradients of whole stages; returns the names of the frozen tensors."""
    prefixes = frozen_prefixes(model.architecture, stages)
    frozen = [name for name in model.state_dict() if name.startswith(prefixes)] if prefixes else []
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(name not in set(frozen))
    return tuple(frozen)


def frozen_prefixes(arch: Architecture, stages: Iterable[int]) -> tuple[str, ...]:
    """Name prefixes of the tensors that belong to frozen stages."""
    return tuple(prefix for stage in sorted(stages) for prefix in stage_prefixes(arch, stage))
