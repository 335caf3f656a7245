"""From a model's name to its dense `Architecture`: any timm Swin v1, and small ones for CPU runs."""

from __future__ import annotations

import difflib
import re
from typing import Any

import timm

from fedskew.architecture import Architecture, ArchitectureError, BlockShape, StageShape
from fedskew.config.schema import ConfigError, MetadataColumn, ModelConfig
from fedskew.data.samples import METADATA_FIELDS, UNKNOWN, VOCABULARIES, bin_vocabulary

SMALL = {  # names follow timm's: patch, window, image size
    "swin_micro_patch4_window4_32": {"image_size": 32, "embed_dim": 24, "depths": (2, 2), "heads": (3, 6)},
    "swin_mini_patch4_window4_64": {"image_size": 64, "embed_dim": 32, "depths": (2, 2, 2), "heads": (2, 4, 8)},
    "swin_small64_patch4_window4_64": {
        "image_size": 64,
        "embed_dim": 48,
        "depths": (2, 2, 6, 2),
        "heads": (3, 6, 12, 24),
    },
    # small64's parameters, 7 % fewer MACs, eight broader blocks for twelve: learns faster (docs/results.md)
    "swin_wide64_patch4_window4_64": {
        "image_size": 64,
        "embed_dim": 56,
        "depths": (2, 2, 2, 2),
        "heads": (4, 8, 16, 32),
    },
}


def model_names() -> tuple[str, ...]:
    """Every name that `model.name` takes."""
    return (*SMALL, *(name for name in timm.list_models("swin_*") if not name.startswith(("swin_v2", "swinv2"))))


def image_size(model: ModelConfig) -> int:
    """Pixels a side of the images that a model takes."""
    return model.image_size or dense_architecture(model).image_size


def metadata_columns(model: ModelConfig) -> tuple[MetadataColumn, ...]:
    """What the model sees beside the image, in the order of the fusion: HAM10000's three, or one's own."""
    if model.image_only:
        return ()
    return model.metadata or tuple(
        MetadataColumn(name, weight=getattr(model, f"{name}_weight")) for name in METADATA_FIELDS
    )


def vocabularies(model: ModelConfig) -> tuple[tuple[str, tuple[str, ...]], ...]:
    """The values of each column by name, as an `Architecture` has them."""
    return tuple((column.name, _vocabulary(column)) for column in metadata_columns(model))


def _vocabulary(column: MetadataColumn) -> tuple[str, ...]:
    if column.bins:
        return bin_vocabulary(column.bins)
    return (UNKNOWN, *column.values) if column.values else VOCABULARIES[column.name]


def dense_architecture(model: ModelConfig, *, removed: str = "norm") -> Architecture:
    """The dense architecture that a configuration names.

    Raises:
        ConfigError: unknown name (the nearest one is given), or an image size that the patches do not divide.
    """
    if model.name not in model_names():
        raise ConfigError(f"model.name {model.name!r} {_unknown(model.name)}")
    known = _small(SMALL[model.name]) if model.name in SMALL else _from_timm(model.name)
    try:
        return Architecture(
            name=model.name,
            image_size=model.image_size or known["image_size"],
            patch_size=known["patch_size"],
            stages=known["stages"],
            classes=model.classes,
            vocabularies=vocabularies(model),
            weights=(
                1.0 if model.image_only else model.image_weight,
                *(column.weight for column in metadata_columns(model)),
            ),
            removed=removed,
            stem=model.stem,
        )
    except ArchitectureError as error:
        raise ConfigError(f"model: {error}") from None


def _unknown(name: str) -> str:
    """What is wrong with a name that is none of `model_names`, and what to do."""
    plain, _, tag = name.partition(".")
    if tag and plain in model_names():
        return f"names weights too: set model.name={plain} and model.pretrained={name}"
    family = re.match(r"swinv2|[a-z]*", re.sub(r"swin[-_]v2", "swinv2", plain.lower()))
    if family and family[0] not in ("", "swin") and timm.list_models(f"{family[0]}*"):
        return (
            f"is of another family ({family[0]}), not supported yet: fedskew prunes Swin v1, as "
            f"swin_tiny_patch4_window7_224, or {', '.join(SMALL)}, which suit a CPU"
        )
    near = difflib.get_close_matches(name, model_names(), n=1, cutoff=0.3)
    return f"is no Swin v1 name{f'; did you mean {near[0]}?' if near else ''}"


def _small(spec: dict[str, Any]) -> dict[str, Any]:
    width = spec["embed_dim"]
    stages = tuple(
        _stage(width * 2**i, heads, width * 2**i // heads, 4 * width * 2**i, 4, depth)
        for i, (depth, heads) in enumerate(zip(spec["depths"], spec["heads"], strict=True))
    )
    return {"image_size": spec["image_size"], "patch_size": 4, "stages": stages}


def _from_timm(name: str) -> dict[str, Any]:
    """Read the shapes off timm's own model, so that every registered configuration works."""
    model = timm.create_model(name, num_classes=0)
    windows = [size[0] for size in model._ref_window_sizes]
    stages = []
    for layer, window in zip(model.layers, windows, strict=True):
        block = layer.blocks[0]
        heads = block.attn.num_heads
        stages.append(
            _stage(block.dim, heads, block.dim // heads, block.mlp.fc1.out_features, window, len(layer.blocks))
        )
    return {
        "image_size": model.patch_embed.img_size[0],
        "patch_size": model.patch_embed.patch_size[0],
        "stages": tuple(stages),
    }


def _stage(width: int, heads: int, head_dim: int, hidden: int, window: int, depth: int) -> StageShape:
    block = BlockShape(tuple(range(heads)), hidden)
    return StageShape(width, head_dim, heads, hidden, window, (block,) * depth)
