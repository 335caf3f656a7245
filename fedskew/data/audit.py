"""Does a split leak? Lesions and patients that lie in several parts, copies, and pictures that look alike.

A test image that shows a lesion of the training set makes every figure too good: the model has seen the answer.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from fedskew.console import counted
from fedskew.data.archives import open_store
from fedskew.data.cache import content_hash
from fedskew.data.decode import UnreadableImage, decode
from fedskew.data.duplicates import duplicate_groups
from fedskew.data.finder import is_image
from fedskew.data.perceptual import EDGE, THRESHOLD, close_pairs, perceptual_hash
from fedskew.data.samples import DataError
from fedskew.data.split_files import IMAGE_COLUMNS, Pairs, pick, table_of

GROUPS = {"lesion": ("lesion_id", "lesion"), "patient": ("patient_id", "patient")}
MAX_IMAGE_BYTES = 100 * 2**20


@dataclass(frozen=True)
class Overlap:
    """How many images of a part show a lesion (or patient) of another part."""

    part: str
    other: str
    images: int
    of: int


@dataclass(frozen=True)
class Shared:
    """Groups of one kind that lie in several parts.

    Attributes:
        groups: name → parts → images.
        overlaps: for every two parts that share a group, both ways; the largest share first.
    """

    groups: Mapping[str, Mapping[str, Sequence[str]]]
    overlaps: tuple[Overlap, ...]


@dataclass(frozen=True)
class Alike:
    """Two images of different parts that look alike, or are the same (0 bits, `same`)."""

    images: tuple[str, str]
    parts: tuple[str, str]
    bits: int
    same: bool


@dataclass(frozen=True)
class Audit:
    """What was found.

    Attributes:
        parts: images of each part.
        shared: by kind of group (`lesion`, `patient`), for the kinds that the metadata tell.
        alike: None if no images were given.
        notes: what else a person should know.
    """

    parts: Mapping[str, int]
    shared: Mapping[str, Shared]
    alike: tuple[Alike, ...] | None
    notes: tuple[str, ...] = ()

    @property
    def leaks(self) -> bool:
        """Whether anything is in two parts."""
        return any(shared.groups for shared in self.shared.values()) or bool(self.alike)


def read_groups(metadata: Path) -> dict[str, dict[str, str | None]]:
    """Image → kind of group → its name; None where it is not known. Every image has all kinds that the table has.

    Raises:
        DataError: no table, or it has no column of images, or neither of lesions nor of patients.
    """
    table = table_of(metadata)
    image = pick(table, IMAGE_COLUMNS, "", "images")
    columns = {kind: next((name for name in names if name in table.columns), "") for kind, names in GROUPS.items()}
    if not any(columns.values()):
        raise DataError(
            f"{table.name} has neither a column of lesions (lesion_id) nor one of patients (patient_id); its columns "
            f"are {', '.join(table.columns)}"
        )
    found: dict[str, dict[str, str | None]] = {}
    for row in table.rows:
        name = row.required(image)
        if name in found:
            row.fault(f"image {name} has a row above; every image must have exactly one")
        found[name] = {kind: row.text(column) for kind, column in columns.items() if column}
    table.check()
    return found


def audit(
    groups: Mapping[str, Mapping[str, str | None]],
    split: Pairs,
    images: Path | None = None,
    *,
    threshold: int = THRESHOLD,
) -> Audit:
    """Look for leaks of a split.

    Args:
        groups: see `read_groups`.
        split: see `split_files.read_split_file`.
        images: folder or archive with the images; None: they are not looked at.
        threshold: bits of the perceptual hash, see `perceptual`.

    Raises:
        DataError: there are no images of the split in that place.
    """
    kinds = list(next(iter(groups.values()), {}))
    notes = [
        f"{unknown} of {len(split)} images have no {kind} in the metadata: each counts as its own"
        for kind in kinds if (unknown := sum(groups[image][kind] is None for image, _ in split))
    ]  # fmt: skip
    if len({part for _, part in split}) == 1:
        notes.append(f"all images are in one part ({split[0][1]}): there is nothing that could leak")
    alike = None
    if images is not None:
        alike, missing = look_alikes(images, split, threshold)
        notes += missing
    parts = Counter(part for _, part in split)
    return Audit(parts, {kind: _shared(groups, split, kind) for kind in kinds}, alike, tuple(notes))


def _shared(groups: Mapping[str, Mapping[str, str | None]], split: Pairs, kind: str) -> Shared:
    members: dict[str, dict[str, list[str]]] = defaultdict(lambda: defaultdict(list))
    for image, part in split:
        if (group := groups[image][kind]) is not None:
            members[group][part].append(image)
    across = {group: dict(parts) for group, parts in members.items() if len(parts) > 1}
    counts: Counter[tuple[str, str]] = Counter()
    for parts in across.values():
        for part, images in parts.items():
            counts.update({(part, other): len(images) for other in parts if other != part})
    sizes = Counter(part for _, part in split)
    overlaps = [Overlap(part, other, count, sizes[part]) for (part, other), count in counts.items()]
    return Shared(across, tuple(sorted(overlaps, key=lambda one: (-one.images / one.of, one.part, one.other))))


def look_alikes(place: Path, split: Pairs, threshold: int) -> tuple[tuple[Alike, ...], list[str]]:
    """Pairs of images of different parts that look alike, the closest first; and notes of what could not be seen."""
    parts = dict(split)
    names, pictures, notes = [], [], []
    missing = set(parts)
    for image, result in counted(_pictures(place, missing), len(parts), "images read"):
        missing.discard(image)
        if isinstance(result, str):
            notes.append(f"{image} cannot be read and is not compared: {result}")
        else:
            names.append(image)
            pictures.append(result)
    if not names:
        raise DataError(f"{place} holds none of the {len(parts)} images of the split, named by their ids; give another")
    if missing:
        notes.append(f"{len(missing)} of {len(parts)} images are not in {place} and were not compared by their looks")
    stack = np.stack(pictures)  # [N, 32, 32, 3]
    numbers = np.unique([parts[name] for name in names], return_inverse=True)[1]
    contents = np.stack([np.frombuffer(content_hash(picture), dtype=np.uint8) for picture in pictures])
    same = {pair for group in duplicate_groups(contents, np.arange(len(names))) for pair in _pairs(group)}
    found = [
        Alike((names[i], names[j]), (parts[names[i]], parts[names[j]]), bits, (i, j) in same)
        for bits, i, j in close_pairs(perceptual_hash(stack), numbers, threshold)
    ]
    return tuple(sorted(found, key=lambda one: (not one.same, one.bits, one.images))), notes


def _pairs(group: Sequence[int]) -> Iterator[tuple[int, int]]:
    return ((i, j) for position, i in enumerate(group) for j in group[position + 1 :])


def _pictures(place: Path, wanted: set[str]) -> Iterator[tuple[str, np.ndarray | str]]:
    """Image → uint8 [32, 32, 3], or why it cannot be read; the first file of that name counts."""
    store, seen = open_store(place), set[str]()
    for name in store.names():
        image = name.rsplit("/", 1)[-1].rpartition(".")[0]
        if not is_image(name) or image not in wanted or image in seen:
            continue
        seen.add(image)
        try:
            yield image, decode(store.read(name, MAX_IMAGE_BYTES), EDGE, "squash")
        except (UnreadableImage, DataError) as error:
            yield image, str(error)


def audit_data(found: Audit, split: str) -> dict[str, Any]:
    """JSON-ready."""
    return {
        "split": split,
        "leaks": found.leaks,
        "parts": dict(found.parts),
        "shared": {
            kind: {
                "groups": {name: dict(parts) for name, parts in shared.groups.items()},
                "overlaps": [vars(overlap) | {"share": overlap.images / overlap.of} for overlap in shared.overlaps],
            }
            for kind, shared in found.shared.items()
        },
        "alike": None if found.alike is None else [vars(pair) for pair in found.alike],
        "notes": list(found.notes),
    }


def audit_text(found: Audit, split: str, shown: int = 10) -> str:
    """For a person: what leaks, the largest shares first."""
    parts = ", ".join(f"{part} {count}" for part, count in found.parts.items())
    lines = [f"{split}: {sum(found.parts.values())} images in {len(found.parts)} parts ({parts})"]
    for kind, shared in found.shared.items():
        verdict = f"{len(shared.groups)} are in several parts" if shared.groups else "none is in several parts"
        lines.append(f"{kind}s: {verdict}")
        lines += [
            f"  {one.images} of {one.of} images of {one.part} ({one.images / one.of:.1%}) show a {kind} of {one.other}"
            for one in shared.overlaps[:shown]
        ]
        lines += _more(len(shared.overlaps) - shown, "pairs of parts")
    if found.alike is not None:
        same = sum(pair.same for pair in found.alike)
        told = f"{len(found.alike)} pairs of different parts look alike, {same} of them are the same picture"
        lines.append(f"images: {told if found.alike else 'none looks like one of another part'}")
        lines += [
            f"  {pair.images[0]} ({pair.parts[0]}) and {pair.images[1]} ({pair.parts[1]}): "
            + ("the same" if pair.same else f"{pair.bits} of 256 bits differ")
            for pair in found.alike[:shown]
        ]
        lines += _more(len(found.alike) - shown, "pairs")
    return "\n".join([*lines, *(f"note: {note}" for note in found.notes)])


def _more(count: int, what: str) -> list[str]:
    return [f"  and {count} more {what} (--json has them all)"] if count > 0 else []
