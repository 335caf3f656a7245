"""One dermoscopy sample, the vocabularies of its metadata, and the encoding of both as integers."""

from __future__ import annotations

import bisect
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

Vocabularies = Mapping[str, Sequence[str]]


class DataError(ValueError):
    """The data are not what they should be; the message names the thing, the expectation and the remedy."""


@dataclass(frozen=True)
class Sample:
    """One image with its label and metadata; `None` where the data set does not know a value.

    Attributes:
        image_id: unique name of the image in its data set.
        lesion_id: the lesion (or patient) it shows; samples that share it are never separated.
        label: class name, e.g. `"mel"`.
        age: years.
        sex: lower case, e.g. `"female"`.
        localization: body site of the lesion, lower case, e.g. `"lower extremity"`.
        site: the institution that took the image (HAM10000's column `dataset`).
        image: key for `DataSource.read`; empty if the data set holds no file for this image.
    """

    image_id: str
    lesion_id: str
    label: str
    age: float | None
    sex: str | None
    localization: str | None
    site: str | None
    image: str


HAM10000_CLASSES = ("akiec", "bcc", "bkl", "df", "mel", "nv", "vasc")
ISIC2019_CLASSES = ("ak", "bcc", "bkl", "df", "mel", "nv", "scc", "vasc")

METADATA_FIELDS = ("sex", "age", "localization")  # the columns of `encode_metadata`, in order

VOCABULARIES: dict[str, tuple[str, ...]] = {
    "sex": ("unknown", "female", "male"),
    "age": ("unknown", *(str(years) for years in range(0, 95, 5)), "95+"),
    "localization": (
        "unknown", "abdomen", "acral", "back", "chest", "ear", "face", "foot", "genital", "hand",
        "lower extremity", "neck", "scalp", "trunk", "upper extremity",
    ),
}  # fmt: skip


def encode_metadata(samples: Sequence[Sample], vocabularies: Vocabularies = VOCABULARIES) -> np.ndarray:
    """Metadata as vocabulary indices.

    Args:
        samples: N samples.
        vocabularies: for each of `METADATA_FIELDS` its values; the first is `"unknown"`. The values of
            `age` are the lower ends of bins in years, ascending, the last one open (`"95+"`).

    Returns:
        int64 [N, 3] in the order sex, age, localization; 0 where a value is missing or not in the vocabulary
        (`unknown_values` counts the latter).

    Raises:
        DataError: a vocabulary is absent or does not begin with `"unknown"`.
    """
    encoders = [_Encoder(field, vocabularies) for field in METADATA_FIELDS]
    encoded = np.zeros((len(samples), len(METADATA_FIELDS)), dtype=np.int64)  # [N, 3]
    for row, sample in enumerate(samples):
        for column, (field, encode) in enumerate(zip(METADATA_FIELDS, encoders, strict=True)):
            encoded[row, column] = encode(getattr(sample, field))
    return encoded


def unknown_values(samples: Sequence[Sample], vocabularies: Vocabularies = VOCABULARIES) -> dict[str, dict[str, int]]:
    """Values that are present in the data but that `encode_metadata` maps to unknown.

    Returns:
        For each field that has any, `{value: number of samples}`, most frequent first; empty if all is known.
    """
    found: dict[str, dict[str, int]] = {}
    for field in METADATA_FIELDS:
        encode = _Encoder(field, vocabularies)
        values = (getattr(sample, field) for sample in samples)
        counts = Counter(str(value) for value in values if value is not None and encode(value) == 0)
        if counts:
            found[field] = dict(counts.most_common())
    return found


def encode_labels(samples: Sequence[Sample], classes: Sequence[str]) -> np.ndarray:
    """Labels as indices into `classes`.

    Returns:
        int64 [N].

    Raises:
        DataError: a label is not one of the classes.
    """
    index = {name: position for position, name in enumerate(classes)}
    encoded = np.zeros(len(samples), dtype=np.int64)  # [N]
    for row, sample in enumerate(samples):
        if sample.label not in index:
            raise DataError(
                f"image {sample.image_id}: label {sample.label!r} is not one of the classes "
                f"{', '.join(classes)}; add it to the classes of the run, or map it to one of them in a manifest"
            )
        encoded[row] = index[sample.label]
    return encoded


class _Encoder:
    """Index of one field's value in its vocabulary; 0 for what is missing or unknown."""

    def __init__(self, field: str, vocabularies: Vocabularies) -> None:
        if field not in vocabularies:
            raise DataError(f"no vocabulary for {field!r}; expected one for each of {', '.join(METADATA_FIELDS)}")
        values = tuple(vocabularies[field])
        if not values or values[0] != "unknown":
            raise DataError(f"vocabulary {field!r} must begin with 'unknown', got {values[:3]}")
        self._index = {value: position for position, value in enumerate(values)}
        self._lower_ends = [float(value.rstrip("+")) for value in values[1:]] if field == "age" else None

    def __call__(self, value: str | float | None) -> int:
        if value is None:
            return 0
        if self._lower_ends is not None:
            return bisect.bisect_right(self._lower_ends, float(value))
        return self._index.get(str(value), 0)
