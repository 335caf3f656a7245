"""`Architecture`: the one value that describes a (pruned) multimodal Swin everywhere.

It travels in every message, lies in every checkpoint and alone suffices to rebuild the model.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, field, fields, replace
from functools import cached_property
from typing import Any

from torch.nn import ModuleDict

from fedskew.model.cost import memory_bytes, parameters

MAX_JSON_BYTES = 1_000_000
MAX_PARAMETERS = 1_000_000_000
MAX_BYTES = 4_000_000_000
REMOVED_MODES = ("norm", "skip")
STEMS = ("patch", "conv")
RESERVED = frozenset(dir(ModuleDict()))


class ArchitectureError(ValueError):
    """An architecture that cannot be built; the message names the field, what was found and what is allowed."""


@dataclass(frozen=True)
class BlockShape:
    """What is left of one Swin block."""

    heads: tuple[int, ...]  # kept heads, in the dense numbering; empty: the attention is removed
    hidden: int  # kept hidden channels of the MLP; 0: the MLP is removed


@dataclass(frozen=True)
class StageShape:
    """One stage: its fixed widths and its blocks."""

    width: int  # channels C of the tokens
    head_dim: int  # channels D of a head
    dense_heads: int
    dense_hidden: int
    window: int
    blocks: tuple[BlockShape, ...]


@dataclass(frozen=True)
class Architecture:
    """A multimodal Swin Transformer, dense or pruned.

    `weights` are those of the fusion z = w0·f + Σ wi·e_i (paper, section 4) in the order image, then the
    vocabularies' order; `vocabularies` is empty for an image-only model. In every vocabulary, index 0 is "unknown".
    """

    name: str
    image_size: int
    patch_size: int
    stages: tuple[StageShape, ...]
    classes: tuple[str, ...]
    vocabularies: tuple[tuple[str, tuple[str, ...]], ...] = ()
    weights: tuple[float, ...] = (1.0,)
    removed: str = "norm"
    stem: str = "patch"  # see `model.swin`; files from before there was a choice lack it
    version: int = field(default=1)

    def __post_init__(self) -> None:
        _validate(self)

    @property
    def features(self) -> int:
        """Width of the pooled image feature."""
        return self.stages[-1].width

    def block(self, stage: int, block: int) -> BlockShape:
        """The shape of one block."""
        return self.stages[stage].blocks[block]

    def positions(self) -> Iterator[tuple[int, int]]:
        """(stage, block) of every block, from the first to the last."""
        for stage, shape in enumerate(self.stages):
            yield from ((stage, block) for block in range(len(shape.blocks)))

    def resolution(self, stage: int) -> int:
        """Tokens a side in a stage (patch merging rounds up)."""
        side = self.image_size // self.patch_size
        for _ in range(stage):
            side = (side + 1) // 2
        return side

    def window(self, stage: int) -> int:
        """Tokens a side of a window, never more than the stage has."""
        return min(self.stages[stage].window, self.resolution(stage))

    def with_blocks(self, blocks: Mapping[tuple[int, int], BlockShape]) -> Architecture:
        """The same architecture with some blocks replaced."""
        stages = tuple(
            replace(stage, blocks=tuple(blocks.get((i, j), block) for j, block in enumerate(stage.blocks)))
            for i, stage in enumerate(self.stages)
        )
        return replace(self, stages=stages)

    def dense(self) -> Architecture:
        """The architecture before anything was removed."""
        blocks = {
            (i, j): BlockShape(tuple(range(self.stages[i].dense_heads)), self.stages[i].dense_hidden)
            for i, j in self.positions()
        }
        return self.with_blocks(blocks)

    def to_json(self) -> str:
        """Canonical JSON: equal architectures give equal text."""
        value = asdict(self) | {"weights": [float(weight) for weight in self.weights]}  # 1 and 1.0 are equal
        if self.stem == "patch":
            del value["stem"]  # the text, and so the digest, of a model from before there was a choice
        return json.dumps(value, sort_keys=True, separators=(",", ":"))

    @cached_property
    def digest(self) -> str:
        """SHA-256 of the canonical JSON."""
        return hashlib.sha256(self.to_json().encode()).hexdigest()

    @classmethod
    def from_json(cls, text: str | bytes) -> Architecture:
        """Rebuild and validate.

        Raises:
            ArchitectureError: not JSON, unknown or missing keys, wrong types, sizes out of bounds.
        """
        if len(text) > MAX_JSON_BYTES:
            raise ArchitectureError(f"architecture message of {len(text)} bytes, at most {MAX_JSON_BYTES} are read")
        try:
            value = json.loads(text)
        except (ValueError, RecursionError) as error:
            raise ArchitectureError(f"architecture message is not JSON: {error}") from None
        return _from_mapping(value)


def _from_mapping(value: Any) -> Architecture:
    if isinstance(value, dict):
        value = {"stem": "patch"} | value
    top = _checked_keys(value, Architecture, "architecture")
    stages = []
    for i, stage in enumerate(_checked_list(top["stages"], "stages")):
        content = _checked_keys(stage, StageShape, f"stages[{i}]")
        blocks = []
        for j, block in enumerate(_checked_list(content["blocks"], f"stages[{i}].blocks")):
            where = f"stages[{i}].blocks[{j}]"
            shape = _checked_keys(block, BlockShape, where)
            blocks.append(BlockShape(tuple(_checked_list(shape["heads"], f"{where}.heads")), shape["hidden"]))
        stages.append(StageShape(**{**content, "blocks": tuple(blocks)}))
    vocabularies = []
    for entry in _checked_list(top["vocabularies"], "vocabularies"):
        pair = _checked_list(entry, "vocabularies[…]")
        if len(pair) != 2:
            raise ArchitectureError(f"vocabularies: expected pairs of a name and its values, found {pair!r:.80}")
        vocabularies.append((pair[0], tuple(_checked_list(pair[1], f"vocabulary {pair[0]!r:.40}"))))
    lists = {key: tuple(_checked_list(top[key], key)) for key in ("classes", "weights")}
    return Architecture(**{**top, **lists, "stages": tuple(stages), "vocabularies": tuple(vocabularies)})


def _checked_keys(value: Any, kind: type, where: str) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise ArchitectureError(f"{where}: expected an object, found {value!r:.80}")
    expected = {spec.name for spec in fields(kind)}
    if set(value) != expected:
        odd = sorted(expected ^ set(value), key=str)
        raise ArchitectureError(f"{where}: missing or unknown keys {odd!r:.200}")
    return value


def _checked_list(value: Any, where: str) -> list[Any]:
    if not isinstance(value, list):
        raise ArchitectureError(f"{where}: expected a list, found {value!r:.80}")
    return value


def _integer(value: Any, where: str, low: int, high: int) -> None:
    if type(value) is not int or not low <= value <= high:
        raise ArchitectureError(f"{where} is {value!r:.80}, expected a whole number from {low} to {high}")


def _validate(arch: Architecture) -> None:
    _integer(arch.version, "version", 1, 1)
    _integer(arch.image_size, "image_size", 8, 1024)
    _integer(arch.patch_size, "patch_size", 1, 32)
    if arch.image_size % arch.patch_size:
        raise ArchitectureError(f"image_size {arch.image_size} is no multiple of patch_size {arch.patch_size}")
    if arch.removed not in REMOVED_MODES:
        raise ArchitectureError(f"removed is {arch.removed!r:.40}, expected one of {', '.join(REMOVED_MODES)}")
    if arch.stem not in STEMS:
        raise ArchitectureError(f"stem is {arch.stem!r:.40}, expected one of {', '.join(STEMS)}")
    if arch.stem == "conv" and arch.patch_size != 4:
        raise ArchitectureError(f"stem `conv` makes patches of 4 pixels, patch_size is {arch.patch_size}")
    _names((arch.name,), "name", 1)
    _names(arch.classes, "classes", 2)
    _validate_metadata(arch)
    _integer(len(arch.stages), "number of stages", 1, 6)
    for i, stage in enumerate(arch.stages):
        _validate_stage(stage, f"stages[{i}]")
        if i and stage.width != 2 * arch.stages[i - 1].width:
            raise ArchitectureError(f"stages[{i}].width is {stage.width}, expected twice the stage before")
    if (count := parameters(arch)) > MAX_PARAMETERS:
        raise ArchitectureError(f"{count:,} parameters, at most {MAX_PARAMETERS:,} are built")
    if (size := memory_bytes(arch)) > MAX_BYTES:  # wide windows on a large image: the masks outgrow the parameters
        raise ArchitectureError(f"{size:,} bytes of parameters and window tables, at most {MAX_BYTES:,} are built")


def _validate_stage(stage: StageShape, where: str) -> None:
    _integer(stage.width, f"{where}.width", 1, 8192)
    _integer(stage.head_dim, f"{where}.head_dim", 1, 1024)
    _integer(stage.dense_heads, f"{where}.dense_heads", 1, 512)
    _integer(stage.dense_hidden, f"{where}.dense_hidden", 1, 65_536)
    _integer(stage.window, f"{where}.window", 1, 64)
    _integer(len(stage.blocks), f"{where}: number of blocks", 1, 100)
    for j, block in enumerate(stage.blocks):
        for head in block.heads:
            _integer(head, f"{where}.blocks[{j}].heads", 0, stage.dense_heads - 1)
        if any(a >= b for a, b in zip(block.heads, block.heads[1:], strict=False)):
            raise ArchitectureError(
                f"{where}.blocks[{j}].heads must be ascending and different, found {block.heads!r:.80}"
            )
        _integer(block.hidden, f"{where}.blocks[{j}].hidden", 0, stage.dense_hidden)


def _validate_metadata(arch: Architecture) -> None:
    _names(tuple(name for name, _ in arch.vocabularies), "vocabularies", 0, 16)
    for name, values in arch.vocabularies:
        if "." in name:
            raise ArchitectureError(f"vocabularies: {name!r:.80} holds a dot, which separates names of tensors")
        if name in RESERVED:
            raise ArchitectureError(f"vocabularies: {name!r} is a name that torch's modules keep for themselves")
        _names(values, f"vocabulary {name!r:.80}", 1)
    if len(arch.weights) != 1 + len(arch.vocabularies):
        raise ArchitectureError(f"{len(arch.weights)} weights for the image and {len(arch.vocabularies)} vocabularies")
    for weight in arch.weights:
        if type(weight) not in (int, float) or not 0 <= weight <= 1:
            raise ArchitectureError(f"weights: {weight!r:.40} is not a number from 0 to 1")


def _names(names: tuple[Any, ...], where: str, low: int, high: int = 1000) -> None:
    _integer(len(names), f"{where}: number of entries", low, high)
    if any(type(name) is not str or not 0 < len(name) <= 200 for name in names):
        raise ArchitectureError(f"{where}: expected texts of 1 to 200 characters, found {names!r:.120}")
    if len(set(names)) != len(names):
        raise ArchitectureError(f"{where}: names appear twice in {names!r:.120}")
