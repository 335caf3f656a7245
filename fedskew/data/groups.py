"""The groups of people and places that a model is also judged by: the hospital, the sex, a band of ages."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from fedskew.data.samples import UNKNOWN, Sample

AGE_BANDS = ((0, "under 30"), (30, "30–49"), (50, "50–69"), (70, "70 and over"))  # from how many years on


def groups_of(samples: Sequence[Sample]) -> dict[str, np.ndarray]:
    """`site`, `sex` and `age` of each sample, [N] str: what is known of any of them.

    Bands, not years: they say as much about a model and less about a patient.
    """
    columns = {
        "site": [sample.site or UNKNOWN for sample in samples],
        "sex": [sample.sex or UNKNOWN for sample in samples],
        "age": [age_band(sample.age) for sample in samples],
    }
    return {name: np.array(values) for name, values in columns.items() if set(values) - {UNKNOWN}}


def age_band(years: float | None) -> str:
    """The band that an age lies in; `unknown` where it is not known or below 0."""
    names = [name for start, name in AGE_BANDS if years is not None and years >= start]
    return names[-1] if names else UNKNOWN


def group_place(name: str) -> tuple[bool, int, str]:
    """For sorting: bands of ages in their order, what is unknown last."""
    bands = [band for _, band in AGE_BANDS]
    return name == UNKNOWN, bands.index(name) if name in bands else 0, name
