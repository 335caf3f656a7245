"""How far a run in a folder is, seen from outside: going on, at its end, or broken off."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from fedskew.config import Config
from fedskew.config.load import load_saved
from fedskew.console import PROGRESS_FILE
from fedskew.runs.reading import CONFIG, METRICS, SUMMARY, RunFolderError, read_object, read_records

GOING, ENDED, BROKEN = "going", "ended", "broken off"
LOCK = ".lock"


@dataclass(frozen=True)
class Presence:
    """A run as it is at one moment.

    Attributes:
        state: `GOING`, `ENDED` (its summary is of its last round) or `BROKEN` (no process is at work in it).
        progress: how far the present round is, where the run writes that down.
    """

    config: Config
    records: Sequence[Mapping[str, Any]]
    summary: Mapping[str, Any]
    state: str
    progress: str


def look_at(path: Path) -> Presence:
    """See how far a run is.

    Raises:
        RunFolderError: no run folder, or a damaged one.
        ConfigError: its configuration is damaged.
    """
    if not (path / CONFIG).is_file():
        raise RunFolderError(f"{path} is no run folder: it holds no {CONFIG}")
    held = is_held(path)  # before what follows is read: a run that ends now has written all of it
    records = read_records(path) if (path / METRICS).is_file() else []
    summary, file = read_object(path / SUMMARY), path / PROGRESS_FILE
    is_at_end = bool(records) and summary.get("rounds") == records[-1]["round"]
    try:
        progress = file.read_text(encoding="utf-8").strip()
    except FileNotFoundError:  # between rounds, or it writes none
        progress = ""
    over = ENDED if is_at_end else BROKEN
    state = over if held is False else GOING if held or not is_at_end else ENDED
    return Presence(load_saved(path / CONFIG), records, summary, state, progress)


def is_held(path: Path) -> bool | None:
    """Whether a process is at work in a run folder: runs hold its lock from their start to their end.

    Returns:
        None where that cannot be seen, as in a folder that cannot be written.
    """
    if not (path / LOCK).is_file():
        return False
    try:
        with FileLock(path / LOCK, timeout=0):
            return False
    except Timeout:
        return True
    except OSError:
        return None
