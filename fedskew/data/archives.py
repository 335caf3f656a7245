"""The store of a path: a folder, a .zip or a .tar (also compressed), recognised by content."""

from __future__ import annotations

import os
import tarfile
import threading
import zipfile
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import IO, Any

from fedskew.data.samples import DataError
from fedskew.data.stores import DAMAGE, Entry, FolderStore, Store

ARCHIVE_SUFFIXES = (".zip", ".tar", ".tar.gz", ".tgz", ".tar.bz2")


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
    except DAMAGE as error:
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


def _decompressed(path: Path) -> IO[bytes]:
    """The uncompressed byte stream of a tar archive, seekable."""
    archive = tarfile.open(path)  # noqa: SIM115 - stays open as long as its stream is in use
    return archive.fileobj  # type: ignore[return-value]
