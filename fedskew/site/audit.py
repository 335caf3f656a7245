"""A site's audit log: one JSON line for every message it answered, each holding the hash of the line before.

    verify_audit(path)      # raises AuditError with the line, or tells how many lines there are and the last hash

The chain shows that a line in the middle was changed, removed or added. That its end was cut off is shown by the ledger
beside it (`ledger`) and by the coordinator's record, which hold its last hashes.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from fedskew.errors import FedskewError
from fedskew.paths import home

PREVIOUS, TORN = "previous", "after-torn-line"
START = "0" * 64  # stands for the hash of the line before the first
LOCK_SECONDS = 60.0
ANSWERED, REFUSED, FAILED = "answered", "refused", "failed"

Entry = Mapping[str, Any]


class AuditError(FedskewError, ValueError):
    """An audit log that is damaged or cannot be written; names the file, the line and the remedy."""


@dataclass(frozen=True)
class AuditState:
    """What `verify_audit` found."""

    entries: int
    last_hash: str


def site_name(node_config: Mapping[str, Any]) -> str:
    """A site's name for itself, fit for a file name: `name`, `partition-id`, or its data folder's name."""
    folder = Path(str(node_config.get("data-dir", ""))).name
    name = next((str(value) for key in ("name", "partition-id") if (value := node_config.get(key, "")) != ""), folder)
    return re.sub(r"[^A-Za-z0-9._-]", "_", name) or "site"


def audit_path(node_config: Mapping[str, Any]) -> Path:
    """Where a site's audit log lies: its `audit-log`, else `$FEDSKEW_HOME/audit/<name>.jsonl`.

    Not beside the policy: that is often a folder that the SuperNode's account cannot write, and should be.
    """
    configured = str(node_config.get("audit-log", ""))
    return Path(configured).expanduser() if configured else home() / "audit" / f"{site_name(node_config)}.jsonl"


def append_entry(path: Path, entry: Entry, check: Callable[[Sequence[Entry]], None] | None = None) -> None:
    """Append a line and wait until it is on disk.

    Time and hash are added here. Processes take turns, so a line never mixes with another; what a full disk lets
    through in part is taken back.

    Args:
        check: called with the verified lines so far while no other process can append; what it raises ends the
            append. Without it only the last line is read.

    Raises:
        AuditError: the file cannot be written, or `check` is given and the chain is broken.
    """
    with locked(path):
        if check is not None:
            check(read_entries(path))
        add_line(path, entry)


@contextmanager
def locked(path: Path) -> Iterator[None]:
    """Keep other processes from adding lines to a file; its folder is made if need be.

    Raises:
        AuditError: another process holds it for a minute, or something in it cannot be written.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        with FileLock(f"{path}.lock", timeout=LOCK_SECONDS):
            yield
    except OSError as error:  # filelock's Timeout is one
        why = f"another process holds it for {LOCK_SECONDS:.0f} s" if isinstance(error, Timeout) else str(error)
        raise AuditError(
            f"audit log {path} cannot be written ({why}), so nothing is answered; free space, or name a writable file "
            "in the node configuration: audit-log='/absolute/path'"
        ) from error


def read_entries(path: Path) -> list[dict[str, Any]]:
    """The lines of a log whose chain is whole; empty if there is no file.

    Raises:
        AuditError: a line was changed, removed or added, or the file cannot be read.
    """
    try:
        *lines, rest = path.read_bytes().split(b"\n") if path.exists() else [b""]
    except OSError as error:
        raise AuditError(f"audit log {path} cannot be read: {error}") from error
    if _parsed(rest) is not None:  # else it is empty, or a line that a dying process did not finish
        lines.append(rest)
    entries: list[dict[str, Any]] = []
    previous, torn = START, 0
    for number, line in enumerate(lines, start=1):
        entry = _parsed(line)
        if entry is None:
            if torn or number == len(lines):
                raise _broken(path, torn or number, "is no entry")
            torn = number  # a process died in mid-write: right only if the next line says so
        else:
            if entry.get(PREVIOUS) != previous or bool(entry.get(TORN)) != bool(torn):
                raise _broken(path, number, "does not follow from the line before it")
            torn = 0
            entries.append(entry)
        previous = _line_hash(line)
    return entries


def verify_audit(path: Path) -> AuditState:
    """Check the whole chain.

    Raises:
        AuditError: as `read_entries`, or there is no such file.
    """
    if not path.is_file():
        raise AuditError(f"audit log {path} does not exist")
    entries = read_entries(path)
    return AuditState(len(entries), last_hash(path))


def last_hash(path: Path) -> str:
    """Hash of a log's last line; that of no line if it has none."""
    line = _last_line(path)[0]
    return _line_hash(line) if line else START


def answers(entries: Sequence[Entry], run_id: int | None, kind: str) -> int:
    """How many tasks of a kind (`train`, `evaluate`) of a run were answered with a result; None: of all runs."""
    return sum(
        run_id in (None, entry.get("run")) and entry.get("kind") == kind and entry.get("outcome") == ANSWERED
        for entry in entries
    )


def add_line(path: Path, entry: Entry) -> str:
    """Append a line to a file that is `locked`, and wait until it is on disk; returns the line's hash.

    Raises:
        OSError: it cannot be written; the file is as it was.
    """
    last, ended = _last_line(path)
    torn = not ended and _parsed(last) is None
    time = datetime.now(UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")
    content = {"time": time, **entry, **({TORN: True} if torn else {}), PREVIOUS: _line_hash(last) if last else START}
    # half of a surrogate pair, which a server's JSON can hold and UTF-8 cannot, becomes JSON's own escape of it
    text = json.dumps(content, ensure_ascii=False).encode(errors="backslashreplace")
    line = (b"" if ended else b"\n") + text + b"\n"
    handle = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)
    try:
        size = os.fstat(handle).st_size
        try:
            if os.write(handle, line) != len(line):
                raise OSError("the disk is full")
            os.fsync(handle)
        except OSError:
            with suppress(OSError):  # the write's own error is the one to report
                os.ftruncate(handle, size)
            raise
    finally:
        os.close(handle)
    return _line_hash(line.strip(b"\n"))


def _last_line(path: Path) -> tuple[bytes, bool]:
    """The last line, and whether it has its newline (not if a process died in mid-write)."""
    size = path.stat().st_size if path.exists() else 0
    if not size:
        return b"", True
    with path.open("rb") as file:
        tail, start = b"", size
        while start and b"\n" not in tail[:-1]:
            start = max(0, start - 8192)
            file.seek(start)
            tail = file.read(size - start)
    return tail.removesuffix(b"\n").rsplit(b"\n", 1)[-1], tail.endswith(b"\n")


def _line_hash(line: bytes) -> str:
    return hashlib.sha256(line).hexdigest()


def _parsed(line: bytes) -> dict[str, Any] | None:
    try:
        entry = json.loads(line)
    except (ValueError, RecursionError):
        return None  # the caller decides whether a torn line is allowed there
    return entry if isinstance(entry, dict) else None


def _broken(path: Path, number: int, what: str) -> AuditError:
    return AuditError(
        f"audit log {path}: line {number} {what}; somebody changed the file. Keep it for inquiry under another name; "
        "a new one is begun at the next message"
    )
