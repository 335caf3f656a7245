"""The units that are scored and removed: attention heads, and MLP channels in bundles (`prune.mlp-group`)."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass

from fedskew.config.schema import ConfigError, PruneConfig
from fedskew.model.architecture import Architecture
from fedskew.model.groups import ATTENTION, PrunableGroup, SublayerKey


@dataclass(frozen=True)
class Bundles:
    """What is left of a sublayer, in the units that are scored.

    Attributes:
        size: heads or channels in a unit.
        count: units left.
    """

    group: PrunableGroup
    size: int
    count: int


def bundle_size(setting: str, group: PrunableGroup) -> int:
    """Heads or channels in a unit: a head is one of its own.

    `ratio`: r = C/d channels, so the dense MLP has d groups (default reading); `width`: d channels, r groups;
    or a number.

    Raises:
        ConfigError: the number does not divide the sublayer's dense hidden width.
    """
    if group.numbered:
        return 1
    size = {"ratio": max(1, group.units // group.width), "width": group.width}.get(setting) or int(setting)
    if group.units % size:
        raise ConfigError(
            f"prune.mlp-group {setting} does not divide the hidden width {group.units} of stage {group.key.stage}; "
            "expected ratio, width or a number that divides it"
        )
    return size


def bundles(arch: Architecture, setting: str, keys: Iterable[SublayerKey] | None = None) -> dict[SublayerKey, Bundles]:
    """The units of sublayers (None: of all) that have any left, in the order of the forward pass.

    Raises:
        ConfigError: the channels that are left are no whole units (another reading pruned them).
    """
    wanted = None if keys is None else set(keys)
    found = {}
    for key, group in arch.groups.items():
        if arch.units[key] and (wanted is None or key in wanted):
            size = bundle_size(setting, group)
            if arch.units[key] % size:
                raise ConfigError(
                    f"stage {key.stage}, block {key.block} has {arch.units[key]} hidden channels left, no multiple of "
                    f"the group size {size}: this model was pruned with another prune.mlp-group or prune.align"
                )
            found[key] = Bundles(group, size, arch.units[key] // size)
    return found


def check_bundles(arch: Architecture, setting: str) -> None:
    """Raise `ConfigError` where a setting of `prune.mlp-group` does not fit an architecture's dense widths."""
    for group in arch.groups.values():
        bundle_size(setting, group)


Table = Mapping[SublayerKey, Bundles]


def table_of(arch: Architecture, config: PruneConfig, stages: Collection[int]) -> Table:
    """The units of some stages that a configuration prunes and that are left; raises as `bundles`."""
    wanted = {True: config.heads, False: config.mlp}
    return bundles(arch, config.mlp_group,
                   (key for key in arch.groups if key.stage in stages and wanted[key.kind == ATTENTION]))  # fmt: skip
