"""A split by institution in which no lesion is in two parts, and which is the same whoever makes it of what.

Whether a lesion trains or tests follows from a hash of its id alone: other lesions, the order of rows and versions of
libraries do not matter, so somebody with a part of a data set gets that part of the same split.
"""

from __future__ import annotations

import hashlib
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

from fedskew.data.samples import DataError
from fedskew.data.split_files import IMAGE_COLUMNS, Pairs, pick, table_of
from fedskew.data.units import majority

SITE_COLUMNS, GROUP_COLUMNS = ("site", "dataset", "centre", "center"), ("patient_id", "lesion_id")
LABEL_COLUMNS = ("dx", "label")
TEST, TRAIN = "test", "train"


@dataclass(frozen=True)
class Row:
    """What a split by site needs of an image."""

    image: str
    group: str
    site: str
    label: str


def read_rows(metadata: Path) -> list[Row]:
    """The rows of a metadata table; raises `DataError` if it lacks a column or a value of the site."""
    table = table_of(metadata)
    image, site = pick(table, IMAGE_COLUMNS, "", "images"), pick(table, SITE_COLUMNS, "", "sites")
    group = pick(table, GROUP_COLUMNS, "", "patients or lesions")
    label = next((name for name in LABEL_COLUMNS if name in table.columns), None)
    rows = [
        Row(row.required(image), row.text(group) or row.required(image), row.required(site), row.text(label) or "")
        for row in table.rows
    ]
    table.check()
    return rows


def image_pairs(words: Iterable[str], rows: Iterable[Row]) -> list[tuple[str, str]]:
    """`["A=B"]` as pairs of images; raises `DataError` for what is no pair, or no image of the table."""
    known, pairs = {row.image for row in rows}, []
    for word in words:
        a, _, b = word.partition("=")
        if strange := [image for image in (a, b) if image not in known]:
            raise DataError(f"--together {word}: {strange[0]!r} is no image of the metadata; give two, as A=B")
        pairs.append((a, b))
    return pairs


def site_split(rows: Iterable[Row], *, test: float, together: Iterable[tuple[str, str]] = ()) -> Pairs:
    """Image and part (`rosendahl-test`) of every row, by image.

    Args:
        test: share of the lesions that tests.
        together: pairs of images that show the same lesion though the table has two.
    """
    listed = sorted(rows, key=lambda row: row.image)
    group_of = {row.image: row.group for row in listed}
    first = _united([(group_of[a], group_of[b]) for a, b in together])
    sites: dict[str, list[str]] = defaultdict(list)
    for row in listed:
        sites[first.get(row.group, row.group)].append(row.site)
    part = {group: f"{majority(found)}-{TEST if _fraction(group) < test else TRAIN}" for group, found in sites.items()}
    return [(row.image, part[first.get(row.group, row.group)]) for row in listed]


def _united(pairs: Iterable[tuple[str, str]]) -> dict[str, str]:
    """Group → the first by name of those that it belongs together with."""
    member: dict[str, set[str]] = {}
    for a, b in pairs:
        both = member.get(a, {a}) | member.get(b, {b})
        member |= dict.fromkeys(both, both)
    return {group: min(both) for group, both in member.items()}


def _fraction(group: str) -> float:
    """A number from 0 to 1 that is a group's own."""
    return int.from_bytes(hashlib.sha256(group.encode()).digest()[:8], "big") / 2**64


def split_csv(split: Pairs) -> str:
    """As a file that `read_split_file` reads."""
    return "image,part\n" + "".join(f"{image},{part}\n" for image, part in split)


def class_table(rows: Iterable[Row], split: Pairs) -> Mapping[str, Counter[str]]:
    """Part → images of each class."""
    part, found = dict(split), defaultdict[str, Counter[str]](Counter)
    for row in rows:
        found[part[row.image]][row.label] += 1
    return dict(sorted(found.items()))
