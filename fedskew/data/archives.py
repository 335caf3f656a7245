"""Where files lie: a folder, a .zip, a .tar (also compressed), or a folder with archives in it.

Each store lists its files, says cheaply when one has changed, and reads one. Nothing is ever extracted.
Stores can be pickled and survive a fork: file handles belong to the process that opened them.
"""

from __future__ import annotations

import os
import stat
import struct
import tarfile
import threading
import zipfile
import zlib
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

from fedskew.data.samples import DataError

MAX_FOLDER_DEPTH = 5  # path/ham10000/HAM10000_images_part_1/x.jpg is 3; more is not a data set but a disk
ARCHIVE_SUFFIXES = (".zip", ".tar", ".tar.gz", ".tgz", ".tar.bz2")
# what the standard library raises over damaged archives and failing disks
_DAMAGE = (
    zipfile.BadZipFile, tarfile.TarError, zlib.error, struct.error,
    EOFError, OSError, NotImplementedError, RuntimeError, ValueError,
)  # fmt: skip


@dataclass(frozen=True)
class Entry:
    """One file: its size in bytes and a stamp that changes when its content does."""

    size: int
    stamp: str


class Store(ABC):
    """A read-only collection of files named by relative POSIX paths.

    Attributes:
        unlisted: folders that lie too deep to be looked into.
    """

    unlisted: tuple[str, ...] = ()

    def __init__(self, path: Path, entries: Mapping[str, Entry]) -> None:
        self.path = path
        self._entries = dict(entries)

    def names(self) -> list[str]:
        """All file names, sorted."""
        return sorted(self._entries)

    def entry(self, name: str) -> Entry | None:
        """Size and stamp of a file; None if there is no such file."""
        return self._entries.get(name)

    def read(self, name: str, limit: int) -> bytes:
        """Content of a file; DataError if it is absent, damaged or larger than `limit` bytes."""
        entry = self.entry(name)
        if entry is None:
            raise DataError(f"{name} is not in {self.path}")
        if entry.size > limit:
            raise DataError(
                f"{name} in {self.path} has {entry.size / 2**20:.0f} MiB, more than the {limit / 2**20:.0f} MiB "
                "that such a file may have; remove or replace it"
            )
        try:
            content = self._content(name, entry)
        except DataError:
            raise
        except _DAMAGE as error:
            raise DataError(f"{name} in {self.path} cannot be read, it may be damaged: {error}") from error
        if len(content) != entry.size:
            raise DataError(f"{name} in {self.path} has {len(content)} bytes, not the {entry.size} it is listed with")
        return content

    def is_same(self, one: str, other: str) -> bool:
        """Whether two names are those of one and the same file, by a link."""
        return one == other

    def order(self, names: Iterable[str]) -> list[str]:
        """The names in the order in which they are read fastest."""
        return sorted(names)

    @abstractmethod
    def _content(self, name: str, entry: Entry) -> bytes:
        """The bytes of a file that exists: no more than one above `entry.size`, so that a lie is noticed."""


def open_store(path: Path) -> Store:
    """The store for a folder or an archive, recognised by content, not by name.

    Raises:
        DataError: the path does not exist, or is neither a folder nor a readable archive.
    """
    if path.is_dir():
        return FolderStore(path)
    if not path.exists():
        raise DataError(f"{path} does not exist{_near_names(path)}")
    try:
        if zipfile.is_zipfile(path):
            return ZipStore(path)
        if tarfile.is_tarfile(path):
            return TarStore(path)
    except DataError:
        raise
    except _DAMAGE as error:
        raise DataError(f"archive {path} is damaged ({error}); download or copy it again") from error
    raise DataError(f"{path} is neither a folder nor a readable archive ({', '.join(ARCHIVE_SUFFIXES)})")


def is_archive_name(name: str) -> bool:
    """Whether a file name ends like an archive's."""
    return name.lower().endswith(ARCHIVE_SUFFIXES)


def _near_names(path: Path) -> str:
    """For the message: the same path with another (or no) archive suffix, if that exists."""
    suffix = next((s for s in sorted(ARCHIVE_SUFFIXES, key=len, reverse=True) if path.name.lower().endswith(s)), "")
    stem = path.name[: len(path.name) - len(suffix)]
    near = [path.with_name(stem + other) for other in (*ARCHIVE_SUFFIXES, "") if stem + other]
    found = [str(other) for other in near if other != path and other.exists()]
    if found:
        return f", but {' and '.join(found)} does: give that path"
    return "; give the path of a data set's folder or archive"


class FolderStore(Store):
    """A folder, listed to a depth of five. Names may also be absolute or climb with `..` (manifests do)."""

    def __init__(self, path: Path) -> None:
        try:
            found = list(_listed(path, "", MAX_FOLDER_DEPTH, frozenset()))
        except OSError as error:
            raise DataError(f"folder {path} cannot be read: {error}") from error
        super().__init__(path, {name: entry for name, entry in found if entry is not None})
        self.unlisted = tuple(sorted(name for name, entry in found if entry is None))

    def entry(self, name: str) -> Entry | None:
        """As in `Store`, but also for files that lie too deep or outside to be listed."""
        if name in self._entries:
            return self._entries[name]
        try:
            status = os.stat(self.path / name)
        except OSError:
            return None  # the caller reports every file that is not there
        return _stat_entry(status) if stat.S_ISREG(status.st_mode) else None

    def is_same(self, one: str, other: str) -> bool:
        """As in `Store`: links lead to the same place."""
        return os.path.realpath(self.path / one) == os.path.realpath(self.path / other)

    def _content(self, name: str, entry: Entry) -> bytes:
        with open(self.path / name, "rb") as file:
            return file.read(entry.size + 1)


class _ProcessHandle:
    """A lazily opened file handle with its lock, renewed in every process (after a fork or unpickling)."""

    def __init__(self, opener: Callable[[Path], Any], path: Path) -> None:
        self._opener, self._path = opener, path
        self._owner, self._handle, self._lock = -1, None, threading.Lock()

    def __getstate__(self) -> dict[str, Any]:
        return {"opener": self._opener, "path": self._path}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__init__(state["opener"], state["path"])  # type: ignore[misc]

    def __enter__(self) -> Any:
        if self._owner != os.getpid():  # a forked child must not share the parent's file position or lock
            self._owner, self._handle, self._lock = os.getpid(), None, threading.Lock()
        self._lock.acquire()
        try:
            if self._handle is None:
                self._handle = self._opener(self._path)
        except BaseException:
            self._lock.release()
            raise
        return self._handle

    def __exit__(self, *_: object) -> None:
        self._lock.release()


class ZipStore(Store):
    """A .zip archive; random access, stamped by each member's CRC."""

    def __init__(self, path: Path) -> None:
        self._zip = _ProcessHandle(zipfile.ZipFile, path)
        with self._zip as archive:
            members = [member for member in archive.infolist() if not member.is_dir()]
        locked = next((member.filename for member in members if member.flag_bits & 1), None)
        if locked is not None:
            raise DataError(f"archive {path} is protected by a password ({locked}); unpack it and give the folder")
        super().__init__(path, {m.filename: Entry(m.file_size, f"{m.CRC:08x}") for m in members})
        self._offsets = {m.filename: m.header_offset for m in members}

    def order(self, names: Iterable[str]) -> list[str]:
        """By place in the archive."""
        return sorted(names, key=self._offsets.__getitem__)

    def _content(self, name: str, entry: Entry) -> bytes:
        with self._zip as archive, archive.open(name) as member:
            return member.read(entry.size + 1)


class TarStore(Store):
    """A .tar archive, plain or compressed.

    It is listed once, which reads a compressed archive to its end. Reading in `order` costs one more pass;
    reading a compressed archive in any other order starts again at every step back. Members carry no
    checksum, so the stamp is the archive's own size and modification time.
    """

    def __init__(self, path: Path) -> None:
        status = os.stat(path)
        stamp = f"{status.st_size}:{status.st_mtime_ns}"
        with tarfile.open(path) as archive:
            members = [member for member in archive if member.isreg() and not member.issparse()]
        named = {member.name.removeprefix("./"): member for member in members}
        super().__init__(path, {name: Entry(m.size, f"{stamp}:{m.mtime}") for name, m in named.items()})
        self._offsets = {name: m.offset_data for name, m in named.items()}
        self._stream = _ProcessHandle(_decompressed, path)

    def order(self, names: Iterable[str]) -> list[str]:
        """By place in the archive."""
        return sorted(names, key=self._offsets.__getitem__)

    def _content(self, name: str, entry: Entry) -> bytes:
        with self._stream as stream:
            stream.seek(self._offsets[name])
            return stream.read(entry.size)


class UnionStore(Store):
    """A folder together with the archives that lie in it; of equal names the folder's wins."""

    def __init__(self, path: Path, stores: Sequence[Store]) -> None:
        self._stores = tuple(stores)
        self._owner: dict[str, Store] = {}
        for store in reversed(self._stores):
            self._owner.update(dict.fromkeys(store.names(), store))
        super().__init__(path, {})
        self.unlisted = tuple(name for store in self._stores for name in store.unlisted)

    def names(self) -> list[str]:
        """All file names of all stores, sorted."""
        return sorted(self._owner)

    def entry(self, name: str) -> Entry | None:
        """As in the store that holds the file."""
        return self._owning(name).entry(name)

    def is_same(self, one: str, other: str) -> bool:
        """As in the store that holds both."""
        return self._owning(one) is self._owning(other) and self._owning(one).is_same(one, other)

    def order(self, names: Iterable[str]) -> list[str]:
        """Store after store."""
        wanted = set(names)
        parts = [(store, [name for name in wanted if self._owning(name) is store]) for store in self._stores]
        return [name for store, part in parts for name in store.order(part)]

    def _content(self, name: str, entry: Entry) -> bytes:
        return self._owning(name).read(name, entry.size)

    def _owning(self, name: str) -> Store:
        return self._owner.get(name, self._stores[0])  # the folder also knows files that it does not list


def _listed(
    folder: Path, prefix: str, depth: int, above: frozenset[tuple[int, int]]
) -> Iterator[tuple[str, Entry | None]]:
    """Every visible file below a folder, down to a depth; what lies deeper as its folder, without an entry.

    Args:
        above: device and number of the folders that this one lies in: a link back to one of them is a loop.
    """
    status = os.stat(folder)
    identity = (status.st_dev, status.st_ino)
    if identity in above:
        return
    with os.scandir(folder) as entries:
        for entry in entries:
            if entry.name.startswith("."):
                continue
            if entry.is_file():
                yield prefix + entry.name, _stat_entry(entry.stat())
            elif entry.is_dir() and depth > 1:
                yield from _listed(Path(entry.path), f"{prefix}{entry.name}/", depth - 1, above | {identity})
            elif entry.is_dir():
                yield f"{prefix}{entry.name}/", None


def _decompressed(path: Path) -> IO[bytes]:
    """The uncompressed byte stream of a tar archive, seekable."""
    archive = tarfile.open(path)  # noqa: SIM115 - stays open as long as its stream is in use
    return archive.fileobj  # type: ignore[return-value]


def _stat_entry(status: os.stat_result) -> Entry:
    return Entry(status.st_size, str(status.st_mtime_ns))
