"""What besides the method makes runs no fair comparison: settings, how far they came, and whose work they kept."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from fedskew.config.load import to_mapping
from fedskew.runs.predictions import PredictionsError, read_predictions
from fedskew.runs.reading import PLACES, SPLIT, read_changes, read_precision, read_split
from fedskew.tools.compare import RunResult

# Besides where things lie: what changes no figure, what runs are compared for, and what has a line of its own.
NOT_LISTED = PLACES | {
    "run.threads", "train.threads", "train.device", "run.keep-checkpoints", "run.eval-batch-size", "run.report",
    "run.sinks", "prune.criterion", "run.seed", "federation.rounds",
}  # fmt: skip
SHARING = ("data.clients", "data.partition", "data.alpha", "data.split-by", "data.validation")


def warnings_of(runs: Sequence[RunResult]) -> list[str]:
    """A line or more for everything besides the method in which runs differ, so that they are no fair comparison."""
    of_each: dict[str, Callable[[RunResult], Any]] = {
        "test sets": _test_set,
        "numbers of nodes": lambda run: run.nodes,
        "ways to share the data": _partition,
        "seeds": lambda run: run.config.run.seed if run.config else None,
        "finished rounds": lambda run: run.rounds,
        "precisions": lambda run: read_precision(run.path),
    }
    lines = []
    for what, value in of_each.items():
        known = {run.name: found for run in runs if (found := value(run)) is not None}
        if len(set(known.values())) > 1:
            lines.append(f"the {what} differ: {', '.join(f'{name}: {found}' for name, found in known.items())}")
    if differing := different_settings(runs):
        lines.append(f"the settings differ ({' | '.join(run.name for run in runs)}):")
        lines += [f"  {key}: {' | '.join(map(_short, values))}" for key, values in differing.items()]
    return lines + [line for run in runs for line in _of_one(run)]


def _of_one(run: RunResult) -> list[str]:
    """What makes a single run another thing than its name says."""
    lines = []
    if run.config and run.rounds < run.config.federation.rounds:
        lines.append(f"{run.name} is unfinished: {run.rounds} of {run.config.federation.rounds} rounds")
    for count, what in ((run.rolled_back, "rolled back"), (run.below_quorum, "below quorum")):
        if count:
            lines.append(f"{run.name}: {count} of {run.rounds} rounds {what}, the model before was kept")
    pruned, dense = run.config and run.config.prune.criterion != "none", run.record.get("dense_parameters")
    if pruned and dense and run.record["parameters"] == dense:
        lines.append(f"{run.name}: pruning has removed nothing, its model is the dense one")
    if changes := read_changes(run.path):
        lines.append(f"{run.name} was resumed with other settings: {', '.join(map(str, changes))}")
    return lines


def different_settings(runs: Sequence[RunResult]) -> dict[str, list[Any]]:
    """`section.key` → its value in each run, for every setting in which runs differ and that can change a figure.

    Without what has a line of its own (method, seed, rounds, how data are shared); `prune.*` of a run without pruning
    counts for nothing. None stands for what a run does not have or tell.
    """
    tables = [_settings(run) for run in runs]
    keys = dict.fromkeys(key for table in tables for key in table)
    found = {key: [table.get(key) for table in tables] for key in keys if key not in (*NOT_LISTED, *SHARING)}
    return {key: values for key, values in found.items()
            if len({json.dumps(value) for value in values if value is not None}) > 1}  # fmt: skip


def _settings(run: RunResult) -> dict[str, Any]:
    if run.config is None:
        return {}
    pruned = run.config.prune.criterion != "none"
    return {
        f"{section}.{key}": value
        for section, values in to_mapping(run.config).items() if isinstance(values, Mapping)
        for key, value in values.items() if pruned or section != "prune"
    }  # fmt: skip


def _short(value: Any) -> str:
    text = "-" if value is None else value if isinstance(value, str) and value else json.dumps(value)
    return text if len(text) <= 30 else f"{text[:29]}…"


def _partition(run: RunResult) -> str | None:
    """How the nodes share the data; None if each has its own, or it is not known."""
    settings = run.config.data if run.config else None
    if settings is None or settings.clients != "partition":
        return None
    how = f"{settings.partition}, alpha {settings.alpha:g}" if settings.partition == "dirichlet" else settings.partition
    return f"{how}, by {settings.split_by}, validation {settings.validation:g}"


def _test_set(run: RunResult) -> str | None:
    """A short hash of a run's test images, from its predictions or its split; None if it has neither."""
    split = run.path / SPLIT
    try:
        ids = read_predictions(run.model).images.tolist()
    except PredictionsError:
        if not split.is_file():
            return None
        ids = read_split(run.path).get("ids", {}).get("test", [])
    return f"{len(ids)} images, {hashlib.sha256(json.dumps(ids).encode()).hexdigest()[:8]}"
