"""Samples out of a hospital's own table, as its manifest says."""

from __future__ import annotations

import posixpath
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import NamedTuple

from fedskew.data.finder import ImageFinder, folded
from fedskew.data.manifest import ManifestLayout, MetadataSource, ValueMap
from fedskew.data.names import name_key
from fedskew.data.samples import DataError, Sample, nearest_name
from fedskew.data.stores import Store
from fedskew.data.tables import Row, Table, read_table

NO_LESIONS = (
    "nothing is known of lesions or patients: each image counts as its own, so pictures of one lesion may be both in "
    "training and test, and figures too good"
)


class _Identity(NamedTuple):
    """Whom an image shows; None where the table does not say."""

    patient: str | None
    lesion: str | None


def parse(store: Store, layout: ManifestLayout, *, labelled: bool = True) -> tuple[list[Sample], list[str]]:
    """The samples of the hospital's table, `image` empty where there is no such file; and what is worth knowing.

    Args:
        labelled: whether the diagnoses count; if not, labels are empty and no row is left out for its own.

    Raises:
        DataError: a column of the manifest is not in the table, or rows are faulty; all faults are named at once.
    """
    file = posixpath.normpath(layout.file)
    if store.entry(file) is None:
        raise DataError(f"manifest: table {layout.file} is not in {store.path}; correct its key 'file'")
    table = read_table(store, file, layout.separator, layout.encoding)
    layout = layout if labelled else replace(layout, label="", labels={})
    table.need(*_columns(layout))
    kept, dropped = _labelled(table, layout) if labelled else ([(row, "") for row in table.rows], Counter[str]())
    identities, notes = _identities([row for row, _ in kept], layout)
    reader = _Reader(ImageFinder(store), layout, posixpath.dirname(file))
    samples = [reader.sample(row, label, who) for (row, label), who in zip(kept, identities, strict=True)]
    table.check()
    return samples, [*([] if layout.encoding else table.notes()), *dropped_note(dropped), *notes]


def _columns(layout: ManifestLayout) -> list[str]:
    named = [layout.image, layout.label, layout.lesion, layout.patient, layout.age, layout.sex, layout.localization,
             layout.site, *(source.column for source in layout.metadata.values())]  # fmt: skip
    return [column.lower() for column in named if column]


def _labelled(table: Table, layout: ManifestLayout) -> tuple[list[tuple[Row, str]], Counter[str]]:
    """The rows that stay with their classes, and how many go by the label that sends them."""
    kept, dropped = [], Counter[str]()
    labels = Lookup(layout.labels)
    for row in table.rows:
        word = row.values[layout.label.lower()]
        if layout.labels and word in labels:
            label = labels[word]
            if label is None:
                dropped[word] += 1
                continue
        else:
            label = row.required(layout.label.lower())
            if label and layout.labels:
                row.fault(_unmapped(label, list(layout.labels)))
        kept.append((row, label))
    return kept, dropped


def _unmapped(label: str, known: Sequence[str]) -> str:
    near = nearest_name(label, known)
    return (f"diagnosis {label!r} is not among the manifest's 'labels' ({', '.join(known)}); add it there"
            f"{f' (or did you mean {near!r}?)' if near else ''}, with null to leave such images out")  # fmt: skip


def _identities(rows: Sequence[Row], layout: ManifestLayout) -> tuple[list[_Identity], list[str]]:
    """Patient and lesion of each row. A lesion's name may be used again for another patient's."""
    if not (layout.patient or layout.lesion):
        return [_Identity(None, None)] * len(rows), [NO_LESIONS]
    told = [_Identity(row.text(_lower(layout.patient)), row.text(_lower(layout.lesion))) for row in rows]
    patients: dict[str, dict[str, str]] = {}  # of each lesion, by what the spellings of a name have in common
    for who in told:
        if who.lesion and who.patient:
            patients.setdefault(name_key(who.lesion), {}).setdefault(name_key(who.patient), who.patient)
    found = [_completed(row, who, patients) for row, who in zip(rows, told, strict=True)]
    shared = {name_key(who.lesion): who.lesion for who in reversed(told)
              if who.lesion and len(patients.get(name_key(who.lesion), ())) > 1}  # fmt: skip
    notes = []
    if shared:
        notes.append(f"{len(shared)} names of lesions occur with several patients (e.g. {min(shared.values())!r}): "
                     "taken as numbers within each patient")  # fmt: skip
    if alone := sum(who == (None, None) for who in found):
        notes.append(f"{alone} of {len(rows)} images name neither patient nor lesion: each counts as its own")
    return found, notes


def _completed(row: Row, who: _Identity, patients: Mapping[str, Mapping[str, str]]) -> _Identity:
    """The patient, where only the lesion is told; lesions that several patients share become `patient/lesion`."""
    owners = sorted(patients.get(name_key(who.lesion or ""), {}).values())
    if who.patient is None and len(owners) > 1:
        row.fault(f"no patient, and lesion {who.lesion!r} is that of {' and of '.join(owners)}; fill in the patient")
        return who
    patient = owners[0] if who.patient is None and owners else who.patient
    return _Identity(patient, f"{patient}/{who.lesion}" if len(owners) > 1 else who.lesion)


class _Reader:
    """Rows to samples; what is wrong is noted with the row."""

    def __init__(self, finder: ImageFinder, layout: ManifestLayout, folder: str) -> None:
        self._finder, self._layout, self._folder = finder, layout, folder
        self._sexes, self._places = Lookup(layout.sex_values), Lookup(layout.localization_values)
        self._more = [(name, source, Lookup(source.values)) for name, source in sorted(layout.metadata.items())]
        self._lines: dict[str, int] = {}  # of each image

    def sample(self, row: Row, label: str, who: _Identity) -> Sample:
        layout = self._layout
        image_id = row.required(layout.image.lower())
        return Sample(
            image_id=image_id,
            lesion_id=who.lesion or image_id,
            label=label,
            age=row.age(_lower(layout.age)),
            sex=self._sexes.word(row.text(_lower(layout.sex))),
            localization=self._places.word(row.text(_lower(layout.localization))),
            site=row.text(_lower(layout.site)),
            image=self._image(row, image_id),
            patient_id=who.patient,
            metadata=tuple((name, value) for name, *how in self._more if (value := _metadatum(row, *how)) is not None),
        )

    def _image(self, row: Row, image_id: str) -> str:
        try:
            key = self._finder.find(image_id, self._folder)
        except DataError as error:
            row.fault(str(error))
            return ""
        first = self._lines.setdefault(key or image_id, row.line)
        if first != row.line and image_id:
            row.fault(f"image {image_id!r} stands in line {first} too; every image must have exactly one row")
        return key


def _metadatum(row: Row, source: MetadataSource, values: Lookup) -> str | float | None:
    column = source.column.lower()
    return row.number(column) if source.numbers else values.word(row.text(column))


class Lookup:
    """A value map that also knows values in other capitals, where that leaves no doubt."""

    def __init__(self, values: ValueMap) -> None:
        counts = Counter(folded(value) for value in values)
        self._exact = dict(values)
        self._folded = {folded(old): new for old, new in values.items() if counts[folded(old)] == 1}

    def __contains__(self, value: str) -> bool:
        return value in self._exact or folded(value) in self._folded

    def __getitem__(self, value: str) -> str | None:
        return self._exact[value] if value in self._exact else self._folded[folded(value)]

    def word(self, value: str | None) -> str | None:
        """The value that stands for another; a value that is not in the map as it is, in lower case."""
        if value is None:
            return None
        return self[value] if value in self else value.lower()


def dropped_note(dropped: Mapping[str, int]) -> list[str]:
    """What the manifest leaves out."""
    listed = ", ".join(f"{label!r} ({count})" for label, count in sorted(dropped.items()))
    return [f"{sum(dropped.values())} images are left out, as the manifest's labels say: {listed}"] if dropped else []


def _lower(column: str | None) -> str | None:
    return column.lower() if column else None
