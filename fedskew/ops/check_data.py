"""A site's data folder: what training would find in it, and what it would silently leave out."""

from __future__ import annotations

import itertools
import shutil
from collections import Counter, deque
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from fedskew.console import counted
from fedskew.data.cache import CONTENT_BYTES, content_hash
from fedskew.data.choices import Fit
from fedskew.data.decode import UnreadableImage, decode
from fedskew.data.duplicates import duplicate_groups, duplicate_lines
from fedskew.data.manifest import MANIFEST_NAME, load_manifest
from fedskew.data.samples import (
    HAM10000_CLASSES,
    METADATA_FIELDS,
    UNKNOWN,
    VOCABULARIES,
    DataError,
    Sample,
    Vocabularies,
    lower_ends,
    nearest_name,
    unknown_values,
)
from fedskew.data.sources import DataSource, open_source
from fedskew.ops.findings import Finding, fail, ok, warn
from fedskew.paths import cache_directory

MISSING_WARN = 0.2  # share of samples without a value
UNREADABLE_FAIL = 0.05  # share of images
CACHED_EDGE = 252  # pixels in the cache of a 224-pixel model
SHOWN = 5


@dataclass(frozen=True)
class Expected:
    """What a run will make of the data.

    Attributes:
        classes: of the model.
        vocabularies: of its metadata; None where the run's configuration is not known: HAM10000's three.
        edge: pixels a side of its decoded images, by which copies are recognised.
        fit: how a picture becomes square.
    """

    classes: Sequence[str] = HAM10000_CLASSES
    vocabularies: Vocabularies | None = None
    edge: int = CACHED_EDGE
    fit: Fit = "squash"


def check_data(path: Path, manifest: Path | None, expected: Expected, *, most: int = 0) -> list[Finding]:
    """Classes, labels, metadata and images of a data folder or archive.

    Args:
        most: decode no more images than this, spread evenly; 0: all of them.
    """
    try:
        source = open_source(path, manifest=load_manifest(manifest) if manifest else None)
    except DataError as error:
        return [fail("data", str(error), "")]  # these messages say what to do
    count = len(source.samples)
    lesions = len({sample.group for sample in source.samples})
    found = [ok("data", f"{source.path}: {source.description}; {count} images of {lesions} lesions or patients")]
    found += [warn("data", note, "nothing, if that is as it should be; docs/data.md") for note in source.notes]
    found += [
        warn("names", line, "an unseen patient must be unseen: mend the table; docs/data.md")
        for line in source.warnings
    ]
    return [*found, *_labels(source, expected.classes), *_metadata(source.samples, expected.vocabularies),
            *_images(source, expected, most), *_cache(count, expected.edge)]  # fmt: skip


def count_images(path: Path, manifest: Path | None) -> int:
    """Images that have a file; none is decoded."""
    source = open_source(path, manifest=load_manifest(manifest) if manifest else None)
    return len(source.samples) - len(source.missing)


def nearest(value: str, valid: Sequence[str]) -> str:
    """For a message: the valid value that was probably meant."""
    near = nearest_name(value, valid)
    return f"nearest is {near!r}" if near else "none is like it"


def _labels(source: DataSource, classes: Sequence[str]) -> list[Finding]:
    counts = Counter(sample.label for sample in source.samples)
    strange = [label for label in counts if label not in classes]
    shown = ", ".join(f"{name} {counts[name]}" for name in classes)
    found = [ok("classes", shown)] if not strange else []
    if strange:
        listed = "; ".join(
            f"{label!r} ({counts[label]} images, {nearest(label, classes)})" for label in strange[:SHOWN]
        )
        text = f"labels that are no class of the run: {listed}{_more(strange)}. The rest: {shown}"
        remedy = f"map them in {MANIFEST_NAME} ({_example(strange[0], classes)}); the classes are {', '.join(classes)}"
        found.append(fail("classes", text, remedy))
    absent = [name for name in classes if not counts[name]]
    if absent and not strange:
        remedy = "nothing, if your patients are like that; else check the mapping of labels"
        found.append(warn("classes", f"no image of {', '.join(absent)}", remedy))
    return found


def _metadata(samples: Sequence[Sample], vocabularies: Vocabularies | None) -> list[Finding]:
    """What the run will not know of these images, and what it will not look at."""
    expected = VOCABULARIES if vocabularies is None else vocabularies
    own = {name for sample in samples for name, _ in sample.metadata}
    unused = [name for name in sorted(own) if name not in expected]
    found, unknown = [], unknown_values(samples, expected)
    for name, vocabulary in expected.items():
        missing = sum(sample.value(name) is None for sample in samples)
        share = missing / len(samples)
        text = f"{missing} of {len(samples)} have none ({share:.0%}); they count as unknown"
        if share == 1:
            found.append(warn(name, "no image has a value", _name_the_column(name, unused)))
        elif share > MISSING_WARN:
            found.append(warn(name, text, "fill them in if you can"))
        elif name not in unknown:
            found.append(ok(name, text if missing else "all images have a value"))
        found += _unknown(name, unknown.get(name, {}), vocabulary[1:])
    return found + _unused(unused, vocabularies)


def _name_the_column(name: str, unused: Sequence[str]) -> str:
    key = f"{name}: column" if name in METADATA_FIELDS else f"metadata: {{{name}: column}}"
    near = nearest_name(name, unused)
    meant = f"; did you mean {name!r} by the manifest's {near!r}?" if near else ""
    return f"name the column that holds it in {MANIFEST_NAME} ({key}); fine if you have none{meant}"


def _unknown(name: str, values: Mapping[str, int], valid: Sequence[str]) -> list[Finding]:
    """Values that the run's vocabulary lacks."""
    found = []
    for value, count in list(values.items())[:SHOWN]:
        where = f"{name}_values" if name in METADATA_FIELDS else f"metadata: {name}: values"
        if lower_ends((UNKNOWN, *valid)) is not None:
            near, remedy = "it lies in none of the bins", f"correct it; the bins begin at {', '.join(valid)}"
        else:
            near = nearest(value, valid)
            remedy = f"map it in {MANIFEST_NAME}: {where}: {{{value}: …}} with one of {', '.join(valid)}"
        text = f"{value!r} ({count} images) is not in the vocabulary and counts as unknown; {near}"
        found.append(warn(name, text, remedy))
    if len(values) > SHOWN:
        rest = sum(list(values.values())[SHOWN:])
        found.append(warn(name, f"{len(values) - SHOWN} more values ({rest} images) count as unknown", "map them too"))
    return found


def _unused(names: Sequence[str], vocabularies: Vocabularies | None) -> list[Finding]:
    """Columns that the manifest names and the run does not see."""
    if not names:
        return []
    listed = ", ".join(names)
    if vocabularies is None:
        return [warn("metadata", f"own columns are not checked: {listed}",
                     "give the run's settings: --preset, --config or --set, as the run has them")]  # fmt: skip
    seen = f"the run sees {', '.join(vocabularies) or 'images only'} (model.metadata)"
    return [warn("metadata", f"the run does not use the manifest's {listed}", f"nothing, or rename them: {seen}")]


def _images(source: DataSource, expected: Expected, most: int) -> list[Finding]:
    """Decode the images, as building the cache would, and name those that training would skip, and copies."""
    keys = source.order()
    chosen = set(keys if not most or most >= len(keys) else keys[:: -(-len(keys) // most)])
    ids = {sample.image: sample.image_id for sample in source.samples}
    bad, contents = [(image_id, source.why_missing(image_id)) for image_id in source.missing], {}
    probed = _probed(source, [key for key in keys if key in chosen], expected)
    for key, reason, content in counted(probed, len(chosen), "images checked"):
        contents[key] = content
        if reason:
            bad.append((ids[key], reason))
    tried = len(chosen) + len(source.missing)
    decoded = len(chosen) - len(bad) + len(source.missing)
    extent = f"{decoded} images decoded" + ("" if len(chosen) == len(keys) else f" of {len(keys)}")
    copies = _duplicates(source, contents)
    if not bad:
        return [ok("images", f"{extent}, all of them readable"), *copies]
    listed = "; ".join(f"{image_id} ({reason})" for image_id, reason in bad[:SHOWN])
    text = f"{extent}; {len(bad)} cannot be used: {listed}{_more(bad)}"
    if len(bad) > UNREADABLE_FAIL * tried:
        remedy = "copy them again; are the images where the table says? Training would skip them"
        return [fail("images", text, remedy), *copies]
    return [warn("images", text, "replace them, or leave it: training skips them and says so"), *copies]


def _duplicates(source: DataSource, contents: Mapping[str, bytes]) -> list[Finding]:
    """Images whose pixels are the same, as a run compares them."""
    rows = np.array([row for row, sample in enumerate(source.samples) if contents.get(sample.image)], dtype=np.int64)
    hashes = np.zeros((len(source.samples), CONTENT_BYTES), dtype=np.uint8)  # [N, 16]
    for row in rows:
        hashes[row] = np.frombuffer(contents[source.samples[row].image], dtype=np.uint8)
    remedy = "remove copies, and settle which label is right: a copy in the test set makes figures too good"
    lines = duplicate_lines(source.samples, duplicate_groups(hashes, rows), {})
    return [warn("duplicates", line, remedy) for line in lines]


def _probed(source: DataSource, keys: Sequence[str], expected: Expected) -> Iterator[tuple[str, str, bytes]]:
    """(key, reason why it cannot be decoded or nothing, hash of its pixels) of images; few at a time are in memory."""
    waiting: deque[tuple[str, Future[tuple[str, bytes]]]] = deque()
    with ThreadPoolExecutor(2) as pool:
        for key in itertools.chain(keys, [None] * 16):
            if key is not None:
                waiting.append((key, pool.submit(_probe, source, key, expected)))
            if waiting and (key is None or len(waiting) > 16):
                done, future = waiting.popleft()
                yield done, *future.result()


def _probe(source: DataSource, key: str, expected: Expected) -> tuple[str, bytes]:
    try:
        pixels = decode(source.read(key), expected.edge, expected.fit)
    except (DataError, UnreadableImage) as error:
        return str(error)[:120], b""
    return "", content_hash(pixels)


def _cache(images: int, edge: int) -> list[Finding]:
    folder = cache_directory("")
    needed = images * edge**2 * 3
    place = next(path for path in (folder, *folder.parents) if path.exists())
    free = shutil.disk_usage(place).free
    text = (
        f"decoded images take {needed / 1e9:.1f} GB at {edge} pixels a side, {free / 1e9:.1f} GB are free in {folder}"
    )
    if free < needed:
        return [fail("image cache", text, "free space, or set FEDSKEW_HOME (or data.cache-dir) to a larger disk")]
    return [ok("image cache", text)]


def _example(label: str, classes: Sequence[str]) -> str:
    return f"labels: {{{label}: {nearest_name(label, classes) or classes[0]}, …}}"


def _more(items: Sequence[object]) -> str:
    return f"; and {len(items) - SHOWN} more" if len(items) > SHOWN else ""
