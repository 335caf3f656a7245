"""`Architecture`: the one value that describes a (pruned) multimodal model everywhere.

It travels in every message, lies in every checkpoint and alone suffices to rebuild the model.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from itertools import pairwise
from typing import Any

from torch.nn import ModuleDict

from fedskew.model.bounds import ArchitectureError, check_choice, check_integer, check_names
from fedskew.model.groups import REMOVED_MODES, Cost, PrunableGroup, Spec, SublayerKey
from fedskew.model.signature import VERSION, check_signature

MAX_PARAMETERS = 1_000_000_000
MAX_BYTES = 4_000_000_000
FLOAT_BYTES = 4
RESERVED = frozenset(dir(ModuleDict()))

Kept = tuple[int, ...] | int  # numbers of the units that are left, or how many


@dataclass(frozen=True)
class Architecture:
    """An image encoder, dense or pruned, with the metadata and the classes of a multimodal model.

    `weights` are those of the fusion z = w0·f + Σ wi·e_i (paper, section 4) in the order image, then the
    vocabularies' order; `vocabularies` is empty for an image-only model. In every vocabulary, index 0 is "unknown".
    `kept` holds what is left of every group of the encoder, in the encoder's order.
    """

    name: str
    spec: Spec
    kept: tuple[tuple[SublayerKey, Kept], ...]
    classes: tuple[str, ...]
    vocabularies: tuple[tuple[str, tuple[str, ...]], ...] = ()
    weights: tuple[float, ...] = (1.0,)
    removed: str = "norm"

    def __post_init__(self) -> None:
        check_names((self.name,), "name", 1)
        check_signature(self.classes, self.vocabularies)
        check_choice(self.removed, "removed", REMOVED_MODES)
        _check_metadata(self)
        _check_kept(self)
        if (count := self.cost.parameters) > MAX_PARAMETERS:
            raise ArchitectureError(f"{count:,} parameters, at most {MAX_PARAMETERS:,} are built")
        if (size := self.memory_bytes) > MAX_BYTES:  # wide windows on a large image: the masks outgrow the parameters
            raise ArchitectureError(f"{size:,} bytes of parameters and window tables, at most {MAX_BYTES:,} are built")

    @property
    def image_size(self) -> int:
        """Pixels a side."""
        return self.spec.image_size

    @property
    def features(self) -> int:
        """Width of the pooled image feature."""
        return self.spec.features

    @property
    def stages(self) -> int:
        """How many stages the encoder has."""
        return self.spec.stage_count

    @cached_property
    def groups(self) -> Mapping[SublayerKey, PrunableGroup]:
        """What can be pruned, in the order of the forward pass."""
        return {group.key: group for group in self.spec.groups}

    @property
    def blocks(self) -> list[tuple[int, int]]:
        """(stage, block) of every block, from the first to the last."""
        return list(dict.fromkeys((key.stage, key.block) for key in self.groups))

    @cached_property
    def left(self) -> Mapping[SublayerKey, Kept]:
        """What is left of each group: the dense numbers of its units, or how many."""
        return dict(self.kept)

    @cached_property
    def units(self) -> Mapping[SublayerKey, int]:
        """How many units each group has left."""
        return {key: kept if isinstance(kept, int) else len(kept) for key, kept in self.kept}

    def with_left(self, left: Mapping[SublayerKey, Kept]) -> Architecture:
        """The same architecture with less, or more, left of some groups."""
        return replace(self, kept=tuple((key, left.get(key, kept)) for key, kept in self.kept))

    def dense(self) -> Architecture:
        """The architecture before anything was removed."""
        return replace(self, kept=everything(self.spec))

    @cached_property
    def cost(self) -> Cost:
        """Of the whole model, embeddings and classifier included, counted without building it."""
        total = self.spec.fixed_cost()
        for key, units in self.units.items():
            total += self.spec.sublayer_cost(key, units, self.removed)
        rows = sum(len(values) for _, values in self.vocabularies)
        classifier = Cost((self.features + 1) * len(self.classes), self.features * len(self.classes))
        return total + classifier + Cost(rows * self.features)

    @property
    def memory_bytes(self) -> int:
        """Bytes of parameters and buffers in float32: the paper's memory footprint."""
        return self.cost.parameters * FLOAT_BYTES + self.cost.buffers

    def to_json(self) -> str:
        """Canonical JSON: equal architectures give equal text. `codec.architecture_from_json` reads it."""
        value: dict[str, Any] = {
            "version": VERSION,
            "name": self.name,
            "family": self.spec.family,
            "spec": self.spec.to_mapping(),
            "kept": {str(key): kept for key, kept in self.kept},
            "classes": self.classes,
            "vocabularies": self.vocabularies,
            "weights": [float(weight) for weight in self.weights],  # 1 and 1.0 are equal
            "removed": self.removed,
        }
        return json.dumps(value, sort_keys=True, separators=(",", ":"))

    @cached_property
    def digest(self) -> str:
        """SHA-256 of the canonical JSON."""
        return hashlib.sha256(self.to_json().encode()).hexdigest()


def everything(spec: Spec) -> tuple[tuple[SublayerKey, Kept], ...]:
    """What a dense encoder has of each group."""
    return tuple((group.key, tuple(range(group.units)) if group.numbered else group.units) for group in spec.groups)


def _check_metadata(arch: Architecture) -> None:
    for name, _ in arch.vocabularies:
        if name in RESERVED:
            raise ArchitectureError(f"vocabularies: {name!r} is a name that torch's modules keep for themselves")
    if len(arch.weights) != 1 + len(arch.vocabularies):
        raise ArchitectureError(f"{len(arch.weights)} weights for the image and {len(arch.vocabularies)} vocabularies")
    for weight in arch.weights:
        if type(weight) not in (int, float) or not 0 <= weight <= 1:
            raise ArchitectureError(f"weights: {weight!r:.40} is not a number from 0 to 1")


def _check_kept(arch: Architecture) -> None:
    if tuple(key for key, _ in arch.kept) != tuple(arch.groups):
        raise ArchitectureError("kept: expected one entry for every group of the encoder, in its order")
    for group, (key, kept) in zip(arch.groups.values(), arch.kept, strict=True):
        where = f"kept[{key}]"
        if not group.numbered:
            check_integer(kept, where, 0, group.units)
            continue
        if not isinstance(kept, tuple):
            raise ArchitectureError(f"{where}: expected the numbers of the units that are left, found {kept!r:.80}")
        for unit in kept:
            check_integer(unit, where, 0, group.units - 1)
        if any(a >= b for a, b in pairwise(kept)):
            raise ArchitectureError(f"{where} must be ascending and different, found {kept!r:.80}")
