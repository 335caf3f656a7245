"""How far the runs of a sweep are, from what their folders say, and how long the rest will take."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from statistics import fmean

from fedskew.config import Config, ConfigError
from fedskew.config.load import load_saved
from fedskew.files import read_json
from fedskew.runs.folder import CONFIG, METRICS, SUMMARY, RunFolder
from fedskew.runs.reading import read_split
from fedskew.runs.resume import differences
from fedskew.sweeps.references import PlannedRun
from fedskew.text import duration

NEW, BEGUN, DONE = "new", "begun", "done"
# Where things lie on this machine: a sweep may move, and its data with it (the split's hash tells if it is the same).
PLACES = {"data": {"dir", "cache-dir"}, "run": {"output-dir", "name"}}
RECENT = 5  # rounds whose mean is the pace: a model that shrinks gets faster


@dataclass(frozen=True)
class Progress:
    """What a run's folder says: how far it is, and how long its latest rounds took."""

    state: str = NEW
    round_number: int = -1  # the last finished one; 0 is the initial model's evaluation, -1: none
    seconds: tuple[float, ...] = ()  # of the latest rounds


def progress_of(run: PlannedRun, path: Path) -> Progress:
    """How far a run is; `done` only if it went through all of its rounds."""
    if not (path / CONFIG).is_file():
        return Progress()
    records = RunFolder(path).records() if (path / METRICS).is_file() else []
    number = records[-1]["round"] if records else -1
    seconds = tuple(record["seconds"] for record in records[-RECENT:] if record["round"])
    return Progress(DONE if _finished(run, path) else BEGUN, number, seconds)


def _finished(run: PlannedRun, path: Path) -> bool:
    summary = read_summary(path)
    return bool(summary) and not summary.get("stopped") and summary.get("rounds") == run.config.federation.rounds


def read_summary(path: Path) -> dict:
    """A run's summary; empty as long as it has none."""
    file = path / SUMMARY
    return read_json(file) if file.is_file() else {}


def conflicts(run: PlannedRun, path: Path) -> list[str]:
    """What a folder that is there was run with, other than the study asks for: `section.key was A, is B`."""
    if not (path / CONFIG).is_file():
        return []
    try:
        saved = load_saved(path / CONFIG)
    except ConfigError as error:
        return [str(error)]
    everything = {spec.name: PLACES.get(spec.name, set()) for spec in fields(Config) if spec.name != "preset"}
    found = differences(saved, run.config, everything)
    nodes = _nodes(path)
    return [*found, f"nodes was {nodes}, is {run.nodes}"] if nodes not in (None, run.nodes) else found


def _nodes(path: Path) -> int | None:
    """Nodes that shared the data; None where that is not known (yet)."""
    return len(read_split(path).get("ids", {}).get("parts", [])) or None


def seconds_left(runs: Sequence[PlannedRun], states: Mapping[str, Progress], jobs: int) -> float | None:
    """Time that the runs still need on `jobs` places at the measured pace; None before a round was measured.

    A run's pace is that of its own latest rounds, else of its cell with other seeds, else of all runs.
    """
    measured = {run.name: states[run.name].seconds for run in runs if states[run.name].seconds}
    if not measured:
        return None
    by_cell: dict[str, list[float]] = {}
    for run in runs:
        by_cell.setdefault(run.cell, []).extend(measured.get(run.name, ()))
    overall = fmean(value for values in measured.values() for value in values)
    needed = []
    for run in runs:
        if states[run.name].state != DONE:
            own = measured.get(run.name) or by_cell[run.cell]
            rounds = run.config.federation.rounds - max(0, states[run.name].round_number)
            needed.append(rounds * (fmean(own) if own else overall))
    return max(sum(needed) / jobs, max(needed)) if needed else 0.0


def progress_line(
    runs: Sequence[PlannedRun], states: Mapping[str, Progress], running: Sequence[str], failed: int, jobs: int
) -> str:
    """`2 of 6 done, 2 running (dense-s1 4/16, pruned-s1 3/16), 2 left, about 1h05m`."""
    rounds = {run.name: run.config.federation.rounds for run in runs}
    # a run whose summary is written still runs until its process ends
    done = sum(states[run.name].state == DONE and run.name not in running for run in runs)
    inside = ", ".join(f"{name} {max(0, states[name].round_number)}/{rounds[name]}" for name in running)
    parts = [f"{done} of {len(runs)} done", f"{len(running)} running" + (f" ({inside})" if inside else "")]
    parts += [f"{failed} failed"] if failed else []
    parts += [f"{len(runs) - done - len(running) - failed} left"]
    left = seconds_left(runs, states, jobs)
    return ", ".join([*parts, "time left not known yet" if left is None else f"about {duration(left)} left"])
