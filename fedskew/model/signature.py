"""What a model takes beside a picture and what it gives, out of the text of its architecture: knows no torch.

A device that runs an exported model reads no more than this. `codec` reads all of it, with the same checks.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from fedskew.data.preprocessing import Preprocessing, preprocessing_from
from fedskew.data.reference import Reference, reference_from
from fedskew.data.samples import DataError, NamedVocabularies
from fedskew.errors import FedskewError
from fedskew.model.bounds import ArchitectureError, check_integer, check_names, list_of

ARCHITECTURE, ABOUT = "fedskew-architecture", "fedskew-about"  # keys of a model file's metadata
VERSION = 2  # of the architecture's JSON; version 1 is read too
MAX_JSON_BYTES = 1_000_000
MAX_ABOUT_BYTES = 100_000


class ModelFileError(FedskewError, ValueError):
    """A model file that cannot be used; the message names the file and what is wrong."""


@dataclass(frozen=True)
class Signature:
    """The classes in the order of the logits, and the vocabularies in the order of the metadata."""

    classes: tuple[str, ...]
    vocabularies: NamedVocabularies


def signature_from_json(text: str | bytes) -> Signature:
    """The signature of what `Architecture.to_json` wrote.

    Raises:
        ArchitectureError: not JSON, or classes or vocabularies that cannot be.
    """
    top = architecture_mapping(text)
    if lacking := [key for key in ("classes", "vocabularies") if key not in top]:
        raise ArchitectureError(f"architecture: missing or unknown keys {lacking!r}")
    found = Signature(tuple(list_of(top["classes"], "classes")), vocabularies_of(top["vocabularies"]))
    check_signature(found.classes, found.vocabularies)
    return found


def architecture_mapping(text: str | bytes) -> dict[str, Any]:
    """The JSON object of an architecture of a version that is known.

    Raises:
        ArchitectureError: it is none.
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
    return value


def vocabularies_of(value: Any) -> NamedVocabularies:
    """Vocabularies as JSON has them: pairs of a name and its values."""
    found = []
    for entry in list_of(value, "vocabularies"):
        pair = list_of(entry, "vocabularies[…]")
        if len(pair) != 2:
            raise ArchitectureError(f"vocabularies: expected pairs of a name and its values, found {pair!r:.80}")
        found.append((pair[0], tuple(list_of(pair[1], f"vocabulary {pair[0]!r:.40}"))))
    return tuple(found)


def check_signature(classes: tuple[Any, ...], vocabularies: NamedVocabularies) -> None:
    """Raise `ArchitectureError` unless these can be the classes and vocabularies of a model."""
    check_names(classes, "classes", 2)
    check_names(tuple(name for name, _ in vocabularies), "vocabularies", 0, 16)
    for name, values in vocabularies:
        if "." in name:
            raise ArchitectureError(f"vocabularies: {name!r:.80} holds a dot, which separates names of tensors")
        check_names(values, f"vocabulary {name!r:.80}", 1)


def about_from_json(text: str, where: object) -> dict[str, Any]:
    """What a model file says of itself (`lineage.about_model`).

    Args:
        where: the file, for the message.

    Raises:
        ModelFileError: it is no mapping, or one of absurd size.
    """
    try:
        about = json.loads(text) if len(text) <= MAX_ABOUT_BYTES else None
    except (ValueError, RecursionError) as error:
        raise ModelFileError(f"{where} cannot be read as a model: {error}") from error
    if not isinstance(about, dict) or not all(isinstance(about.get(key, {}), dict) for key in ("split", "lineage")):
        raise ModelFileError(
            f"{where}: what it says of itself ({ABOUT}) is no mapping of at most {MAX_ABOUT_BYTES} bytes"
        )
    return about


def preprocessing_of(about: Mapping[str, Any], where: object) -> Preprocessing | None:
    """How the pictures of a model are prepared; None if its file does not say.

    Raises:
        ModelFileError: it says something that cannot be done.
    """
    try:
        return preprocessing_from(about["preprocessing"]) if "preprocessing" in about else None
    except DataError as error:
        raise ModelFileError(f"{where}: {error}") from error


def reference_of(about: Mapping[str, Any], where: object) -> Reference | None:
    """What the pictures of a model's training are like; None if its file does not say.

    Raises:
        ModelFileError: it says something that cannot be.
    """
    try:
        return reference_from(about["reference"]) if "reference" in about else None
    except DataError as error:
        raise ModelFileError(f"{where}: {error}") from error
