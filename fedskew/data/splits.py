"""Who gets which samples: test and open set of the server, parts of the clients, validation within a part.

Everything here is a pure function of ids, labels and a seed: every process computes the same split. With
`unit="lesion"` all images of a lesion stay on one side (39 % of HAM10000's test images would otherwise show a
lesion of the training set); `unit="image"` is for comparison only.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from fedskew.data.choices import Unit
from fedskew.data.partitions import partition
from fedskew.data.samples import DataError, Sample
from fedskew.data.units import Group, class_counts, flatten, group_by_class, to_indices, unit_of

__all__ = ["Split", "check_disjoint", "partition", "split_manifest", "split_samples", "train_validation"]


@dataclass(frozen=True, eq=False)
class Split:
    """Sample indices (int64, ascending) of the server's test and open set and of all clients together."""

    test: np.ndarray
    open: np.ndarray
    clients: np.ndarray
    unit: Unit
    seed: int


def split_samples(samples: Sequence[Sample], *, test: float, open: float, unit: Unit, seed: int) -> Split:
    """Split into test, open and client samples, stratified by class.

    Args:
        samples: all samples.
        test: fraction of the units (of each class) for testing.
        open: fraction for the server's open set.
        unit: what must stay together.
        seed: another seed gives another split.

    Returns:
        Fractions hold for each class to within one unit, and no set that is asked for goes without a class
        that has enough units: clients come first, then test, then open. `clients` is empty if the fractions
        add up to 1.

    Raises:
        DataError: no samples, or fractions that are not in [0, 1] or add up to more than 1.
    """
    if not samples:
        raise DataError("there are no samples to split")
    if not (0 <= test <= 1 and 0 <= open <= 1 and test + open <= 1 + 1e-9):
        raise DataError(f"fractions test {test} and open {open} must lie in [0, 1] and add up to at most 1")
    clients = max(0.0, 1 - test - open)
    fractions = (0.0 if clients < 1e-9 else clients, test, open)
    chosen: tuple[list[Group], ...] = ([], [], [])
    for groups in group_by_class(samples, range(len(samples)), unit, seed, "split").values():
        start = 0
        for part, count in zip(chosen, _quotas(len(groups), fractions), strict=True):
            part.extend(groups[start : start + count])
            start += count
    in_clients, in_test, in_open = (to_indices(part) for part in chosen)
    return Split(in_test, in_open, in_clients, unit, seed)


def train_validation(
    samples: Sequence[Sample], indices: Sequence[int] | np.ndarray, *, validation: float, unit: Unit, seed: int
) -> tuple[np.ndarray, np.ndarray]:
    """Split a client's samples into training and validation.

    Every 1/validation-th unit of the list sorted by class is taken, so the total is right to half a unit and
    each class to one. Training is never empty; validation is, where there are too few units.

    Returns:
        `(train, validation)`, int64 indices, ascending.

    Raises:
        DataError: no indices, or `validation` not in [0, 1).
    """
    if not 0 <= validation < 1:
        raise DataError(f"fraction validation {validation} must lie in [0, 1)")
    groups = flatten(group_by_class(samples, indices, unit, seed, "validation"))
    if not groups:
        raise DataError("there are no samples to split into training and validation")
    steps = [math.floor(position * validation + 0.5) for position in range(len(groups) + 1)]
    held_out = [steps[position + 1] > steps[position] for position in range(len(groups))]
    if all(held_out):
        held_out[-1] = False
    train = to_indices(group for group, held in zip(groups, held_out, strict=True) if not held)
    return train, to_indices(group for group, held in zip(groups, held_out, strict=True) if held)


def check_disjoint(samples: Sequence[Sample], *index_sets: Sequence[int] | np.ndarray, unit: Unit) -> None:
    """Make sure that no unit is in two of the sets.

    Raises:
        DataError: one is; the message names it and both sets (counted from 0).
    """
    owner: dict[str, int] = {}
    for number, indices in enumerate(index_sets):
        for index in indices:
            name = unit_of(samples[int(index)], unit)
            if owner.setdefault(name, number) != number:
                raise DataError(f"{unit} {name} is both in set {owner[name]} and in set {number} "
                                f"(image {samples[int(index)].image_id}); split again by {unit}")  # fmt: skip


def split_manifest(samples: Sequence[Sample], split: Split, parts: Sequence[np.ndarray]) -> dict[str, Any]:
    """A split as JSON-ready values, for the records of a run.

    Returns:
        `unit`, `seed`, `ids` (image ids of `test`, `open` and each of `parts`), `counts` (images per class of the
        same).
    """
    sets: dict[str, Any] = {"test": split.test, "open": split.open}
    return {
        "unit": split.unit,
        "seed": split.seed,
        "ids": {name: _ids(samples, indices) for name, indices in sets.items()}
        | {"parts": [_ids(samples, part) for part in parts]},
        "counts": {name: class_counts(samples, indices) for name, indices in sets.items()}
        | {"parts": [class_counts(samples, part) for part in parts]},
    }


def _ids(samples: Sequence[Sample], indices: np.ndarray) -> list[str]:
    return [samples[int(index)].image_id for index in indices]


def _quotas(count: int, fractions: Sequence[float]) -> list[int]:
    """Divide `count` units by fractions that add up to 1: largest remainders, and nobody goes without.

    Earlier fractions come first where there are not enough units for all.
    """
    exact = [count * fraction for fraction in fractions]
    quotas = [math.floor(value + 1e-9) for value in exact]
    by_remainder = sorted(range(len(exact)), key=lambda part: (quotas[part] - exact[part], part))
    for part in by_remainder[: count - sum(quotas)]:
        quotas[part] += 1
    asked = [part for part, fraction in enumerate(fractions) if fraction > 0]
    for part in asked:
        giver = max(reversed(asked), key=lambda other: quotas[other])
        can_give = quotas[giver] > 1 or giver > part
        if quotas[part] == 0 and quotas[giver] > 0 and can_give:
            quotas[part] += 1
            quotas[giver] -= 1
    return quotas
