"""What a person should know of a data set before believing a result."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from fedskew.data.samples import METADATA_FIELDS, DataError, Sample, absent_metadata, unknown_values

MOST_UNUSABLE = 0.5  # share of the images
_SHOWN = 10  # foreign values of one column
_FIRST = 5  # images that cannot be used


def skipped_notes(samples: Sequence[Sample], unreadable: Sequence[tuple[str, str]]) -> list[str]:
    """How many images were not found or cannot be read, and the first of both with the reason.

    Args:
        unreadable: `(image_id, reason)` of every image that cannot be used.
    """
    absent = {sample.image_id for sample in samples if not sample.image}
    kinds = {"were not found": [entry for entry in unreadable if entry[0] in absent],
             "cannot be read": [entry for entry in unreadable if entry[0] not in absent]}  # fmt: skip
    return [f"{len(entries)} of {len(samples)} images {what} and are skipped; {_first(entries)}"
            for what, entries in kinds.items() if entries]  # fmt: skip


def check_usable(place: str, samples: Sequence[Sample], unusable: Sequence[tuple[str, str]]) -> None:
    """Refuse data of which more than half cannot be used: what is left is chosen by a mistake, not by anybody.

    Raises:
        DataError: it is so; the message has both counts, the first images and the remedy.
    """
    if len(unusable) > MOST_UNUSABLE * len(samples):
        raise DataError(
            f"{place}: only {len(samples) - len(unusable)} of {len(samples)} images can be used; "
            f"{'; '.join(skipped_notes(samples, unusable))}. Put the images where the table says, or take the rows "
            "without an image out of it: a result on so small a rest would not be one on these data"
        )


def _first(entries: Sequence[tuple[str, str]]) -> str:
    listed = "; ".join(f"{image_id}: {reason}" for image_id, reason in entries[:_FIRST])
    return f"the first: {listed}" if len(entries) > _FIRST else listed


def metadata_notes(samples: Sequence[Sample], vocabularies: Mapping[str, Sequence[str]]) -> list[str]:
    """Values that the vocabularies lack, and what the data do not have at all: own columns of the run, or all of it."""
    notes = []
    for name, values in unknown_values(samples, vocabularies).items():
        notes += [f"{name} {value!r} is not in the vocabulary: unknown for {count} images"
                  for value, count in list(values.items())[:_SHOWN]]  # fmt: skip
        if len(values) > _SHOWN:
            rest = sum(list(values.values())[_SHOWN:])
            notes.append(f"{name}: {len(values) - _SHOWN} more values are not in the vocabulary, of {rest} images")
    absent = absent_metadata(samples, vocabularies)
    if absent and len(absent) == len(vocabularies):
        notes.append(f"no image has any metadata that the model could see ({', '.join(absent)}): map columns to them "
                     "in the manifest, or set model.image-only=true")  # fmt: skip
    own = [name for name in absent if name not in METADATA_FIELDS]
    return notes + [f"no image has a value for {name} (model.metadata): map a column to it in the manifest, as "
                    f"metadata: {{{name}: column}}" for name in own]  # fmt: skip


def empty_classes(samples: Sequence[Sample], usable: np.ndarray, test: np.ndarray, classes: Sequence[str]) -> list[str]:
    """Classes of the model without any usable image, and those without one in the test set: a line for each of both.

    Args:
        usable: int [n], indices of all images that can be used.
        test: int [m], those of the test set.
    """
    lines, told = [], set[str]()
    for what, indices in {"in the data": usable, "in the test set, so without a recall": test}.items():
        present = {samples[i].label for i in indices}
        empty = [name for name in classes if name not in present | told]
        told |= set(empty)
        if empty:
            lines.append(f"classes of model.classes with no image {what}: {', '.join(empty)}")
    return lines
