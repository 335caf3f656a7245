"""Images in folders that are named by their class, without any table: `mel/a.jpg`, `nv/b.jpg`.

The class is the first folder level. Each image is its own lesion, unless it lies in a folder below that of its class:
the images of `mel/patient_7/` and of `nv/patient_7/` are never separated.
"""

from __future__ import annotations

import re
from collections import Counter

from fedskew.data.archives import Store
from fedskew.data.finder import is_image
from fedskew.data.manifest import ValueMap
from fedskew.data.own_table import NO_LESIONS, Lookup, dropped_note
from fedskew.data.samples import DataError, Sample, nearest_name

LOOKED_FOR = "images in at least two folders named by class (mel/a.jpg, nv/b.jpg)"
TABLE_SUFFIXES = (".csv", ".tsv", ".tab", ".xls", ".xlsx", ".ods")
# folders of pictures whose table is missing, not of classes
_NO_CLASS = re.compile(r"images?\b|part[_-]?\d|mask|segmentation|ham10000|isic", re.IGNORECASE)
_SPLITS = frozenset({"train", "training", "test", "testing", "val", "valid", "validation"})


def tables(store: Store) -> list[str]:
    """Files that look like tables: where there are any, folders are not taken for classes."""
    return [name for name in store.names() if name.lower().endswith(TABLE_SUFFIXES)]


def find(store: Store, labels: ValueMap | None = None) -> tuple[list[Sample], list[str]] | None:
    """The samples of folders by class and what is worth knowing; None if the store holds no such folders.

    Args:
        labels: folder -> class, or None to leave it out; given by a manifest, which then may also lie beside tables.

    Raises:
        DataError: the folders are those of a split (train, test), or one is not among `labels`.
    """
    if labels is None and tables(store):
        return None
    images = [name for name in store.names() if is_image(name)]
    prefix = _wrapper(images)
    inside = [name for name in images if name.startswith(prefix) and "/" in name.removeprefix(prefix)]
    folders = Counter(name.removeprefix(prefix).split("/", 1)[0] for name in inside)
    if len(folders) < 2 or (labels is None and any(_NO_CLASS.search(folder) for folder in folders)):
        return None
    if _SPLITS.issuperset(folder.lower() for folder in folders):
        raise DataError(
            f"{store.path} holds the folders {', '.join(folders)}, which are parts of a split and no classes: give the "
            "folder of one part, or put the classes of all parts together; fedskew splits the images itself"
        )
    classes = _classes(folders, labels, store)
    samples = [_sample(name, prefix, label) for name in inside
               if (label := classes[name.removeprefix(prefix).split("/", 1)[0]]) is not None]  # fmt: skip
    dropped = {folder: count for folder, count in folders.items() if classes[folder] is None}
    return samples, [*dropped_note(dropped), *_group_notes(samples), *_unread_notes(store, len(images) - len(inside))]


def _unread_notes(store: Store, beside: int) -> list[str]:
    notes = [f"{beside} images beside the folders of classes are left out"] if beside else []
    if store.unlisted:
        notes.append(f"{len(store.unlisted)} folders lie too deep to be looked into (e.g. {store.unlisted[0]}): give a "
                     "folder further down, or move their images up")  # fmt: skip
    return notes


def _wrapper(images: list[str]) -> str:
    """The folders that everything lies in, as in an archive of one folder: `dataset/` of `dataset/mel/a.jpg`."""
    prefix = ""
    while images:
        tops = {name.removeprefix(prefix).partition("/")[::2] for name in images}
        names = {top for top, _ in tops}
        if len(names) > 1 or not all(rest for _, rest in tops):
            break
        prefix += f"{names.pop()}/"
    return prefix


def _classes(folders: Counter[str], labels: ValueMap | None, store: Store) -> dict[str, str | None]:
    """Folder → class."""
    lookup = Lookup(labels or {})
    if not labels:
        return {folder: folder for folder in folders}
    strange = [folder for folder in folders if folder not in lookup]
    if strange:
        listed = ", ".join(f"{folder!r} ({count} images)" for folder, count in folders.items() if folder in strange)
        near = nearest_name(strange[0], list(labels))
        raise DataError(
            f"{store.path}: folders that are not among the manifest's 'labels': {listed}; add them there"
            f"{f' (or did you mean {near!r}?)' if near else ''}, with null to leave them out"
        )
    return {folder: lookup[folder] for folder in folders}


def _sample(name: str, prefix: str, label: str) -> Sample:
    image_id = name.removeprefix(prefix)
    _, *below, _ = image_id.split("/")
    return Sample(image_id, below[0] if below else image_id, label, None, None, None, None, name)


def _group_notes(samples: list[Sample]) -> list[str]:
    """What keeps images together, and what does not."""
    sizes = Counter(sample.lesion_id for sample in samples if sample.lesion_id != sample.image_id)
    if not sizes:
        return [NO_LESIONS]
    name, most = sizes.most_common(1)[0]
    together = (f"images in a folder below that of their class are kept together as one lesion or patient: "
                f"{sizes.total()} images in {len(sizes)} such folders, {most} of them in {name!r}")  # fmt: skip
    return [together] if sizes.total() == len(samples) else [together, f"of the others {NO_LESIONS}"]
