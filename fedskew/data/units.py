"""Groups of samples that must stay together, and an order among them that depends on nothing but ids and a seed."""

from __future__ import annotations

import hashlib
import itertools
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from fedskew.data.choices import Unit
from fedskew.data.samples import DataError, Sample


@dataclass(frozen=True)
class Group:
    """All given samples of one lesion or patient (or one image): its id and sample indices."""

    name: str
    indices: tuple[int, ...]


def unit_of(sample: Sample, unit: Unit) -> str:
    """The id of the group to which a sample belongs."""
    if unit == "lesion":
        return sample.group  # the patient, where the data set knows patients
    if unit == "image":
        return sample.image_id
    raise DataError(f"unit {unit!r} is unknown; expected 'lesion' or 'image'")


def group_by_class(
    samples: Sequence[Sample], indices: Iterable[int], unit: Unit, seed: int, purpose: str
) -> dict[str, list[Group]]:
    """Groups by their most frequent label (sorted by name), each class shuffled.

    The place of a group follows from a hash of (seed, purpose, id), so it is the same in every process and
    with every library version, and adding samples does not reshuffle the others.

    Raises:
        DataError: an index occurs twice or is out of range.
    """
    members: dict[str, list[int]] = {}
    for index in _checked(indices, len(samples)):
        members.setdefault(unit_of(samples[index], unit), []).append(index)
    classes: dict[str, list[Group]] = {}
    for name in sorted(members, key=lambda name: _rank(seed, purpose, name)):
        label = majority(samples[index].label for index in members[name])
        classes.setdefault(label, []).append(Group(name, tuple(members[name])))
    return dict(sorted(classes.items()))


def majority(values: Iterable[str]) -> str:
    """The most frequent value; of equally frequent ones the first by name."""
    counts = Counter(values)
    return min(counts, key=lambda value: (-counts[value], value))


def image_count(groups: Iterable[Group]) -> int:
    """How many images these groups hold."""
    return sum(len(group.indices) for group in groups)


def to_indices(groups: Iterable[Group]) -> np.ndarray:
    """The sample indices of groups: int64 [n], ascending."""
    return np.array(sorted(index for group in groups for index in group.indices), dtype=np.int64)


def class_counts(samples: Sequence[Sample], indices: Iterable[int]) -> dict[str, int]:
    """Images per label, sorted by label."""
    return dict(sorted(Counter(samples[int(index)].label for index in indices).items()))


def flatten(classes: Mapping[str, Sequence[Group]]) -> list[Group]:
    """All groups, class after class."""
    return [group for groups in classes.values() for group in groups]


def _checked(indices: Iterable[int], count: int) -> list[int]:
    listed = sorted(int(index) for index in indices)
    if listed and not (listed[0] >= 0 and listed[-1] < count):
        raise DataError(f"sample index {listed[0] if listed[0] < 0 else listed[-1]} is outside of 0..{count - 1}")
    twice = next((a for a, b in itertools.pairwise(listed) if a == b), None)
    if twice is not None:
        raise DataError(f"sample index {twice} is given twice; expected distinct indices")
    return listed


def _rank(seed: int, purpose: str, name: str) -> tuple[bytes, str]:
    return hashlib.sha256(f"{seed}\0{purpose}\0{name}".encode()).digest(), name
