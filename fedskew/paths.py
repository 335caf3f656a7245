"""Where fedskew keeps things that a person did not place: one documented folder, `$FEDSKEW_HOME`."""

from __future__ import annotations

import os
from pathlib import Path


def home() -> Path:
    """`$FEDSKEW_HOME`, by default `~/.fedskew`: holds `runs/`, `cache/` and `generated/`."""
    return Path(os.environ.get("FEDSKEW_HOME") or Path.home() / ".fedskew").expanduser().resolve()


def runs_directory(configured: str) -> Path:
    """Parent of the run folders."""
    return Path(configured).expanduser().resolve() if configured else home() / "runs"


def cache_directory(configured: str) -> Path:
    """Where decoded images are kept."""
    return Path(configured).expanduser().resolve() if configured else home() / "cache"
