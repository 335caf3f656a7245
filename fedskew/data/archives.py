"""Where files lie: a folder, a .zip, a .tar (also compressed), or a folder with archives in it.

Each store lists its files, says cheaply when one has changed, and reads one. Nothing is ever extracted.
Stores can be pickled and survive a fork: file handles belong to the process that opened them.
"""

from __future__ import annotations

import os
import stat
import tarfile
import threading
import zipfile
import zlib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any, Protocol

from fedskew.data.samples import DataError

MAX_FOLDER_DEPTH = 4  # path/ham10000/HAM10000_images_part_1/x.jpg is 3; more is not a data set but a disk
ARCHIVE_SUFFIXES = (".zip", ".tar", ".tar.gz", ".tgz", ".tar.bz2", ".tar.xz")
_DAMAGE = (zipfile.BadZipFile, tarfile.TarError, zlib.error, EOFError, OSError, NotImplementedError, RuntimeError)


@dataclass(frozen=True)
class Entry:
    """One file: its size in bytes and a stamp that changes when its content does."""

    size: int
    stamp: str


class Store(Protocol):
    """A read-only collection of files named by relative POSIX paths."""

    path: Path

    def names(self) -> Iterable[str]:
        """All file names, sorted."""

    def entry(self, name: str) -> Entry | None:
        """Size and stamp of a file; None if there is no such file."""

    def read(self, name: str, limit: int) -> bytes:
        """Content of a file; DataError if it is absent, damaged or larger than `limit` bytes."""

    def order(self, names: Iterable[str]) -> list[str]:
        """The names in the order in which they are read fastest."""


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


class FolderStore:
    """A folder, listed to a depth of four. Names may also be absolute or climb with `..` (manifests do)."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._entries: dict[str, Entry] = {}
        try:
            self._list(path, "", MAX_FOLDER_DEPTH)
        except OSError as error:
            raise DataError(f"folder {path} cannot be read: {error}") from error

    def _list(self, folder: Path, prefix: str, depth: int) -> None:
        with os.scandir(folder) as entries:
            for entry in entries:
                if entry.name.startswith("."):
                    continue
                if entry.is_dir():
                    if depth > 1:
                        self._list(Path(entry.path), f"{prefix}{entry.name}/", depth - 1)
                elif entry.is_file():
                    self._entries[prefix + entry.name] = _stat_entry(entry.stat())

    def names(self) -> list[str]:
        return sorted(self._entries)

    def entry(self, name: str) -> Entry | None:
        if name in self._entries:
            return self._entries[name]
        try:
            status = os.stat(self.path / name)
        except OSError:
            return None  # the caller reports every file that is not there
        return _stat_entry(status) if stat.S_ISREG(status.st_mode) else None

    def read(self, name: str, limit: int) -> bytes:
        entry = _existing(self, name, limit)
        try:
            content = (self.path / name).read_bytes()
        except OSError as error:
            raise DataError(f"{self.path / name} cannot be read: {error}") from error
        if len(content) > max(limit, entry.size):
            raise DataError(f"{self.path / name} grew while it was read; wait until it is complete")
        return content

    def order(self, names: Iterable[str]) -> list[str]:
        return sorted(names)


class _ProcessHandle:
    """A lazily opened file handle with its lock, renewed in every process (after a fork or unpickling)."""

    def __init__(self, opener: Any, path: Path) -> None:
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


class ZipStore:
    """A .zip archive; random access, stamped by each member's CRC."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._zip = _ProcessHandle(zipfile.ZipFile, path)
        with self._zip as archive:
            members = [member for member in archive.infolist() if not member.is_dir()]
        locked = next((member.filename for member in members if member.flag_bits & 1), None)
        if locked is not None:
            raise DataError(f"archive {path} is protected by a password ({locked}); unpack it and give the folder")
        self._entries = {m.filename: Entry(m.file_size, f"{m.CRC:08x}") for m in members}
        self._offsets = {m.filename: m.header_offset for m in members}

    def names(self) -> list[str]:
        return sorted(self._entries)

    def entry(self, name: str) -> Entry | None:
        return self._entries.get(name)

    def read(self, name: str, limit: int) -> bytes:
        _existing(self, name, limit)
        try:
            with self._zip as archive, archive.open(name) as member:
                content = member.read(limit + 1)  # the declared size may lie
        except _DAMAGE as error:
            raise DataError(f"{name} in {self.path} is damaged: {error}") from error
        if len(content) > limit:
            raise DataError(f"{name} in {self.path} is larger than its declared size")
        return content

    def order(self, names: Iterable[str]) -> list[str]:
        return sorted(names, key=self._offsets.__getitem__)


class TarStore:
    """A .tar archive, plain or compressed.

    It is listed once, which reads a compressed archive to its end. Reading in `order` costs one more pass;
    reading a compressed archive in any other order starts again at every step back. Members carry no
    checksum, so the stamp is the archive's own size and modification time.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        status = os.stat(path)
        stamp = f"{status.st_size}:{status.st_mtime_ns}"
        with tarfile.open(path) as archive:
            members = [member for member in archive if member.isreg() and not member.issparse()]
        names = [member.name.removeprefix("./") for member in members]
        self._entries = {n: Entry(m.size, f"{stamp}:{m.mtime}") for n, m in zip(names, members, strict=True)}
        self._offsets = {n: m.offset_data for n, m in zip(names, members, strict=True)}
        self._stream = _ProcessHandle(_decompressed, path)

    def names(self) -> list[str]:
        return sorted(self._entries)

    def entry(self, name: str) -> Entry | None:
        return self._entries.get(name)

    def read(self, name: str, limit: int) -> bytes:
        entry = _existing(self, name, limit)
        try:
            with self._stream as stream:
                stream.seek(self._offsets[name])
                content = stream.read(entry.size)
        except _DAMAGE as error:
            raise DataError(f"{name} in {self.path} is damaged: {error}") from error
        if len(content) != entry.size:
            raise DataError(f"{name} in {self.path} is cut short")
        return content

    def order(self, names: Iterable[str]) -> list[str]:
        return sorted(names, key=self._offsets.__getitem__)


class UnionStore:
    """A folder together with the archives that lie in it; of equal names the folder's wins."""

    def __init__(self, path: Path, stores: Sequence[Store]) -> None:
        self.path = path
        self.stores = tuple(stores)
        self._owner: dict[str, Store] = {}
        for store in reversed(self.stores):
            self._owner.update(dict.fromkeys(store.names(), store))

    def names(self) -> list[str]:
        return sorted(self._owner)

    def entry(self, name: str) -> Entry | None:
        return self._owner.get(name, self.stores[0]).entry(name)

    def read(self, name: str, limit: int) -> bytes:
        return self._owner.get(name, self.stores[0]).read(name, limit)

    def order(self, names: Iterable[str]) -> list[str]:
        wanted = set(names)
        parts = [(store, [n for n in wanted if self._owner.get(n, self.stores[0]) is store]) for store in self.stores]
        return [name for store, part in parts for name in store.order(part)]


def _decompressed(path: Path) -> IO[bytes]:
    """The uncompressed byte stream of a tar archive, seekable."""
    archive = tarfile.open(path)  # noqa: SIM115 - stays open as long as its stream is in use
    return archive.fileobj  # type: ignore[return-value]


def _stat_entry(status: os.stat_result) -> Entry:
    return Entry(status.st_size, str(status.st_mtime_ns))


def _existing(store: Store, name: str, limit: int) -> Entry:
    entry = store.entry(name)
    if entry is None:
        raise DataError(f"{name} is not in {store.path}")
    if entry.size > limit:
        raise DataError(
            f"{name} in {store.path} has {entry.size / 2**20:.0f} MiB, more than the {limit / 2**20:.0f} MiB "
            "that such a file may have; remove or replace it"
        )
    return entry
