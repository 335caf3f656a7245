"""One dermoscopy sample, the vocabularies of its metadata, and the encoding of both as integers."""

from __future__ import annotations

import bisect
import itertools
import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from fedskew.errors import FedskewError
from fedskew.text import nearest

Vocabularies = Mapping[str, Sequence[str]]
NamedVocabularies = tuple[tuple[str, tuple[str, ...]], ...]  # in the order of a model's metadata
_SHOWN = 5  # strange labels in a message


class DataError(FedskewError, ValueError):
    """The data are not what they should be; the message names the thing, the expectation and the remedy."""


@dataclass(frozen=True)
class Sample:
    """One image with its label and metadata; `None` where the data set does not know a value.

    Attributes:
        image_id: unique name of the image in its data set.
        lesion_id: the lesion it shows; where nothing is known of it, the image's own id.
        label: class name, e.g. `"mel"`.
        age: years.
        sex: lower case, e.g. `"female"`.
        localization: body site of the lesion, lower case, e.g. `"lower extremity"`.
        site: the institution that took the image (HAM10000's column `dataset`).
        image: key for `DataSource.read`; empty if the data set holds no file for this image.
        patient_id: the patient; None in data sets that do not tell.
        metadata: further columns as `(name, value)`: text in lower case, or a number.
    """

    image_id: str
    lesion_id: str
    label: str
    age: float | None
    sex: str | None
    localization: str | None
    site: str | None
    image: str
    patient_id: str | None = None
    metadata: tuple[tuple[str, str | float], ...] = ()

    @property
    def group(self) -> str:
        """Who shares it must never be separated: the patient, or the lesion where the patient is not known."""
        return self.lesion_id if self.patient_id is None else self.patient_id

    def value(self, name: str) -> str | float | None:
        """A piece of metadata by its name, HAM10000's three or one of `metadata`; None if it is not known."""
        return getattr(self, name) if name in METADATA_FIELDS else dict(self.metadata).get(name)


HAM10000_CLASSES = ("akiec", "bcc", "bkl", "df", "mel", "nv", "vasc")
ISIC2019_CLASSES = ("ak", "bcc", "bkl", "df", "mel", "nv", "scc", "vasc")

METADATA_FIELDS = ("sex", "age", "localization")  # HAM10000's metadata, in the order of the fusion
UNKNOWN = "unknown"  # the first value of every vocabulary

VOCABULARIES: dict[str, tuple[str, ...]] = {
    "sex": ("unknown", "female", "male"),
    "age": ("unknown", *(str(years) for years in range(0, 95, 5)), "95+"),
    "localization": (
        "unknown", "abdomen", "acral", "back", "chest", "ear", "face", "foot", "genital", "hand",
        "lower extremity", "neck", "scalp", "trunk", "upper extremity",
    ),
}  # fmt: skip


def bin_vocabulary(lower_ends: Sequence[float]) -> tuple[str, ...]:
    """The vocabulary of a number: `unknown`, then the lower ends of its bins, the last one open (`"10+"`).

    Raises:
        DataError: the ends are not finite or do not ascend.
    """
    ends = [float(end) for end in lower_ends]
    if not ends or not all(map(math.isfinite, ends)) or any(a >= b for a, b in itertools.pairwise(ends)):
        raise DataError(f"bins {list(lower_ends)} must be one or more numbers, each larger than the one before")
    names = [str(int(end)) if end.is_integer() else repr(end) for end in ends]
    return (UNKNOWN, *names[:-1], f"{names[-1]}+")


def lower_ends(vocabulary: Sequence[str]) -> list[float] | None:
    """The bins that `bin_vocabulary` wrote into a vocabulary; None for a vocabulary of words."""
    values = vocabulary[1:]
    if not values or not values[-1].endswith("+"):
        return None
    try:
        ends = [float(value) for value in (*values[:-1], values[-1].removesuffix("+"))]
    except ValueError:
        return None
    return ends if all(a < b for a, b in itertools.pairwise(ends)) else None


def encode_metadata(samples: Sequence[Sample], vocabularies: Vocabularies = VOCABULARIES) -> np.ndarray:
    """Metadata as vocabulary indices.

    Args:
        samples: N samples.
        vocabularies: values by name, V of them; the first value of each is `"unknown"`. Where they are the lower ends
            of bins, ascending, the last one open (`"95+"`), they are those of a number.

    Returns:
        int64 [N, V] in the order of the vocabularies; 0 where a value is missing or not in the vocabulary
        (`unknown_values` counts the latter).

    Raises:
        DataError: a vocabulary does not begin with `"unknown"`.
    """
    encoders = [(name, _Encoder(name, values)) for name, values in vocabularies.items()]
    encoded = np.zeros((len(samples), len(encoders)), dtype=np.int64)  # [N, V]
    for row, sample in enumerate(samples):
        for column, (name, encode) in enumerate(encoders):
            encoded[row, column] = encode(sample.value(name))
    return encoded


def unknown_values(samples: Sequence[Sample], vocabularies: Vocabularies = VOCABULARIES) -> dict[str, dict[str, int]]:
    """Values that are present in the data but that `encode_metadata` maps to unknown.

    Returns:
        For each name that has any, `{value: number of samples}`, most frequent first; empty if all is known.
    """
    found: dict[str, dict[str, int]] = {}
    for name, vocabulary in vocabularies.items():
        encode = _Encoder(name, vocabulary)
        values = (sample.value(name) for sample in samples)
        counts = Counter(str(value) for value in values if value is not None and encode(value) == 0)
        if counts:
            found[name] = dict(counts.most_common())
    return found


def absent_metadata(samples: Sequence[Sample], vocabularies: Vocabularies) -> tuple[str, ...]:
    """Names of vocabularies of which no sample at all has a value."""
    return tuple(name for name in vocabularies if all(sample.value(name) is None for sample in samples))


def encode_labels(samples: Sequence[Sample], classes: Sequence[str]) -> np.ndarray:
    """Labels as indices into `classes`.

    Returns:
        int64 [N].

    Raises:
        DataError: labels are not among the classes; each is named with its number of images and the nearest class.
    """
    index = {name: position for position, name in enumerate(classes)}
    strange = Counter(sample.label for sample in samples if sample.label not in index)
    if strange:
        raise DataError(_strange_labels(samples, strange, classes))
    return np.array([index[sample.label] for sample in samples], dtype=np.int64)  # [N]


def _strange_labels(samples: Sequence[Sample], strange: Mapping[str, int], classes: Sequence[str]) -> str:
    first = next(sample for sample in samples if sample.label in strange)
    listed = [f"{label!r} ({count} images{_meant(label, classes)})" for label, count in list(strange.items())[:_SHOWN]]
    more = f" and {len(strange) - _SHOWN} more" if len(strange) > _SHOWN else ""
    return (
        f"image {first.image_id}: label {first.label!r} is not one of the classes {', '.join(classes)} "
        f"(model.classes). Such labels: {', '.join(listed)}{more}. Add them to model.classes, or map or drop them in a "
        "manifest: labels: {name: class, other: null}"
    )


def _meant(label: str, classes: Sequence[str]) -> str:
    near = nearest_name(label, classes)
    return f", nearest class {near!r}" if near else ""


def nearest_name(value: str, valid: Sequence[str]) -> str:
    """The name that was probably meant, whatever its case; empty if none is like it. Short forms count: `f`, `mela`."""
    names = {name.lower(): name for name in valid}
    starts = [name for name in names if name.startswith(value.lower()) or value.lower().startswith(name)]
    near = starts[0] if len(starts) == 1 else nearest(value.lower(), names, 0.5)
    return names[near] if near else ""


class _Encoder:
    """Index of one piece of metadata in its vocabulary; 0 for what is missing or unknown."""

    def __init__(self, name: str, vocabulary: Sequence[str]) -> None:
        values = tuple(vocabulary)
        if not values or values[0] != UNKNOWN:
            raise DataError(f"vocabulary {name!r} must begin with {UNKNOWN!r}, got {values[:3]}")
        self._index = {value.lower(): position for position, value in enumerate(values)}
        self._lower_ends = lower_ends(values)

    def __call__(self, value: str | float | None) -> int:
        if value is None:
            return 0
        if self._lower_ends is not None:
            if (named := self._index.get(str(value).lower(), 0)) > 0:
                return named  # a bin by its name, as 3+
            number = as_number(value)
            return 0 if number is None else bisect.bisect_right(self._lower_ends, number)
        return self._index.get((value if isinstance(value, str) else f"{value:g}").lower(), 0)


def as_number(value: str | float) -> float | None:
    """A finite number, also written with a decimal comma; None for what is none."""
    try:
        number = float(value.replace(",", ".")) if isinstance(value, str) else float(value)
    except ValueError:
        return None
    return number if math.isfinite(number) else None
