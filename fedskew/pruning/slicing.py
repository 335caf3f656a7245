"""Slice: the tensors of the smaller model out of those of the larger one (paper, section 3.2)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from fedskew.model.architecture import Architecture
from fedskew.model.fusion import ENCODER
from fedskew.model.groups import Cut, PrunableGroup
from fedskew.pruning.decide import Plan, apply_plan
from fedskew.pruning.units import Bundles


def slice_model(
    state: Mapping[str, Tensor], arch: Architecture, plan: Plan, prefix: str = ENCODER
) -> tuple[dict[str, Tensor], Architecture]:
    """State and architecture without the units of a plan.

    Kept tensors are copies of what they were; the rest of the model is passed on untouched. A sublayer that loses
    its last unit loses its tensors (and, in the mode `skip`, its norm). Cuts of tensors that the state does not hold
    are left out: a part of a model can be sliced, too.

    Args:
        prefix: of the encoder's names in the state.
    """
    smaller = apply_plan(arch, plan)
    result = dict(state)
    for key, gone in plan.remove.items():
        if not gone:
            continue
        group = arch.groups[key]
        kept = sorted(set(range(arch.units[key] // plan.size(key))).difference(gone))
        if kept:
            _keep(result, group, arch.units[key], kept, plan.size(key), prefix)
        else:
            _drop(result, group, arch.removed, prefix)
    return result, smaller


def slice_companions(companions: Mapping[str, Tensor], arch: Architecture, plan: Plan) -> dict[str, Tensor]:
    """The companions of the model that a plan leaves of `arch`: what goes from round to round with its tensors.

    Each set (the optimisers' moments) has a prefix that ends in "/" before the names of the model's tensors. What has
    no prefix is never cut.
    """
    sets: dict[str, dict[str, Tensor]] = {}
    for name, tensor in companions.items():
        prefix, slash, rest = name.partition("/")
        sets.setdefault(prefix + slash if slash else "", {})[rest if slash else name] = tensor
    smaller = dict(sets.pop("", {}))
    for prefix, tensors in sets.items():
        smaller |= {prefix + name: tensor for name, tensor in slice_model(tensors, arch, plan)[0].items()}
    return smaller


def _keep(
    state: dict[str, Tensor], group: PrunableGroup, units: int, kept: Sequence[int], size: int, prefix: str
) -> None:
    for cut in group.cuts:
        if (name := prefix + cut.name) in state:
            rows = by_unit(state[name], cut, units // size)
            state[name] = rows.index_select(cut.axis + 1, _index(kept, rows)).flatten(cut.axis, cut.axis + 2)


def _index(kept: Sequence[int], like: Tensor) -> Tensor:
    return torch.tensor(kept, device=like.device)


def by_unit(tensor: Tensor, cut: Cut, units: int) -> Tensor:
    """A tensor whose cut axis is split in three: parts, units, and the values that a unit has in a part."""
    return torch.unflatten(tensor, cut.axis, (cut.parts, units, -1))


def by_units(tensors: Sequence[Tensor], units: Bundles) -> tuple[Tensor, ...]:
    """The tensors of a sublayer's cuts, or others of their shapes, unit by unit: each [units, values]."""
    return tuple(
        by_unit(tensor, cut, units.count).movedim(cut.axis + 1, 0).flatten(1)
        for tensor, cut in zip(tensors, units.group.cuts, strict=True)
    )


def _drop(state: dict[str, Tensor], group: PrunableGroup, removed: str, prefix: str) -> None:
    names = (group.prefix, group.norm) if removed == "skip" else (group.prefix,)
    gone = tuple(prefix + name for name in names)
    for name in [name for name in state if name.startswith(gone)]:
        del state[name]
