"""From a configuration to the dense `Architecture` that it names."""

from __future__ import annotations

import re
from typing import Any

import timm

from fedskew.config.schema import ConfigError, MetadataColumn, ModelConfig
from fedskew.data.samples import METADATA_FIELDS, UNKNOWN, VOCABULARIES, bin_vocabulary, lower_ends
from fedskew.model.architecture import Architecture, everything
from fedskew.model.bounds import ArchitectureError
from fedskew.model.families.known import KNOWN
from fedskew.model.groups import Spec
from fedskew.text import nearest

WIDTH = "-width"  # in an architecture's name, before its share of the named model's width


def model_names() -> tuple[str, ...]:
    """Every name that `model.name` takes."""
    return tuple(name for family in KNOWN.values() for name in family.names)


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
        ConfigError: unknown name (the nearest one is given), an image size that the patches do not divide, or a stem
            that the family does not have.
    """
    try:
        spec = _spec(model)
        return Architecture(
            name=model.name if model.width == 1 else f"{model.name}{WIDTH}{model.width:g}",
            spec=spec,
            kept=everything(spec),
            classes=model.classes,
            vocabularies=vocabularies(model),
            weights=(
                1.0 if model.image_only else model.image_weight,
                *(column.weight for column in metadata_columns(model)),
            ),
            removed=removed,
        )
    except ArchitectureError as error:
        raise ConfigError(f"model: {error}") from None


def model_settings(arch: Architecture) -> dict[str, Any]:
    """The section `model` that describes the dense form of an architecture: what `dense_architecture` makes it of."""
    name, _, width = arch.name.partition(WIDTH)
    settings: dict[str, Any] = {
        "name": name,
        "image-size": arch.image_size,
        "classes": list(arch.classes),
        "stem": getattr(arch.spec, "stem", "patch"),
        "image-only": not arch.vocabularies,
        **({"width": float(width)} if width else {}),
    }
    if not arch.vocabularies:
        return settings
    weights = dict(zip((key for key, _ in arch.vocabularies), arch.weights[1:], strict=True))
    settings["image-weight"] = arch.weights[0]
    if arch.vocabularies == tuple(VOCABULARIES.items()):
        return settings | {f"{key}-weight": weight for key, weight in weights.items()}
    columns = {key: _column(key, values) | {"weight": weights[key]} for key, values in arch.vocabularies}
    return settings | {"metadata": columns}


def _column(name: str, vocabulary: tuple[str, ...]) -> dict[str, Any]:
    """What `_vocabulary` makes a vocabulary of."""
    if vocabulary == tuple(VOCABULARIES.get(name, ())):
        return {}
    ends = lower_ends(vocabulary)
    return {"values": list(vocabulary[1:])} if ends is None else {"bins": ends}


def _spec(model: ModelConfig) -> Spec:
    family = next((family for family in KNOWN.values() if model.name in family.names), None)
    if family is None:
        raise ConfigError(f"model.name {model.name!r} {_unknown(model.name)}")
    spec = family.spec(model.name)
    if model.stem not in spec.stems:
        raise ConfigError(f"model.stem is {model.stem}: only Swins have another than patch, {model.name} has not")
    return spec.variant(image_size=model.image_size or spec.image_size, stem=model.stem, width=model.width)


def _unknown(name: str) -> str:
    """What is wrong with a name that is none of `model_names`, and what to do."""
    plain, _, tag = name.partition(".")
    if tag and plain in model_names():
        return f"names weights too: set model.name={plain} and model.pretrained={name}"
    near = nearest(name, model_names(), 0.3)
    family = re.match(r"swinv2|[a-z]*", re.sub(r"swin[-_]v2", "swinv2", plain.lower()))
    if family and family[0] not in ("", "swin", "vit", "deit") and timm.list_models(f"{family[0]}*"):
        titles = ", ".join(known.title for known in KNOWN.values())
        small = ", ".join(name for known in KNOWN.values() for name in known.small)
        return (
            f"is of another family ({family[0]}), not supported yet: fedskew prunes {titles}, as "
            f"swin_tiny_patch4_window7_224, or {small}, which suit a CPU"
        )
    titles = " or ".join(known.title for known in KNOWN.values())
    return f"is no name of a {titles}{f'; did you mean {near}?' if near else ''}"
