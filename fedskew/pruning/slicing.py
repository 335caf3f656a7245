"""Slice: the tensors of the smaller model out of those of the larger one (paper, section 3.2)."""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor

from fedskew.architecture import Architecture
from fedskew.pruning.decide import Plan, apply_plan
from fedskew.pruning.units import ATTENTION, SublayerKey, group_size, unit_count


def slice_model(
    state: Mapping[str, Tensor], arch: Architecture, plan: Plan, group: str
) -> tuple[dict[str, Tensor], Architecture]:
    """State and architecture without the units of a plan.

    Kept tensors are copies of what they were; the rest of the model is passed on untouched. A sublayer that loses
    its last unit loses its tensors (and, in the mode `skip`, its norm).
    """
    smaller = apply_plan(arch, plan, group)
    result = dict(state)
    for key, gone in plan.remove.items():
        if gone:
            units = unit_count(arch, key, group)
            kept = sorted(set(range(units)).difference(gone))
            slice_block = _slice_attention if key.kind == ATTENTION else _slice_mlp
            slice_block(result, arch, key, kept, group)
    return result, smaller


def block_prefix(key: SublayerKey) -> str:
    """Name in the state of everything that belongs to a block."""
    return f"encoder.layers.{key.stage}.blocks.{key.block}."


def _slice_attention(state: dict[str, Tensor], arch: Architecture, key: SublayerKey, kept: list[int], _: str) -> None:
    prefix = block_prefix(key) + "attn."
    if not kept:
        return _drop(state, arch, prefix, block_prefix(key) + "norm1.")
    heads = len(arch.block(key.stage, key.block).heads)
    for name in ("qkv.weight", "qkv.bias"):
        rows = state[prefix + name].unflatten(0, (3, heads, -1))  # [3, H, D, …]
        state[prefix + name] = rows[:, kept].flatten(0, 2).clone()
    columns = state[prefix + "proj.weight"].unflatten(1, (heads, -1))  # [C, H, D]
    state[prefix + "proj.weight"] = columns[:, kept].flatten(1).clone()
    table = prefix + "relative_position_bias_table"  # [(2W-1)², H]
    state[table] = state[table][:, kept].clone()
    return None


def _slice_mlp(state: dict[str, Tensor], arch: Architecture, key: SublayerKey, kept: list[int], group: str) -> None:
    prefix = block_prefix(key) + "mlp."
    if not kept:
        return _drop(state, arch, prefix, block_prefix(key) + "norm2.")
    size = group_size(group, arch, key.stage)
    for name in ("fc1.weight", "fc1.bias"):
        state[prefix + name] = state[prefix + name].unflatten(0, (-1, size))[kept].flatten(0, 1).clone()
    columns = state[prefix + "fc2.weight"].unflatten(1, (-1, size))  # [C, G, r]
    state[prefix + "fc2.weight"] = columns[:, kept].flatten(1).clone()
    return None


def _drop(state: dict[str, Tensor], arch: Architecture, prefix: str, norm: str) -> None:
    prefixes = (prefix, norm) if arch.removed == "skip" else (prefix,)
    for name in [name for name in state if name.startswith(prefixes)]:
        del state[name]
