"""`sweep.json`: a study's cells in their order; of each run how often it was tried, by what code, and why it failed.

It is for people and tables. What a sweep does next depends on the run folders alone.
"""

from __future__ import annotations

import json
import subprocess
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import fedskew
from fedskew.files import write_json
from fedskew.sweeps.references import PlannedRun
from fedskew.sweeps.study import Study, StudyError

SWEEP = "sweep.json"


class History:
    """The file, written anew at every event."""

    def __init__(self, path: Path, content: dict[str, Any]) -> None:
        self._path, self._content = path, content
        self._commit = source_commit()

    @classmethod
    def open(cls, out: Path, study: Study) -> History:
        """The history of a folder, with the runs of this study added to those it knows.

        Raises:
            StudyError: the file is damaged.
        """
        path, known = out / SWEEP, read_history(out)
        cells = list(dict.fromkeys([*study.cells, *known["cells"]]))
        runs = {run.name: {"cell": run.cell, "seed": run.seed, "attempts": 0, "commits": []} for run in study.runs}
        history = cls(path, {"study": study.path.name, "cells": cells, "runs": runs | known["runs"]})
        history._write()
        return history

    def started(self, run: PlannedRun) -> None:
        """Note an attempt, and the code it is made with."""
        entry = self._content["runs"][run.name]
        entry["attempts"] += 1
        entry["commits"] = list(dict.fromkeys([*entry["commits"], *filter(None, [self._commit])]))
        self._note(run, "started")

    def done(self, run: PlannedRun) -> None:
        """Note that a run is done; what went wrong before does not matter any more."""
        self._note(run, "done")

    def failed(self, run: PlannedRun, why: str, lines: Sequence[str]) -> None:
        """Note why a run failed, with the end of its log."""
        self._note(run, "failed", why=why, last_lines=list(lines))

    def _note(self, run: PlannedRun, state: str, **about: Any) -> None:
        entry = self._content["runs"][run.name]
        for key in ("why", "last_lines"):
            entry.pop(key, None)
        entry |= {"state": state, "at": time.strftime("%Y-%m-%dT%H:%M:%S%z"), **about}
        self._write()

    def _write(self) -> None:
        write_json(self._path, self._content)


def read_history(out: Path) -> dict[str, Any]:
    """The content of a folder's `sweep.json`; empty lists if it has none.

    Raises:
        StudyError: it is damaged.
    """
    path = out / SWEEP
    if not path.is_file():
        return {"cells": [], "runs": {}}
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        return {**content, "cells": list(content["cells"]), "runs": dict(content["runs"])}
    except (ValueError, KeyError, TypeError) as error:
        raise StudyError(f"{path} is damaged ({error!r}); it only holds what was tried and failed: delete it") from None


def source_commit() -> str:
    """The commit that this code comes from, with `-dirty` if the checkout differs from it; empty if there is none."""
    root = Path(fedskew.__file__).resolve().parent.parent
    if not (root / ".git").exists():
        return ""
    command = ["git", "-C", str(root), "describe", "--always", "--dirty", "--abbrev=40", "--exclude=*"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=30, check=False)
    except (OSError, subprocess.TimeoutExpired):
        return ""
    return done.stdout.strip()
