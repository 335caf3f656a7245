"""What a person should know of a data set before believing a result."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from fedskew.data.samples import METADATA_FIELDS, Sample, absent_metadata, unknown_values

_SHOWN = 10  # foreign values of one column


def metadata_notes(samples: Sequence[Sample], vocabularies: Mapping[str, Sequence[str]]) -> list[str]:
    """Values that the vocabularies lack, and own columns of the run that the data do not have at all."""
    notes = []
    for name, values in unknown_values(samples, vocabularies).items():
        notes += [f"{name} {value!r} is not in the vocabulary: unknown for {count} images"
                  for value, count in list(values.items())[:_SHOWN]]  # fmt: skip
        if len(values) > _SHOWN:
            rest = sum(list(values.values())[_SHOWN:])
            notes.append(f"{name}: {len(values) - _SHOWN} more values are not in the vocabulary, of {rest} images")
    own = [name for name in absent_metadata(samples, vocabularies) if name not in METADATA_FIELDS]
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
