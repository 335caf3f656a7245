"""Files by relative names, wherever they lie: listed, cheaply stamped, read one at a time, never extracted.

Stores can be pickled and survive a fork: file handles belong to the process that opened them. Archives are `archives`.
"""

from __future__ import annotations

import os
import stat
import struct
import tarfile
import zipfile
import zlib
from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from fedskew.data.samples import DataError

MAX_FOLDER_DEPTH = 5  # path/ham10000/HAM10000_images_part_1/x.jpg is 3; more is not a data set but a disk
# what the standard library raises over damaged archives and failing disks
DAMAGE = (
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
        except DAMAGE as error:
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


def _stat_entry(status: os.stat_result) -> Entry:
    return Entry(status.st_size, str(status.st_mtime_ns))
