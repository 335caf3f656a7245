"""A site's data folder: what training would find in it, and what it would silently leave out."""

from __future__ import annotations

import hashlib
import itertools
import re
import shutil
from collections import Counter, deque
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path

import numpy as np

from fedskew.data.decode import UnreadableImage, decode
from fedskew.data.duplicates import duplicate_groups, duplicate_lines
from fedskew.data.manifest import MANIFEST_NAME, load_manifest
from fedskew.data.samples import METADATA_FIELDS, VOCABULARIES, DataError, Sample, nearest_name, unknown_values
from fedskew.data.sources import DataSource, open_source
from fedskew.ops.findings import Finding, fail, ok, warn
from fedskew.paths import cache_directory

MISSING_WARN = 0.2  # share of samples without a value
UNREADABLE_FAIL = 0.05  # share of images
CACHED_EDGE = 252  # pixels in the cache of a 224-pixel model
SHOWN = 5
HASH_BYTES = 16
PROBE_EDGE = 16  # small: the JPEG decoder still reads every byte of the file


def check_data(path: Path, manifest: Path | None, classes: Sequence[str], *, most: int = 0) -> list[Finding]:
    """Classes, labels, metadata and images of a data folder or archive.

    Args:
        classes: what the run's classes will be.
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
    return [*found, *_labels(source, classes), *_metadata(source.samples), *_images(source, most), *_cache(count)]


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


def _metadata(samples: Sequence[Sample]) -> list[Finding]:
    found, unknown = [], unknown_values(samples)
    for field in METADATA_FIELDS:
        missing = sum(getattr(sample, field) is None for sample in samples)
        share = missing / len(samples)
        text = f"{missing} of {len(samples)} have none ({share:.0%}); they count as unknown"
        if share == 1:
            remedy = f"name the column that holds it in {MANIFEST_NAME} ({field}: column); fine if you have none"
            found.append(warn(field, "no image has a value", remedy))
        elif share > MISSING_WARN:
            found.append(warn(field, text, "fill them in if you can"))
        elif field not in unknown:
            found.append(ok(field, text if missing else "all images have a value"))
        for value, count in list(unknown.get(field, {}).items())[:SHOWN]:
            valid = VOCABULARIES[field][1:]
            text = f"{value!r} ({count} images) is not in the vocabulary and counts as unknown; {nearest(value, valid)}"
            remedy = f"map it in {MANIFEST_NAME}: {field}_values: {{{value}: …}} with one of {', '.join(valid)}"
            found.append(warn(field, text, remedy))
    return found


def _images(source: DataSource, most: int) -> list[Finding]:
    """Decode the images, as building the cache would, and name those that training would skip, and copies."""
    keys = source.order()
    chosen = set(keys if not most or most >= len(keys) else keys[:: -(-len(keys) // most)])
    ids = {sample.image: sample.image_id for sample in source.samples}
    bad, contents = [(image_id, source.why_missing(image_id)) for image_id in source.missing], {}
    for key, reason, content in _probed(source, [key for key in keys if key in chosen]):
        contents[key] = content
        if reason:
            bad.append((ids[key], reason))
    tried = len(chosen) + len(source.missing)
    extent = f"{len(chosen)} images decoded" + ("" if len(chosen) == len(keys) else f" of {len(keys)}")
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
    """Files that are byte for byte the same."""
    rows = np.array([row for row, sample in enumerate(source.samples) if contents.get(sample.image)], dtype=np.int64)
    hashes = np.zeros((len(source.samples), HASH_BYTES), dtype=np.uint8)  # [N, 16]
    for row in rows:
        hashes[row] = np.frombuffer(contents[source.samples[row].image], dtype=np.uint8)
    remedy = "remove copies, and settle which label is right: a copy in the test set makes figures too good"
    lines = duplicate_lines(source.samples, duplicate_groups(hashes, rows), {})
    return [warn("duplicates", line, remedy) for line in lines]


def _probed(source: DataSource, keys: Sequence[str]) -> Iterator[tuple[str, str, bytes]]:
    """(key, reason why it cannot be decoded or nothing, hash of the file) of images; a few at a time are in memory."""
    waiting: deque[tuple[str, Future[tuple[str, bytes]]]] = deque()
    with ThreadPoolExecutor(2) as pool:
        for key in itertools.chain(keys, [None] * 16):
            if key is not None:
                waiting.append((key, pool.submit(_probe, source, key)))
            if waiting and (key is None or len(waiting) > 16):
                done, future = waiting.popleft()
                yield done, *future.result()


def _probe(source: DataSource, key: str) -> tuple[str, bytes]:
    try:
        content = source.read(key)
        decode(content, PROBE_EDGE, "squash")
    except (DataError, UnreadableImage) as error:
        return re.sub(r" <_io\.[^>]*>", "", str(error))[:120], b""  # the address of a buffer tells nobody anything
    return "", hashlib.blake2b(content, digest_size=HASH_BYTES).digest()


def _cache(images: int) -> list[Finding]:
    folder = cache_directory("")
    needed = images * CACHED_EDGE**2 * 3
    place = next(path for path in (folder, *folder.parents) if path.exists())
    free = shutil.disk_usage(place).free
    text = f"decoded images take {needed / 1e9:.1f} GB at 224 pixels, {free / 1e9:.1f} GB are free in {folder}"
    if free < needed:
        return [fail("image cache", text, "free space, or set FEDSKEW_HOME (or data.cache-dir) to a larger disk")]
    return [ok("image cache", text)]


def _example(label: str, classes: Sequence[str]) -> str:
    return f"labels: {{{label}: {nearest_name(label, classes) or classes[0]}, …}}"


def _more(items: Sequence[object]) -> str:
    return f"; and {len(items) - SHOWN} more" if len(items) > SHOWN else ""
