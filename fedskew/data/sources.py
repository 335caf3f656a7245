"""Open a data set wherever and in whichever known layout it lies.

source = open_source("/data/ham10000")          # folder, or .zip / .tar / .tar.gz, or a folder of archives
source.samples[0], source.read(source.samples[0].image)
"""

from __future__ import annotations

import hashlib
import shlex
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from fedskew.data import class_folders, ham10000, isic, own_table
from fedskew.data import manifest as manifests
from fedskew.data.archives import is_archive_name, open_store
from fedskew.data.contradictions import contradiction_lines
from fedskew.data.finder import IMAGE_SUFFIXES, other_format_of, other_formats_note
from fedskew.data.manifest import ManifestLayout, load_manifest
from fedskew.data.names import with_one_spelling
from fedskew.data.samples import DataError, Sample
from fedskew.data.stores import FolderStore, Store, UnionStore
from fedskew.data.tables import MAX_TABLE_BYTES

__all__ = ["DataSource", "ManifestLayout", "load_manifest", "open_source"]

MAX_IMAGE_BYTES = 100 * 2**20
# what a sample was described by when the first caches were made: they outlive the version that made them
_FINGERPRINTED = ("image_id", "lesion_id", "label", "age", "sex", "localization", "site", "image")


@dataclass(frozen=True, eq=False)
class DataSource:
    """A data set: its samples and the means to read their images. Can be pickled and survives a fork.

    Attributes:
        path: what was opened.
        samples: sorted by `image_id`, the same in every process.
        description: the layout that was found, for people.
        missing: ids of samples without an image file (their `image` is empty).
        unread: of those, id → file of that name in a format that is not read, where there is one.
        fingerprint: sha256 over the tables and over the name, size and stamp (CRC or modification time) of
            every image: changed content changes it, at the cost of no more than a listing.
        notes: what a person should know: how the table was read, what it leaves out, what it does not tell.
        warnings: what contradicts itself, with names of patients and lesions: unlike notes, it never leaves a site.
    """

    path: Path
    samples: tuple[Sample, ...]
    description: str
    missing: tuple[str, ...]
    fingerprint: str
    store: Store = field(repr=False)
    notes: tuple[str, ...] = ()
    warnings: tuple[str, ...] = ()
    unread: Mapping[str, str] = field(default_factory=dict, repr=False)

    def why_missing(self, image_id: str) -> str:
        """Why one of `missing` has no image."""
        other = self.unread.get(image_id)
        return f"{other} is there, but no JPEG or PNG; convert it" if other else "file not found"

    def read(self, image: str) -> bytes:
        """The encoded image of `Sample.image`; DataError if it is absent, damaged or above 100 MiB."""
        return self.store.read(image, MAX_IMAGE_BYTES)

    def order(self) -> list[str]:
        """The keys of all images in the order in which they are read fastest (a .tar.gz: one pass)."""
        return self.store.order({sample.image for sample in self.samples if sample.image})

    def read_all(self) -> Iterator[tuple[str, bytes]]:
        """Every image as `(key, content)`, in that order; DataError at the first that cannot be read."""
        for image in self.order():
            yield image, self.read(image)


def open_source(path: str | Path, *, manifest: ManifestLayout | None = None, labelled: bool = True) -> DataSource:
    """Find out the layout of a data set and list its samples.

    Args:
        path: a folder (the data set may lie one level deeper, or in it as downloaded archives), or an archive.
            A .tar.gz is read to its end to list it: where many processes open it, unpack it first.
        manifest: how to read a hospital's own table; None looks for `manifest.yaml` in the folder, then for
            HAM10000, then for an ISIC challenge, then for folders named by class.
        labelled: whether a hospital's own table must tell diagnoses; if not, those that it tells do not count.

    Raises:
        DataError: the path does not exist, is empty or no data set, its table is faulty, or it has no images.
    """
    path = Path(path).expanduser().absolute()  # a worker process may start elsewhere
    store = open_store(path)
    if not any(True for _ in store.names()):
        raise DataError(f"{path} is empty; give the path of a data set's folder or archive")
    stores = [store]
    found = _open(store, path, manifest, labelled=labelled)
    if isinstance(store, FolderStore) and (found is None or found.missing):
        archives = [name for name in store.names() if is_archive_name(name)]
        if archives:
            stores.append(UnionStore(path, [store, *(open_store(path / name) for name in archives)]))
            found = _open(stores[1], path, manifest, labelled=labelled)
    for candidate in stores:  # last of all: a table may lie in an archive beside the images
        found = found or _open_class_folders(candidate, path)
    if found is None:
        raise DataError(_nothing_found(path, store))
    if len(found.missing) == len(found.samples):
        raise DataError(f"{path}: {found.description}, but not one image of its {len(found.samples)} rows was found "
                        f"(e.g. {found.missing[0]}); put the images beside the table")  # fmt: skip
    return found


def _open(store: Store, path: Path, manifest: ManifestLayout | None, *, labelled: bool) -> DataSource | None:
    """The data set in a store, in the first layout with a table that fits; None if there is none."""
    if manifest is None and store.entry(manifests.MANIFEST_NAME) is not None:
        text = store.read(manifests.MANIFEST_NAME, MAX_TABLE_BYTES).decode("utf-8-sig", errors="replace")
        manifest = manifests.parse_manifest(text, str(path / manifests.MANIFEST_NAME), labelled=labelled)
    if manifest is not None and not manifest.file:
        return _open_class_folders(store, path, manifest)
    if manifest is not None:
        samples, notes = own_table.parse(store, manifest, labelled=labelled)
        return _source(store, path, samples, (manifest.file,), f"manifest for {manifest.file}", notes)
    for name, layout in (("HAM10000", ham10000), ("ISIC challenge", isic)):
        tables = layout.find_tables(store)
        if tables:
            samples, notes = layout.parse(store, tables)
            if all(sample.lesion_id == sample.image_id for sample in samples):
                notes.append(own_table.NO_LESIONS)
            found = _with_images(store, samples)
            return _source(store, path, found, tables, f"{name} layout with {', '.join(tables)}", notes)
    return None


def _open_class_folders(store: Store, path: Path, manifest: ManifestLayout | None = None) -> DataSource | None:
    found = class_folders.find(store, None if manifest is None else manifest.labels)
    if found is None:
        return None
    samples, notes = found
    return _source(store, path, samples, (), "folders by class, no table", notes)


def _source(
    store: Store,
    path: Path,
    samples: Sequence[Sample],
    tables: Sequence[str],
    description: str,
    notes: Sequence[str] = (),
) -> DataSource:
    if not samples:
        raise DataError(f"{path}: {description}, but the labels of its manifest leave out every image")
    counts = Counter(sample.image_id for sample in samples)
    twice = [f"{image_id} stands in {count} rows" for image_id, count in counts.items() if count > 1]
    if twice:
        raise DataError(f"{path}: image id {_some(twice)}; every image must have exactly one row")
    named, warnings = with_one_spelling(samples)
    ordered = tuple(sorted(named, key=lambda sample: sample.image_id))
    warnings += contradiction_lines(ordered, lesions=bool(tables))
    missing = tuple(sample.image_id for sample in ordered if not sample.image)
    fingerprint = _fingerprint(store, ordered, tables)
    told = (*notes, *other_formats_note(store.names()))
    unread = other_format_of(store, missing)
    return DataSource(path, ordered, description, missing, fingerprint, store, told, tuple(warnings), unread)


def _with_images(store: Store, samples: Sequence[Sample]) -> list[Sample]:
    """The samples with their `image`: the file whose name without suffix is the image's id."""
    wanted = {sample.image_id for sample in samples}
    files: dict[str, str] = {}
    for name in store.names():
        stem, dot, suffix = name.rsplit("/", 1)[-1].rpartition(".")
        if stem not in wanted or (dot + suffix).lower() not in IMAGE_SUFFIXES:
            continue
        other = files.setdefault(stem, name)
        # common copies hold every image twice (two spellings of one folder): harmless if they are the same
        if _size(store, other) != _size(store, name):
            raise DataError(f"{store.path}: {other} and {name} differ, but both are named like image {stem}; "
                            "remove the one that is not meant")  # fmt: skip
    return [replace(sample, image=files.get(sample.image_id, "")) for sample in samples]


def _size(store: Store, name: str) -> int:
    entry = store.entry(name)
    return -1 if entry is None else entry.size


def _fingerprint(store: Store, samples: Sequence[Sample], tables: Sequence[str]) -> str:
    digest = hashlib.sha256(b"fedskew-source-1")
    for table in tables:
        digest.update(hashlib.sha256(store.read(table, MAX_TABLE_BYTES)).digest())
    for sample in samples:
        entry = store.entry(sample.image) if sample.image else None
        stamp = "missing" if entry is None else f"{entry.size}:{entry.stamp}"
        digest.update(f"{_described(sample)}\0{stamp}\n".encode())
    return digest.hexdigest()


def _described(sample: Sample) -> str:
    values = ", ".join(f"{name}={getattr(sample, name)!r}" for name in _FINGERPRINTED)
    more = (sample.patient_id, sample.metadata)
    return f"Sample({values})" + (repr(more) if any(more) else "")


def _nothing_found(path: Path, store: Store) -> str:
    tables = class_folders.tables(store)
    remedy = "Give the path of the data set itself, or write a manifest.yaml"
    if tables:
        unread = [name for name in tables if class_folders.is_spreadsheet(name)]
        first = f"Spreadsheets are not read: save {_some(unread)} as CSV. " if unread else ""
        readable = [name for name in tables if name not in unread] or ["the CSV"]
        remedy = (f"{first}A manifest.yaml must say what the columns of {_some(readable)} mean: "
                  f"`fedskew manifest {shlex.quote(str(path))}` drafts one")  # fmt: skip
    return (f"{path} is no data set that is known. Looked for {manifests.LOOKED_FOR}; {ham10000.LOOKED_FOR}; "
            f"{isic.LOOKED_FOR}; {class_folders.LOOKED_FOR}; also one level deeper and in archives. "
            f"Found {_some(store.names())}. {' '.join(f'{note}. ' for note in other_formats_note(store.names()))}"
            f"{remedy} (docs/data.md)")  # fmt: skip


def _some(names: Sequence[str]) -> str:
    return ", ".join(names[:5]) + (f" and {len(names) - 5} more" if len(names) > 5 else "")
