"""The decoded, scaled images of a source as one memory-mapped array, built once and shared by all processes.

A cache is a folder `<key>/` with `images.u8` (raw uint8 [N, size, size, 3]), `contents.u8` (a hash of each, by which
copies are found), `sides.u32` (how large each was) and `index.json`. It is built under a lock in a temporary folder and
renamed when complete: a process that dies on the way leaves nothing that counts.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import stat
import tempfile
import zlib
from collections import deque
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from filelock import FileLock

from fedskew.console import counted
from fedskew.data.choices import Fit
from fedskew.data.decode import Decoded, UnreadableImage, decode_sized
from fedskew.data.samples import DataError
from fedskew.data.sources import DataSource

FORMAT = 1  # raise it whenever the same source would give other bytes
CONTENT_BYTES = 16  # of the hash of an image's pixels
PRIVATE = 0o700  # of a cache's folder: it holds pictures of patients (and so has mkdtemp's)
_IMAGES, _CONTENTS, _SIDES, _INDEX = "images.u8", "contents.u8", "sides.u32", "index.json"
_SIDE = np.dtype("<u4")
_PROBES, _PROBE_BYTES = 64, 4096


@dataclass(frozen=True, eq=False)
class CachedImages:
    """The images of a source, in the order of its samples.

    Attributes:
        images: uint8 [N, size, size, 3], read-only; zeros where `readable` is False.
        readable: bool [N].
        unreadable: `(image_id, reason)` of every image that could not be read.
        contents: uint8 [N, 16], hashes of the pixels; equal ones are equal images. Zeros where `readable` is False.
        sides: uint32 [N, 2], width and height of the upright pictures before they were scaled. Zeros as before.
        path: the folder of this cache.
    """

    images: np.memmap
    readable: np.ndarray
    unreadable: tuple[tuple[str, str], ...]
    contents: np.ndarray
    sides: np.ndarray
    path: Path


def build_cache(source: DataSource, *, size: int, fit: Fit, directory: Path, workers: int = 2) -> CachedImages:
    """Open the cache of a source, building it first where there is none (or only a damaged one).

    Args:
        source: the data set.
        size: edge of the cached images in pixels.
        fit: `"squash"` or `"crop"`, see `decode`.
        directory: holds all caches; created if need be. An existing cache may lie in a read-only directory.
        workers: threads that decode.

    Raises:
        DataError: the arguments make no sense, no image at all is readable, or the directory cannot be used.
    """
    if size < 1 or workers < 1 or fit not in ("squash", "crop"):
        raise DataError(f"cache: expected size >= 1, workers >= 1 and fit 'squash' or 'crop', "
                        f"got size {size}, workers {workers}, fit {fit!r}")  # fmt: skip
    directory = Path(directory).expanduser().resolve()
    path = directory / cache_key(source, size, fit)
    cached = _open(path, source, size)
    if cached is not None:
        return cached
    try:
        directory.mkdir(parents=True, exist_ok=True, mode=PRIVATE)
        with FileLock(f"{path}.lock"):
            cached = _open(path, source, size)  # another process may have built it meanwhile
            return cached if cached is not None else _build(path, source, size, fit, workers)
    except OSError as error:
        raise DataError(f"the image cache in {directory} cannot be written ({error}); free space there, or set "
                        "data.cache-dir to a directory that can be written") from error  # fmt: skip


def cache_key(source: DataSource, size: int, fit: Fit) -> str:
    """The name of the cache: a hash of all that its bytes depend on."""
    return hashlib.sha256(f"{FORMAT}\0{source.fingerprint}\0{size}\0{fit}".encode()).hexdigest()[:32]


def make_private(path: Path) -> None:
    """Take a cache of an earlier version, which others could read, from all accounts but its own.

    Raises:
        DataError: it belongs to somebody else and others can read it.
    """
    status = path.stat()
    if not stat.S_IMODE(status.st_mode) & ~PRIVATE:
        return
    try:
        path.chmod(PRIVATE)
    except OSError as error:
        raise DataError(
            f"the decoded images in {path} can be read by other accounts, and that cannot be changed ({error}): chmod "
            "700 it, or name another folder in the node configuration: cache-dir='/absolute/path'"
        ) from error


def forget_others(path: Path, keep: int) -> None:
    """Remove caches of the same data set beside this one, but for the newest.

    A task names the size of its images: a server that asks for another one in every round would fill a site's disk.

    Args:
        path: the cache in use; it counts as the newest.
        keep: how many caches stay, this one among them.
    """
    os.utime(path)
    source = _source(path)
    beside = [other for other in path.parent.iterdir() if other != path and source and _source(other) == source]
    for old in sorted(beside, key=lambda other: other.stat().st_mtime, reverse=True)[keep - 1 :]:
        shutil.rmtree(old, ignore_errors=True)  # another process may do the same; who has it open keeps it
        Path(f"{old}.lock").unlink(missing_ok=True)


def _source(path: Path) -> str:
    """Where the images of a cache come from; empty if it is none."""
    try:
        return str(json.loads((path / _INDEX).read_text(encoding="utf-8"))["index"]["source"])
    except (OSError, ValueError, KeyError, TypeError):
        return ""


def _build(path: Path, source: DataSource, size: int, fit: Fit, workers: int) -> CachedImages:
    """Build under the lock, so that whatever else bears this cache's name is a dead process's remains."""
    for remains in path.parent.glob(f"{path.name}.tmp-*"):
        shutil.rmtree(remains)
    needed = len(source.samples) * size * size * 3
    free = shutil.disk_usage(path.parent).free
    if free < needed:
        raise OSError(f"{needed / 2**20:.0f} MiB are needed, {free / 2**20:.0f} MiB are free")
    scratch = Path(tempfile.mkdtemp(prefix=f"{path.name}.tmp-", dir=path.parent))
    try:
        unreadable = _write_images(scratch, source, size, fit, workers)
        _write_index(scratch, source, size, fit, unreadable)
        if path.exists():
            shutil.rmtree(path)  # damaged, or it would have been opened
        scratch.rename(path)
    finally:
        shutil.rmtree(scratch, ignore_errors=True)
    cached = _open(path, source, size)
    if cached is None:
        raise OSError(f"{path} is damaged as soon as it is written; check the disk")
    return cached


def _write_images(scratch: Path, source: DataSource, size: int, fit: Fit, workers: int) -> dict[int, str]:
    """Write every image and its hash into its row; returns the reasons of the rows that stay empty."""
    rows: dict[str, list[int]] = {}
    reasons: dict[int, str] = {}
    for row, sample in enumerate(source.samples):
        if sample.image:
            rows.setdefault(sample.image, []).append(row)
        else:
            reasons[row] = source.why_missing(sample.image_id)
    stride = size * size * 3
    contents = np.zeros((len(source.samples), CONTENT_BYTES), dtype=np.uint8)  # [N, 16]
    sides = np.zeros((len(source.samples), 2), dtype=_SIDE)  # [N, 2]
    with open(scratch / _IMAGES, "wb") as out:
        out.truncate(len(source.samples) * stride)
        for image, result in counted(_decoded(source, size, fit, workers), len(rows), "images decoded"):
            for row in rows[image]:
                if isinstance(result, str):
                    reasons[row] = result
                else:
                    out.seek(row * stride)
                    out.write(result.pixels.tobytes())
                    contents[row] = np.frombuffer(content_hash(result.pixels), dtype=np.uint8)
                    sides[row] = result.width, result.height
        out.flush()
        os.fsync(out.fileno())
    contents.tofile(scratch / _CONTENTS)
    sides.tofile(scratch / _SIDES)
    if len(reasons) == len(source.samples):
        raise DataError(f"{source.path}: not one of {len(reasons)} images can be read; the first: {reasons[0]}")
    return reasons


def _decoded(source: DataSource, size: int, fit: Fit, workers: int) -> Iterator[tuple[str, Decoded | str]]:
    """Each image key with its pixels or the reason why there are none.

    One thread reads, in the source's own order (an archive is a stream); a pool decodes. At most a few images
    per worker are in memory at a time.
    """
    waiting: deque[tuple[str, Future[Decoded | str]]] = deque()
    with ThreadPoolExecutor(workers, thread_name_prefix="decode") as pool:
        for image in source.order():
            try:
                content = source.read(image)
            except DataError as error:
                yield image, str(error)
                continue
            waiting.append((image, pool.submit(_decode_or_reason, content, size, fit)))
            if len(waiting) > 8 * workers:
                done, future = waiting.popleft()
                yield done, future.result()
        for done, future in waiting:
            yield done, future.result()


def _decode_or_reason(content: bytes, size: int, fit: Fit) -> Decoded | str:
    try:
        return decode_sized(content, size, fit)
    except UnreadableImage as error:
        return str(error)


def content_hash(pixels: np.ndarray) -> bytes:
    """A hash of what the model sees: a copy saved again without loss, or stripped of its Exif, has the same."""
    return hashlib.blake2b(pixels.tobytes(), digest_size=CONTENT_BYTES).digest()


def _write_index(scratch: Path, source: DataSource, size: int, fit: Fit, reasons: dict[int, str]) -> None:
    index: dict[str, Any] = {
        "format": FORMAT,
        "source": str(source.path),
        "fingerprint": source.fingerprint,
        "count": len(source.samples),
        "size": size,
        "fit": fit,
        "unreadable": [[row, reason] for row, reason in sorted(reasons.items())],
        "probe": _probe(scratch / _IMAGES),
        "contents": zlib.crc32((scratch / _CONTENTS).read_bytes()),
        "sides": zlib.crc32((scratch / _SIDES).read_bytes()),
    }
    with open(scratch / _INDEX, "w", encoding="utf-8") as out:
        json.dump({"index": index, "hash": _hash(index)}, out, indent=1)
        out.flush()
        os.fsync(out.fileno())


def _open(path: Path, source: DataSource, size: int) -> CachedImages | None:
    """The cache in a folder; None if there is none, or it is damaged in any way that is cheap to see."""
    count = len(source.samples)
    reasons = _checked_index(path, source, size)
    if reasons is None:
        return None
    contents = np.fromfile(path / _CONTENTS, dtype=np.uint8).reshape(count, CONTENT_BYTES)
    sides = np.fromfile(path / _SIDES, dtype=_SIDE).reshape(count, 2)
    images = np.memmap(path / _IMAGES, dtype=np.uint8, mode="r", shape=(count, size, size, 3))
    readable = np.ones(count, dtype=bool)  # [N]
    readable[list(reasons)] = False
    readable.flags.writeable = False
    unreadable = tuple((source.samples[row].image_id, reason) for row, reason in reasons.items())
    contents.flags.writeable = sides.flags.writeable = False
    return CachedImages(images, readable, unreadable, contents, sides, path)


def _checked_index(path: Path, source: DataSource, size: int) -> dict[int, str] | None:
    try:
        stored = json.loads((path / _INDEX).read_text(encoding="utf-8"))
        index = stored["index"]
        intact = (
            stored["hash"] == _hash(index)
            and index["count"] == len(source.samples)
            and (path / _IMAGES).stat().st_size == index["count"] * size * size * 3
            and _probe(path / _IMAGES) == index["probe"]
            and (path / _CONTENTS).stat().st_size == index["count"] * CONTENT_BYTES
            and zlib.crc32((path / _CONTENTS).read_bytes()) == index["contents"]
            and (path / _SIDES).stat().st_size == index["count"] * 2 * _SIDE.itemsize
            and zlib.crc32((path / _SIDES).read_bytes()) == index["sides"]
        )
    except (OSError, ValueError, KeyError, TypeError):
        return None  # absent, damaged or of a version that kept less: the caller builds it (anew)
    return {int(row): str(reason) for row, reason in index["unreadable"]} if intact else None


def _hash(index: dict[str, Any]) -> str:
    return hashlib.sha256(json.dumps(index, sort_keys=True).encode()).hexdigest()


def _probe(file: Path) -> int:
    """CRC of blocks spread over a file: sees a lost stretch without reading gigabytes at every start."""
    length = file.stat().st_size
    checksum = zlib.crc32(str(length).encode())
    with open(file, "rb") as content:
        for block in range(_PROBES):
            content.seek(max(0, length - _PROBE_BYTES) * block // (_PROBES - 1))
            checksum = zlib.crc32(content.read(_PROBE_BYTES), checksum)
    return checksum
