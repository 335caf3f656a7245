"""The prunable units of a model: attention heads and groups of MLP channels, by (stage, block, sublayer)."""

from __future__ import annotations

from dataclasses import dataclass

from fedskew.architecture import Architecture

ATTENTION, MLP = "attention", "mlp"


@dataclass(frozen=True, order=True)
class SublayerKey:
    """One prunable sublayer."""

    stage: int
    block: int
    kind: str  # ATTENTION or MLP


def group_size(setting: str, arch: Architecture, stage: int) -> int:
    """Channels in an MLP group of a stage.

    `ratio`: r = C/d channels, so the dense MLP has d groups (default reading); `width`: d channels, r groups;
    or a number.

    Raises:
        ValueError: the number does not divide the stage's dense hidden width.
    """
    shape = arch.stages[stage]
    size = {"ratio": max(1, shape.dense_hidden // shape.width), "width": shape.width}.get(setting) or int(setting)
    if shape.dense_hidden % size:
        raise ValueError(
            f"prune.mlp-group {setting} does not divide the hidden width {shape.dense_hidden} of stage {stage}"
        )
    return size


def unit_count(arch: Architecture, key: SublayerKey, group: str) -> int:
    """Units that a sublayer has left.

    Raises:
        ValueError: the hidden width that is left is no multiple of the group size (another reading pruned it).
    """
    block = arch.block(key.stage, key.block)
    if key.kind == ATTENTION:
        return len(block.heads)
    size = group_size(group, arch, key.stage)
    if block.hidden % size:
        raise ValueError(
            f"stage {key.stage}, block {key.block} has {block.hidden} hidden channels left, no multiple of the group "
            f"size {size}: this model was pruned with another prune.mlp-group or prune.align"
        )
    return block.hidden // size
