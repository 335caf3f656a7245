"""Files that are either the old or the new version after a crash at any instant, never half of one; JSON read back."""

from __future__ import annotations

import hashlib
import json
import os
from pathlib import Path
from typing import Any

from fedskew.errors import FedskewError


class DamagedFileError(FedskewError, ValueError):
    """A file that does not hold what was written there; names it, and the line."""


def read_json(path: Path) -> dict[str, Any]:
    """The JSON object of a file.

    Raises:
        DamagedFileError: it is none, or not UTF-8, or nested too deeply to be read.
        OSError: it cannot be read.
    """
    return _json_object(path, _text(path), "")


def read_json_lines(path: Path) -> list[dict[str, Any]]:
    """The JSON objects of a file's lines, but for a last one without a newline: a process died in mid-write.

    Raises:
        DamagedFileError, OSError: as `read_json`.
    """
    text = _text(path)
    lines = text[: text.rfind("\n") + 1].split("\n")[:-1]
    return [_json_object(path, line, f", line {number}") for number, line in enumerate(lines, start=1)]


def _text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise DamagedFileError(f"{path} is damaged: {error}") from None


def _json_object(path: Path, text: str, where: str) -> dict[str, Any]:
    try:
        found = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise DamagedFileError(f"{path}{where} is damaged: no JSON ({error})") from None
    if not isinstance(found, dict):
        raise DamagedFileError(f"{path}{where} is damaged: expected a JSON object, found {found!r:.40}")
    return found


def write_bytes(path: Path, content: bytes) -> None:
    """Write through a temporary neighbour and a rename; the content is on disk when this returns."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        with temporary.open("wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)
    sync_directory(path.parent)


def write_json(path: Path, value: Any) -> None:
    """Write a value as indented JSON, atomically."""
    write_bytes(path, json_text(value).encode())


def json_text(value: Any) -> str:
    """A value as indented JSON, for files that people read too."""
    return json.dumps(value, indent=2) + "\n"


def link(source: Path, target: Path) -> None:
    """Make `target` the same file as `source` atomically; a copy where the file system has no hard links."""
    temporary = target.with_name(f".{target.name}.{os.getpid()}.tmp")
    temporary.unlink(missing_ok=True)
    try:
        os.link(source, temporary)
    except OSError:  # not every file system has hard links
        write_bytes(target, source.read_bytes())
        return
    try:
        os.replace(temporary, target)
    finally:
        temporary.unlink(missing_ok=True)  # POSIX renames nothing where both are the same file already


def sync_directory(path: Path) -> None:
    """Make renames in a directory durable."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def file_sha256(path: Path) -> str:
    """SHA-256 of a file, as hexadecimal digits."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
