"""Metadata of one picture as a model takes them: names and values checked, then indices into its vocabularies.

Knows no torch.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from numbers import Real
from typing import Any, NamedTuple

import numpy as np

from fedskew.data.samples import (
    METADATA_FIELDS,
    DataError,
    NamedVocabularies,
    Sample,
    as_number,
    encode_metadata,
    lower_ends,
    nearest_name,
)
from fedskew.data.tables import MAX_AGE, MISSING

Metadata = str | float | None
AGE, BODY_SITE = "age", "localization"  # as HAM10000 calls them; `site` means the body site too


class Encoded(NamedTuple):
    """Metadata of one picture for a model.

    Attributes:
        codes: int64 [1, V], 0 where unknown.
        unknown: the names of those.
        notes: values that were given and count as unknown, because the model has not learned them.
    """

    codes: np.ndarray
    unknown: tuple[str, ...]
    notes: tuple[str, ...]


def named(
    vocabularies: NamedVocabularies, metadata: Mapping[str, Metadata] | None, values: Mapping[str, Metadata]
) -> dict[str, Metadata]:
    """Values by the names of a model's columns, out of a mapping and of keywords.

    Raises:
        DataError: the model has no such column, a value is given twice, is neither text nor number, or an age that
            nobody has.
    """
    found, known = dict(metadata or {}), dict(vocabularies)
    for name, value in values.items():
        name = column_of(name, known)
        if name in found:
            raise DataError(f"{name} is given twice, as a keyword and in `metadata` or as `site`; keep one of them")
        found[name] = value
    return {name: _checked(name, value, known) for name, value in found.items()}


def column_of(name: str, known: Mapping[str, Sequence[str]]) -> str:
    """The model's name of a column: `site` is the body site, unless the model has a column `site` of its own."""
    return BODY_SITE if name == "site" and "site" not in known and BODY_SITE in known else name


def encoded(vocabularies: NamedVocabularies, metadata: Mapping[str, Metadata]) -> Encoded:
    """What `named` gave, as a model takes it."""
    known = dict(vocabularies)
    codes = encode_metadata([_sample(metadata)], known)  # [1, V]
    unknown = tuple(name for name, code in zip(known, codes[0], strict=True) if code == 0)
    notes = tuple(unlearned(name, metadata[name], known[name]) for name in unknown if metadata.get(name) is not None)
    return Encoded(codes, unknown, notes)


def check_learned(vocabularies: NamedVocabularies, metadata: Mapping[str, Metadata]) -> None:
    """Raise `DataError` for values that count as unknown: a person who typed them meant something else."""
    if notes := encoded(vocabularies, metadata).notes:
        raise DataError("; ".join(notes).replace(", taken as unknown", "") + "; leave out what is not known")


def unlearned(name: str, value: Metadata, vocabulary: Sequence[str]) -> str:
    """Why a value counts as unknown."""
    ends = lower_ends(vocabulary)
    if ends is None:
        near = nearest_name(str(value), vocabulary[1:])
        meant = f" (did you mean {near!r}?)" if near else ""
        return f"{name} {value!r:.80} is none of {', '.join(vocabulary[1:])}{meant}, taken as unknown"
    number = as_number(value) if value is not None else None
    why = "no number" if number is None else f"below {ends[0]:g}, the smallest that the model knows"
    return f"{name} {value!r:.80} is {why}, taken as unknown"


def _checked(name: str, value: Metadata, known: Mapping[str, Sequence[str]]) -> Metadata:
    if name not in known:
        near = nearest_name(name, list(known))
        has = ", ".join(known) if known else "none: it sees images alone"
        meant = f"; did you mean {near}?" if near else ""
        raise DataError(f"this model has no metadata {name!r}{meant}; it has: {has}")
    is_number = lower_ends(known[name]) is not None
    if value is not None and (isinstance(value, bool) or not isinstance(value, str | Real)):
        wanted = "a number" if is_number else "a text"
        raise DataError(f"{name} is {value!r:.80}, expected {wanted}, or None where it is not known")
    if isinstance(value, str):
        value = value.strip()
        value = None if value.lower() in MISSING else value
    if value is not None and value != value:  # NaN, as tables say that nothing is known
        return None
    if name == AGE and is_number and value is not None and not 0 <= (as_number(value) or 0) <= MAX_AGE:
        raise DataError(f"age is {value}, expected years from 0 to {MAX_AGE:.0f}; leave it out where it is not known")
    return value


def _sample(metadata: Mapping[str, Metadata]) -> Sample:
    """Metadata as training has them of an image."""
    told = dict(metadata)
    own: dict[str, Any] = {name: told.pop(name, None) for name in METADATA_FIELDS}
    more = tuple((name, value) for name, value in told.items() if value is not None)
    return Sample("", "", "", site=None, image="", metadata=more, **own)
