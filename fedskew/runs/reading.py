"""A run folder as those see it who only look: names of its files, its records, splits and starts. Without torch.

What writes a run (`folder`, `starts`, `checkpoint`) imports torch, whose import takes longer than a report.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fedskew.errors import FedskewError
from fedskew.files import DamagedFileError, read_json, read_json_lines
from fedskew.runs.record_fields import wrong_field

METRICS, SUMMARY, CONFIG, SPLIT = "metrics.jsonl", "summary.json", "config.yaml", "split.json"
STARTS, PREDICTIONS, MODEL, STATE = "starts.jsonl", "predictions.npz", "model.safetensors", "state.json"
REPORT = "report.html"
OF_CHANGE = frozenset({"key", "old", "new"})
# Where things lie. Their content is what the run began with: hashes of samples and split see to that.
PLACES = frozenset({"data.dir", "data.manifest", "data.cache-dir", "run.output-dir", "run.name"})

# What became of a site in a round's training phase.
IN = "in"  # its update is in the new global model
UNUSED = "unused"  # a good answer that is not: the round was not accepted, or the aggregation took another's
LATE = "late"  # it was asked, and no answer came in time
MISSING = "missing"  # it was not connected, or vanished
REFUSED = "refused"  # its answer was set aside
FAILED = "failed"  # it answered that it did not do the task
OUTCOMES = (IN, UNUSED, LATE, MISSING, REFUSED, FAILED)


class RunFolderError(FedskewError, RuntimeError):
    """A run folder that cannot be read, written or resumed; the message names the folder and the remedy."""


@dataclass(frozen=True)
class Change:
    """A setting, or a fact of the machine, that is another one since a run was resumed.

    Attributes:
        round_number: the first round that it holds for.
        key: `section.key`; of the machine `device`, `precision`, `torch` or `fedskew`.
        time: of the start, in UTC (ISO 8601).
    """

    round_number: int
    key: str
    old: Any
    new: Any
    time: str

    def __str__(self) -> str:
        return f"{self.key} {self.old} → {self.new} from round {self.round_number}"

    def as_json(self) -> dict[str, Any]:
        """For `summary.json`."""
        return {"round": self.round_number, "key": self.key, "old": self.old, "new": self.new, "time": self.time}


def read_records(path: Path) -> list[dict[str, Any]]:
    """The lines of a run's metrics, one a finished round; versions differ in their fields.

    Raises:
        RunFolderError: there are none.
        DamagedFileError: they are not what a run writes.
    """
    file = path / METRICS
    if not file.is_file():
        raise RunFolderError(f"{path} is no run folder: it holds no {METRICS}")
    records = read_json_lines(file)
    for number, record in enumerate(records, start=1):
        if reason := wrong_field(record):
            raise DamagedFileError(f"{file}, line {number} is damaged: {reason}")
    return records


def read_object(file: Path) -> dict[str, Any]:
    """A file of the folder that holds one JSON object; empty where there is no such file.

    Raises:
        DamagedFileError: it holds something else.
    """
    return read_json(file) if file.is_file() else {}


def read_starts(path: Path) -> list[dict[str, Any]]:
    """A line for each start of a run; none in folders of earlier versions.

    Raises:
        DamagedFileError: they are not what a run writes.
    """
    file = path / STARTS
    lines = read_json_lines(file) if file.is_file() else []
    for number, line in enumerate(lines, start=1):
        changes = line.get("changes", [])
        whole = isinstance(changes, list) and all(isinstance(one, dict) and one.keys() >= OF_CHANGE for one in changes)
        if not whole or type(line.get("round")) is not int or not isinstance(line.get("time", ""), str):
            raise DamagedFileError(f"{file}, line {number} is damaged: it is no line of a start: {line!r:.80}")
    return lines


def read_changes(path: Path) -> list[Change]:
    """Everything that is another one since a run in a folder began, in order, without places."""
    return changes_in(read_starts(path))


def read_precision(path: Path) -> str | None:
    """What the last start of a run in a folder computed in; None if an earlier version made it and did not say."""
    starts = read_starts(path)
    return starts[-1].get("precision") if starts else None


def changes_in(starts: Iterable[Mapping[str, Any]]) -> list[Change]:
    """The same of lines of `starts.jsonl`."""
    return [
        Change(line["round"], change["key"], change["old"], change["new"], line.get("time", ""))
        for line in starts
        for change in line.get("changes", ())
        if change["key"] not in PLACES
    ]


def read_flower_runs(path: Path) -> list[tuple[int, int]]:
    """(first round, Flower's run id) of every start in a folder, in order; without those of earlier versions.

    Of several that begin with the same round only the last one finished it.
    """
    return [(line["round"], line["flower_run"]) for line in read_starts(path) if "flower_run" in line]


def read_split(path: Path) -> dict[str, Any]:
    """The split of a run folder; empty if it has none (yet).

    Raises:
        DamagedFileError: it is not what a run writes.
    """
    split = read_object(path / SPLIT)
    ids, nodes = split.get("ids", {}), split.get("nodes")
    parts = ids.get("parts", []) if isinstance(ids, dict) else None
    lists = [ids.get("test", []), ids.get("open", []), *parts] if isinstance(parts, list) else [None]
    if type(nodes) not in (int, type(None)) or not all(map(_are_texts, lists)):
        raise DamagedFileError(f"{path / SPLIT} is damaged: expected lists of image ids and a number of nodes")
    return split


def _are_texts(values: Any) -> bool:
    return isinstance(values, list) and all(isinstance(value, str) for value in values)


def recorded_nodes(path: Path) -> int | None:
    """How many nodes share the data of a run; None if each has its own, or none is on record."""
    split = read_split(path)
    return split.get("nodes") or len(split.get("ids", {}).get("parts", ())) or None
