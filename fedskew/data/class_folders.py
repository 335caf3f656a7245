"""Images in folders that are named by their class, without any table: `mel/a.jpg`, `nv/b.jpg`.

The class is the first folder level. Each image is its own lesion, unless it lies in a folder below that of its class:
the images of `mel/patient_7/` and of `nv/patient_7/` are never separated. Of several levels the outermost is taken that
does not consist of dates: `mel/2019/patient_7/visit_2/` is `patient_7`. An inner level would separate what an outer one
holds together (the visits of a patient); years hold strangers together and separate patients who came again.
"""

from __future__ import annotations

import re
from collections import Counter

from fedskew.data.finder import is_image
from fedskew.data.manifest import ValueMap
from fedskew.data.own_table import NO_LESIONS, Lookup, dropped_note
from fedskew.data.samples import DataError, Sample, nearest_name
from fedskew.data.stores import Store

LOOKED_FOR = "images in at least two folders named by class (mel/a.jpg, nv/b.jpg), or in one that a manifest labels"
SPREADSHEETS = (".xls", ".xlsx", ".ods")
TABLE_SUFFIXES = (".csv", ".tsv", ".tab", *SPREADSHEETS)
# folders of pictures whose table is missing, not of classes
_NO_CLASS = re.compile(r"images?\b|part[_-]?\d|mask|segmentation|ham10000|isic", re.IGNORECASE)
_DATE = re.compile(r"(19|20)\d\d([-_. ]?\d\d){0,2}|\d\d?[-_.]\d\d?[-_.](19|20)?\d\d")
_DAY_OR_MONTH = re.compile(r"\d\d?")  # below a year
_SPLITS = frozenset({"train", "training", "test", "testing", "val", "valid", "validation"})


def tables(store: Store) -> list[str]:
    """Files that look like tables: where there are any, folders are not taken for classes."""
    return [name for name in store.names() if name.lower().endswith(TABLE_SUFFIXES)]


def is_spreadsheet(name: str) -> bool:
    """Whether a file is a table of a program's own format, which nobody reads here."""
    return name.lower().endswith(SPREADSHEETS)


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
    prefix = _wrapper(images, Lookup(labels or {}))
    inside = [name for name in images if name.startswith(prefix) and "/" in name.removeprefix(prefix)]
    folders = Counter(name.removeprefix(prefix).split("/", 1)[0] for name in inside)
    if len(folders) < (1 if labels else 2) or (labels is None and any(_NO_CLASS.search(folder) for folder in folders)):
        return None
    if _SPLITS.issuperset(folder.lower() for folder in folders):
        raise DataError(
            f"{store.path} holds the folders {', '.join(folders)}, which are parts of a split and no classes: give the "
            "folder of one part, or put the classes of all parts together; fedskew splits the images itself"
        )
    classes = _classes(folders, labels, store)
    level = _patient_level([name.removeprefix(prefix).split("/")[1:-1] for name in inside])
    samples = [_sample(name, prefix, label, level) for name in inside
               if (label := classes[name.removeprefix(prefix).split("/", 1)[0]]) is not None]  # fmt: skip
    dropped = {folder: count for folder, count in folders.items() if classes[folder] is None}
    unread = _unread_notes(store, len(images) - len(inside))
    return samples, [*dropped_note(dropped), *_group_notes(samples, level), *unread]


def drafted(store: Store) -> Counter[str]:
    """Images by folder, for a manifest that labels them; a single folder counts too, as that of a site's only class."""
    if tables(store):
        return Counter()
    found = find(store)
    if found is not None:
        return Counter(sample.label for sample in found[0])
    folders = Counter(name.rpartition("/")[0] for name in store.names() if is_image(name))
    single = {folder.rpartition("/")[2] for folder in folders}
    return Counter({single.pop(): folders.total()}) if len(single) == 1 and "" not in single else Counter()


def _unread_notes(store: Store, beside: int) -> list[str]:
    notes = [f"{beside} images beside the folders of classes are left out"] if beside else []
    if store.unlisted:
        notes.append(f"{len(store.unlisted)} folders lie too deep to be looked into (e.g. {store.unlisted[0]}): give a "
                     "folder further down, or move their images up")  # fmt: skip
    return notes


def _wrapper(images: list[str], labels: Lookup) -> str:
    """The folders that everything lies in, as in an archive of one folder: `dataset/` of `dataset/mel/a.jpg`."""
    prefix = ""
    while images:
        tops = {name.removeprefix(prefix).partition("/")[::2] for name in images}
        names = {top for top, _ in tops}
        if len(names) > 1 or not all(rest for _, rest in tops) or all(name in labels for name in names):
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


def _patient_level(paths: list[list[str]]) -> int:
    """Which of the levels below that of the class names patients or lesions: the first that is not all dates."""
    dated = False
    for level in range(max(map(len, paths), default=0)):
        names = {path[level] for path in paths if len(path) > level}
        dates = all(_DATE.fullmatch(name) or (dated and _DAY_OR_MONTH.fullmatch(name)) for name in names)
        if not dates:
            return level
        dated = True
    return 0  # nothing but dates: whoever came on that day


def _sample(name: str, prefix: str, label: str, level: int) -> Sample:
    image_id = name.removeprefix(prefix)
    _, *below, _ = image_id.split("/")
    group = below[min(level, len(below) - 1)] if below else image_id
    return Sample(image_id, group, label, None, None, None, None, name)


def _group_notes(samples: list[Sample], level: int) -> list[str]:
    """What keeps images together, and what does not."""
    sizes = Counter(sample.lesion_id for sample in samples if sample.lesion_id != sample.image_id)
    if not sizes:
        return [NO_LESIONS]
    notes = _depth_notes(samples, sizes, level)
    name, most = sizes.most_common(1)[0]
    together = (f"images in a folder below that of their class are kept together as one lesion or patient: "
                f"{sizes.total()} images in {len(sizes)} such folders, {most} of them in {name!r}")  # fmt: skip
    return [together, *notes] if sizes.total() == len(samples) else [together, f"of the others {NO_LESIONS}", *notes]


def _depth_notes(samples: list[Sample], groups: Counter[str], level: int) -> list[str]:
    """Which of several levels was taken for patients: nobody but a person knows whether that is right."""
    deep = next((sample for sample in samples if sample.image_id.count("/") > 2), None)
    if deep is not None:
        taken = (
            f"level {level + 1} below the class counts as the lesion or patient ({deep.lesion_id!r} of {deep.image_id})"
        )
        return [f"folders below those of the classes lie in each other: {taken}, {len(groups)} of them in all; if that "
                "is wrong, move the images or write a table"]  # fmt: skip
    if all(map(_DATE.fullmatch, groups)):
        return ["the folders below those of the classes are named by dates, which are no patients: who came again may "
                "be both in training and test, and figures too good"]  # fmt: skip
    return []
