"""An `Architecture` out of JSON that nobody vouches for. Version 1, which knew Swins only, stays readable."""

from __future__ import annotations

import json
from typing import Any

from fedskew.model.architecture import VERSION, Architecture, Kept
from fedskew.model.bounds import ArchitectureError, check_choice, check_integer, list_of, mapping_with
from fedskew.model.families import SPECS
from fedskew.model.families.swin import SwinSpec, SwinStage
from fedskew.model.groups import ATTENTION, MLP, Spec, SublayerKey

MAX_JSON_BYTES = 1_000_000
KEYS = {"version", "name", "family", "spec", "kept", "classes", "vocabularies", "weights", "removed"}
KEYS_1 = {"version", "name", "image_size", "patch_size", "stages", "stem", "classes", "vocabularies", "weights",
          "removed"}  # fmt: skip
STAGE_KEYS_1 = {"width": "width", "head_dim": "head_dim", "dense_heads": "heads", "dense_hidden": "hidden",
                "window": "window"}  # fmt: skip


def architecture_from_json(text: str | bytes) -> Architecture:
    """Rebuild and validate what `Architecture.to_json` wrote.

    Raises:
        ArchitectureError: not JSON, unknown or missing keys, wrong types, sizes out of bounds.
    """
    if len(text) > MAX_JSON_BYTES:
        raise ArchitectureError(f"architecture message of {len(text)} bytes, at most {MAX_JSON_BYTES} are read")
    try:
        value = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise ArchitectureError(f"architecture message is not JSON: {error}") from None
    if not isinstance(value, dict):
        raise ArchitectureError(f"architecture: expected an object, found {value!r:.80}")
    if "version" not in value:
        raise ArchitectureError("architecture: missing or unknown keys ['version']")
    check_integer(value["version"], "version", 1, VERSION)
    read = _version_1 if value["version"] == 1 else _version_2
    return read(value)


def _version_2(value: dict[str, Any]) -> Architecture:
    top = mapping_with(KEYS, value, "architecture")
    check_choice(top["family"] if isinstance(top["family"], str) else repr(top["family"]), "family", tuple(SPECS))
    spec = SPECS[top["family"]].from_mapping(top["spec"])
    kept = mapping_with({str(group.key) for group in spec.groups}, top["kept"], "kept")
    return Architecture(spec=spec, kept=_in_order(spec, kept), **_shared(top))


def _in_order(spec: Spec, kept: dict[str, Any]) -> tuple[tuple[SublayerKey, Kept], ...]:
    left = ((group.key, kept[str(group.key)]) for group in spec.groups)
    return tuple((key, tuple(units) if isinstance(units, list) else units) for key, units in left)


def _shared(top: dict[str, Any]) -> dict[str, Any]:
    vocabularies = []
    for entry in list_of(top["vocabularies"], "vocabularies"):
        pair = list_of(entry, "vocabularies[…]")
        if len(pair) != 2:
            raise ArchitectureError(f"vocabularies: expected pairs of a name and its values, found {pair!r:.80}")
        vocabularies.append((pair[0], tuple(list_of(pair[1], f"vocabulary {pair[0]!r:.40}"))))
    lists = {key: tuple(list_of(top[key], key)) for key in ("classes", "weights")}
    return {"name": top["name"], "removed": top["removed"], "vocabularies": tuple(vocabularies), **lists}


def _version_1(value: dict[str, Any]) -> Architecture:
    """Stages held their blocks, with the heads and the number of hidden channels that were left."""
    top = mapping_with(KEYS_1, {"stem": "patch"} | value, "architecture")
    stages, kept = [], {}
    for i, entry in enumerate(list_of(top["stages"], "stages")):
        stage = mapping_with({*STAGE_KEYS_1, "blocks"}, entry, f"stages[{i}]")
        blocks = list_of(stage.pop("blocks"), f"stages[{i}].blocks")
        stages.append(SwinStage(depth=len(blocks), **{new: stage[old] for old, new in STAGE_KEYS_1.items()}))
        for j, block in enumerate(blocks):
            left = mapping_with({"heads", "hidden"}, block, f"stages[{i}].blocks[{j}]")
            kept[str(SublayerKey(i, j, ATTENTION))] = left["heads"]
            kept[str(SublayerKey(i, j, MLP))] = left["hidden"]
    spec = SwinSpec(top["image_size"], top["patch_size"], tuple(stages), top["stem"])
    return Architecture(spec=spec, kept=_in_order(spec, kept), **_shared(top))
