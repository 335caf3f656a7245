"""An `Architecture` out of JSON that nobody vouches for. Version 1, which knew Swins only, stays readable."""

from __future__ import annotations

from typing import Any

from fedskew.model.architecture import Architecture, Kept
from fedskew.model.bounds import check_choice, list_of, mapping_with
from fedskew.model.families import SPECS
from fedskew.model.families.swin import SwinSpec, SwinStage
from fedskew.model.groups import ATTENTION, MLP, Spec, SublayerKey
from fedskew.model.signature import architecture_mapping, vocabularies_of

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
    value = architecture_mapping(text)
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
    vocabularies = vocabularies_of(top["vocabularies"])
    lists = {key: tuple(list_of(top[key], key)) for key in ("classes", "weights")}
    return {"name": top["name"], "removed": top["removed"], "vocabularies": vocabularies, **lists}


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
