"""What the runs of a sweep came to: read from run folders or from their committed records, no model files needed."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import yaml

from fedskew.errors import FedskewError
from fedskew.files import DamagedFileError, read_json, read_json_lines
from fedskew.metrics import Predictions
from fedskew.runs.folder import CONFIG, METRICS, SUMMARY, RunFolder
from fedskew.runs.predictions import SAME_ACCURACY, accuracy_of, read_predictions
from fedskew.runs.reading import PREDICTIONS
from fedskew.sweeps.history import read_history
from fedskew.sweeps.progress import read_summary
from fedskew.text import read_yaml

RUN_NAME = re.compile(r"(?P<cell>.+)-s(?P<seed>\d+)")


class ResultsError(FedskewError, RuntimeError):
    """Results that cannot be read or compared; the message names the folder or the cell, and the remedy."""


@dataclass(frozen=True)
class RunResult:
    """A finished run: the record of its last round."""

    path: Path
    record: Mapping[str, Any]

    @cached_property
    def predictions(self) -> Predictions | None:
        """What the model of the last round says of every test image; None if that was not kept.

        Raises:
            ResultsError: the predictions are another model's.
        """
        if not (self.path / PREDICTIONS).is_file():
            return None
        found = read_predictions(self.path)
        accuracy = accuracy_of(found)
        if abs(accuracy - self.record["accuracy"]) > SAME_ACCURACY:
            raise ResultsError(
                f"{self.path / PREDICTIONS} has an accuracy of {accuracy:.4f}, the run's last round one of "
                f"{self.record['accuracy']:.4f}: it comes from another model. Make it anew with fedskew evaluate"
            )
        return found


@dataclass(frozen=True)
class Cell:
    """The runs of one cell."""

    name: str
    runs: Mapping[int, RunResult]  # by seed, finished ones only
    unfinished: Mapping[int, str]  # by seed: how far it is

    def values(self, metric: str, seeds: Iterable[int] | None = None) -> list[float]:
        """A metric of the finished runs (or of some of their seeds), by seed; empty if one of them lacks it.

        Raises:
            ResultsError: no run's record has ever had such a metric.
        """
        found = [
            metric_value(self.runs[seed].record, metric) for seed in (sorted(self.runs) if seeds is None else seeds)
        ]
        return [] if None in found else found  # type: ignore[return-value]


SHARES = {
    "parameters_share": ("parameters", "dense_parameters"),
    "macs_share": ("macs", "dense_macs"),
    "macs_total_share": ("macs_total", "dense_macs_total"),
    "memory_share": ("memory_bytes", "dense_memory_bytes"),
}  # a metric that records do not hold as such: percent of the dense model


def metric_value(record: Mapping[str, Any], metric: str) -> float | None:
    """A number of a record: a key, `recall.mel` for nested ones, or one of `SHARES`, in percent. None if undefined.

    Raises:
        ResultsError: the record has no such number.
    """
    if metric in SHARES:
        part, whole = SHARES[metric]
        return 100 * record[part] / record[whole]
    value: Any = record
    for key in metric.split("."):
        if not isinstance(value, Mapping) or key not in value:
            raise ResultsError(f"no metric {metric!r} in the records; there are {', '.join(metric_names(record))}")
        value = value[key]
    if value is not None and (isinstance(value, bool) or not isinstance(value, int | float)):
        raise ResultsError(f"{metric!r} is no number in the records, but {str(value)[:60]}")
    return value


def metric_names(record: Mapping[str, Any]) -> list[str]:
    """What `metric_value` finds in a record, one level deep."""
    names = list(SHARES)
    for key, value in record.items():
        if isinstance(value, Mapping):
            names += [f"{key}.{inner}" for inner, number in value.items() if isinstance(number, int | float)]
        elif isinstance(value, int | float) and not isinstance(value, bool):
            names.append(key)
    return names


def read_cells(folders: Sequence[Path]) -> list[Cell]:
    """The cells of one or more sweeps, in the order of their studies; `study/cell` if there are several sweeps.

    Raises:
        ResultsError: a folder holds no run of a sweep.
    """
    cells = [(folder.resolve().name, cell) for folder in folders for cell in _cells_in(folder)]
    if len(folders) == 1:
        return [cell for _, cell in cells]
    return [Cell(f"{study}/{cell.name}", cell.runs, cell.unfinished) for study, cell in cells]


def selected(cells: Sequence[Cell], names: Sequence[str] = (), seeds: Sequence[int] = ()) -> list[Cell]:
    """Some of the cells, in the order of `names`, with some of their seeds; all where nothing is named.

    Raises:
        ResultsError: there is no such cell, or no cell with such a seed.
    """
    known = {cell.name: cell for cell in cells}
    for name in names:
        if name not in known:
            raise ResultsError(f"no cell {name!r}; there are {', '.join(known)}")
    chosen = [known[name] for name in names] or list(cells)
    for seed in seeds:
        if not any(seed in cell.runs or seed in cell.unfinished for cell in chosen):
            raise ResultsError(f"no run with seed {seed} in {', '.join(cell.name for cell in chosen)}")
    return [_with_seeds(cell, seeds) for cell in chosen] if seeds else chosen


def _with_seeds(cell: Cell, seeds: Sequence[int]) -> Cell:
    runs = {seed: run for seed, run in cell.runs.items() if seed in seeds}
    return Cell(cell.name, runs, {seed: state for seed, state in cell.unfinished.items() if seed in seeds})


def _cells_in(folder: Path) -> list[Cell]:
    history = read_history(folder)
    named: dict[str, dict[int, Path]] = {cell: {} for cell in history["cells"]}
    places = sorted(folder.iterdir()) if folder.is_dir() else []
    for path in (*(folder / name for name in history["runs"]), *places):
        match = RUN_NAME.fullmatch(path.name)
        if match and (path.name in history["runs"] or (path / METRICS).is_file()):
            named.setdefault(match["cell"], {})[int(match["seed"])] = path
    if not any(named.values()):
        raise ResultsError(f"{folder} holds no run of a sweep (<cell>-s<seed>/{METRICS})")
    # without a history, the seeds of the other cells say what is missing
    seeds = sorted({seed for paths in named.values() for seed in paths}) if not history["runs"] else []
    return [
        _cell(name, {**{seed: folder / f"{name}-s{seed}" for seed in seeds}, **paths}) for name, paths in named.items()
    ]


def _cell(name: str, paths: Mapping[int, Path]) -> Cell:
    runs, unfinished = {}, {}
    for seed in sorted(paths):
        state = _state(paths[seed])
        if state:
            unfinished[seed] = state
        else:
            runs[seed] = RunResult(paths[seed], _last_record(paths[seed]))
    return Cell(name, runs, unfinished)


def _last_record(path: Path) -> dict[str, Any]:
    if records := RunFolder(path).records():
        return records[-1]
    raise ResultsError(f"{path / SUMMARY} says that the run is finished, and {METRICS} beside it holds no round")


def _state(path: Path) -> str:
    """How far a run is; empty if it is through all of its rounds."""
    if not (path / METRICS).is_file():
        return "not run"
    # no load_config: records outlive the keys of their time
    rounds = read_settings(path)["federation"]["rounds"]
    summary = read_summary(path)
    if summary.get("rounds") == rounds and not summary.get("stopped"):
        return ""
    records = RunFolder(path).records()
    where = f"round {records[-1]['round'] if records else 0} of {rounds}"
    return f"stopped in {where}: {summary['stopped']}" if summary.get("stopped") else where


def read_settings(path: Path) -> dict[str, Any]:
    """The settings of a run folder as they were written.

    Raises:
        ResultsError: they are not there, or no YAML with sections.
    """
    try:
        found = read_yaml((path / CONFIG).read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise ResultsError(f"the settings {path / CONFIG} cannot be read: {error}") from None
    if not isinstance(found, dict) or not isinstance(found.get("federation"), dict):
        raise ResultsError(f"the settings {path / CONFIG} have no sections, as a run writes them")
    return found


def read_record(path: Path) -> Any:
    """A committed JSON file, or the lines of a JSON-lines file.

    Raises:
        ResultsError: it is not there or no JSON.
    """
    try:
        return read_json_lines(path) if path.suffix == ".jsonl" else read_json(path)
    except (OSError, DamagedFileError) as error:
        raise ResultsError(f"the record {path} cannot be read: {error}") from None
