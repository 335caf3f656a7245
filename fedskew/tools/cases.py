"""The pictures that a model is asked about, with their metadata: files, folders, archives, tables. Knows no torch."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from fedskew.data import ham10000, isic
from fedskew.data.archives import is_archive_name, open_store
from fedskew.data.class_folders import tables
from fedskew.data.finder import ImageFinder, is_image, other_formats_note
from fedskew.data.manifest import MANIFEST_NAME, ManifestLayout, load_manifest
from fedskew.data.own_table import NO_LESIONS
from fedskew.data.samples import DataError, NamedVocabularies, Sample, lower_ends
from fedskew.data.sources import MAX_IMAGE_BYTES, DataSource, open_source
from fedskew.data.stores import FolderStore, Store
from fedskew.data.tables import Row, Table, read_table
from fedskew.tools.metadata import AGE, BODY_SITE, Metadata
from fedskew.tools.predict import content_of

TABLES = (".csv", ".tsv", ".tab", ".txt")
MANIFESTS = (".yaml", ".yml")
IMAGE_COLUMNS = ("image", "image_id", "picture", "file", "filename", "path")


@dataclass(frozen=True)
class Case:
    """A picture that a model is asked about.

    Attributes:
        name: of the picture, for people and tables.
        read: the bytes of its file; raises `DataError` or `UnreadableImage`.
        metadata: values by the names of the model's columns; what is not known is left out.
    """

    name: str
    read: Callable[[], bytes]
    metadata: Mapping[str, Metadata]


def find_cases(
    place: Path, vocabularies: NamedVocabularies, manifest: Path | None = None
) -> tuple[list[Case], list[str]]:
    """The pictures of a place, and what is worth knowing of how they were read.

    Args:
        place: an image; a folder or archive, of a layout that training reads or with nothing but images in it; a table
            of images and metadata under the model's own names; or the manifest of a table.
        vocabularies: the metadata that the model takes.
        manifest: how to read the table of a folder or archive, if it is not the `manifest.yaml` in it.

    Raises:
        DataError: a folder without images, or a faulty table. An image that is not there is an error of its own case.
    """
    suffix = place.suffix.lower()
    if place.is_file() and suffix in MANIFESTS:
        return _of_store(place.parent, vocabularies, place)
    if place.is_file() and suffix in TABLES:
        return _of_table(place, vocabularies)
    if place.is_dir() or (place.is_file() and is_archive_name(place.name)):
        return _of_store(place, vocabularies, manifest)
    return [Case(str(place), partial(content_of, place), {})], []


def _of_store(place: Path, vocabularies: NamedVocabularies, manifest: Path | None) -> tuple[list[Case], list[str]]:
    store, layout = open_store(place), None
    own = manifest or (place / MANIFEST_NAME if store.entry(MANIFEST_NAME) and place.is_dir() else None)
    if own is not None:
        layout = load_manifest(own, labelled=False)
    images = [name for name in store.names() if is_image(name)]
    if (not images or _has_table(store, layout)) and not (layout and not layout.file):
        source = open_source(place, manifest=layout, labelled=False)
        return list(_of_source(source, vocabularies)), [note for note in source.notes if note != NO_LESIONS]
    if not images:
        raise DataError(f"{place} holds no JPEG or PNG")
    unread = [f"{name} is not read: no {MANIFEST_NAME} says what its columns mean (fedskew manifest drafts one)"
              for name in tables(store)]  # fmt: skip
    cases = [Case(str(place / name), partial(store.read, name, MAX_IMAGE_BYTES), {}) for name in store.order(images)]
    return cases, [*unread, *other_formats_note(store.names())]


def _has_table(store: Store, layout: ManifestLayout | None) -> bool:
    """Whether a table tells of the images, in a layout that is known."""
    return bool(
        (layout and layout.file) or store.entry(MANIFEST_NAME) or ham10000.find_tables(store) or isic.find_tables(store)
    )


def _of_source(source: DataSource, vocabularies: NamedVocabularies) -> Iterator[Case]:
    """In the order in which images are read fastest; those that are not there come last."""
    place = {image: number for number, image in enumerate(source.order())}
    for sample in sorted(source.samples, key=lambda sample: place.get(sample.image, len(place))):
        read = partial(_read, source, sample)
        values = {name: sample.value(name) for name, _ in vocabularies}
        yield Case(sample.image_id, read, {name: value for name, value in values.items() if value is not None})


def _read(source: DataSource, sample: Sample) -> bytes:
    if not sample.image:
        raise DataError(source.why_missing(sample.image_id))
    return source.read(sample.image)


def _of_table(place: Path, vocabularies: NamedVocabularies) -> tuple[list[Case], list[str]]:
    store = FolderStore(place.parent)
    table = read_table(store, place.name)
    column = next((name for name in IMAGE_COLUMNS if name in table.columns), None)
    if column is None:
        raise DataError(
            f"{place} has no column with the images; call it {' or '.join(IMAGE_COLUMNS[:2])}, or say in a "
            f"{MANIFEST_NAME} what the columns mean (docs/data.md). Its columns are {', '.join(table.columns)}"
        )
    finder = ImageFinder(store)
    cases = [_of_row(row, column, finder, store, vocabularies) for row in table.rows]
    table.check()
    return cases, [*table.notes(), *_unread_columns(table, column, vocabularies)]


def _of_row(row: Row, column: str, finder: ImageFinder, store: Store, vocabularies: NamedVocabularies) -> Case:
    name, key = row.required(column), ""
    try:
        key = finder.find(name, "") if name else ""
    except DataError as error:
        row.fault(str(error))
    values = {known: _value(row, known, words) for known, words in vocabularies}
    metadata = {known: value for known, value in values.items() if value is not None}
    return Case(name, partial(_read_file, store, name, key), metadata)


def _read_file(store: Store, name: str, key: str) -> bytes:
    if not key:
        raise DataError(f"no file {name} in {store.path}")
    return store.read(key, MAX_IMAGE_BYTES)


def _value(row: Row, name: str, words: Sequence[str]) -> Metadata:
    column = name.lower()
    if lower_ends(words) is None:
        return row.word(column)
    return row.age(column) if name == AGE else row.number(column)


def _unread_columns(table: Table, column: str, vocabularies: NamedVocabularies) -> list[str]:
    known = {name.lower() for name, _ in vocabularies}
    unread = [name for name in table.columns if name != column and name not in known]
    site = f"; the body site is read from a column {BODY_SITE}" if {"site"} <= {*unread} and BODY_SITE in known else ""
    return [f"{table.name}: columns that this model does not take: {', '.join(unread)}{site}"] if unread else []
