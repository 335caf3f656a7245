"""Names of patients, lesions and sites as people and spreadsheets write them: `P001`, `p001` and `P 001` are one.

Two spellings taken for two patients leave one patient in training and test without anybody noticing. Two patients
taken for one only stay on the same side of every split. So spellings are brought together, and that is said.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace

from fedskew.data.finder import folded
from fedskew.data.samples import Sample

_WHOLE_NUMBER = re.compile(r"(\d+)[.,]0+")  # 7.0, as spreadsheets make it of 7
_LEADING_ZEROS = re.compile(r"(?<![\d.,])0+(?=\d)")
_SHOWN = 3


def name_key(name: str) -> str:
    """What all spellings of a name have in common: capitals, blanks, leading zeros and a final `.0` do not count."""
    text = "".join(folded(name).split())
    whole = _WHOLE_NUMBER.fullmatch(text)
    return _LEADING_ZEROS.sub("", whole.group(1) if whole else text)


def other_spellings(names: Iterable[str]) -> dict[str, str]:
    """Name → the spelling that stands for it, for those only that are to be replaced.

    The most frequent spelling stays; of equally frequent ones the first by order. Names without another spelling stay
    as they are, so that a clean table is split as ever.
    """
    counts = Counter(names)
    spellings: dict[str, list[str]] = {}
    for name in sorted(counts, key=lambda name: (-counts[name], name)):
        spellings.setdefault(name_key(name), []).append(name)
    return {name: first for first, *others in spellings.values() for name in others}


def with_one_spelling(samples: Sequence[Sample]) -> tuple[list[Sample], list[str]]:
    """The samples with one spelling for each patient, lesion and site, and a line for each kind that had several.

    An image that is its own lesion keeps its name: files `1.jpg` and `01.jpg` are two images.
    """
    lines: list[str] = []
    patients = _spelling("patients", [s.patient_id for s in samples], lines)
    lesions = _spelling("lesions or patients", [None if s.lesion_id == s.image_id else s.lesion_id for s in samples],
                        lines)  # fmt: skip
    sites = _spelling("sites", [s.site for s in samples], lines)
    if not lines:
        return list(samples), lines
    return [
        replace(
            sample,
            patient_id=patients(sample.patient_id),
            lesion_id=sample.lesion_id if sample.lesion_id == sample.image_id else lesions(sample.lesion_id),
            site=sites(sample.site),
        )
        for sample in samples
    ], lines


def _spelling(what: str, names: Sequence[str | None], lines: list[str]) -> Callable[[str | None], str | None]:
    replaced = other_spellings(name for name in names if name is not None)
    if replaced:
        lines.append(_line(what, replaced))
    return lambda name: None if name is None else replaced.get(name, name)


def _line(what: str, replaced: Mapping[str, str]) -> str:
    spellings: dict[str, list[str]] = {}
    for name, first in replaced.items():
        spellings.setdefault(first, [first]).append(name)
    listed = [" = ".join(map(repr, group)) for group in spellings.values()]
    more = f"; and {len(listed) - _SHOWN} more" if len(listed) > _SHOWN else ""
    return (
        f"{len(listed)} names of {what} are written in several ways that differ only in capitals, blanks, zeros or .0, "
        f"and are taken as one: {'; '.join(listed[:_SHOWN])}{more}; rename them if they are not"
    )
