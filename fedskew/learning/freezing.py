"""Which tensors belong to stages that are not trained any more."""

from __future__ import annotations

from collections.abc import Iterable

from fedskew.model.swin import MultimodalSwin


def freeze_stages(model: MultimodalSwin, stages: Iterable[int]) -> tuple[str, ...]:
    """Stop gradients of whole stages; returns the names of the frozen tensors. Stage 0 takes the stem with it."""
    prefixes = tuple(frozen_prefixes(stages))
    frozen = [name for name in model.state_dict() if name.startswith(prefixes)] if prefixes else []
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(name not in set(frozen))
    return tuple(frozen)


def frozen_prefixes(stages: Iterable[int]) -> list[str]:
    """Name prefixes of the tensors that belong to frozen stages."""
    stages = sorted(stages)
    return [f"encoder.layers.{stage}." for stage in stages] + (["encoder.patch_embed."] if 0 in stages else [])
