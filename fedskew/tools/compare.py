"""Runs side by side: the paper's table, and what differs in pairs of test images, with intervals."""

from __future__ import annotations

import io
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from fedskew.config import Config
from fedskew.config.load import load_saved
from fedskew.learning.judging import best_record, evaluated
from fedskew.metrics.clinical import DANGEROUS, HARMLESS, degradation
from fedskew.runs.reading import CONFIG, RunFolderError, read_records, recorded_nodes

ROWS: tuple[tuple[str, str, Callable[[Any], str], bool], ...] = (
    ("Accuracy", "accuracy", "{:.3f}".format, False),
    ("Balanced accuracy", "balanced_accuracy", "{:.3f}".format, False),
    ("Macro F1", "f1_macro", "{:.3f}".format, False),
    ("Macro AUROC", "auroc_macro", "{:.3f}".format, False),
    ("Expected calibration error", "expected_calibration_error", "{:.3f}".format, False),
    ("Specificity at 90 % sensitivity to mel", "melanoma_specificity", "{:.3f}".format, False),
)
COSTS: tuple[tuple[str, str, Callable[[Any], str], bool], ...] = (
    ("GMACs (linear/conv)", "macs", lambda value: f"{value / 1e9:.4g}", True),
    ("GMACs with attention", "macs_total", lambda value: f"{value / 1e9:.4g}", True),
    ("Parameters (M)", "parameters", lambda value: f"{value / 1e6:.3f}", True),
    # the paper's "MB" of its footprint are 2²⁰ bytes: 27.7 M float32 parameters and buffers are 106.02 of them
    ("Memory footprint (MiB)", "memory_bytes", lambda value: f"{value / 2**20:.2f}", True),
    ("Model file (MB)", "model_bytes", lambda value: f"{value / 1e6:.2f}", True),
    ("Sent to nodes (MB)", "bytes_down_total", lambda value: f"{value / 1e6:.1f}", True),
    ("Received from nodes (MB)", "bytes_up_total", lambda value: f"{value / 1e6:.1f}", True),
)
LEGEND = (
    "MB are 10^6 bytes, MiB 2^20. Metrics: difference to the first run; costs: share of it. Recall lost: the mean over "
    f"{', '.join(DANGEROUS)} divided by the mean over {', '.join(HARMLESS)}, and both means, against the first run; "
    "a negative loss is a gain, and where the latter lost nothing there is no ratio (-)."
)


@dataclass(frozen=True)
class RunResult:
    """A run's column: its name and the line of metrics that it is judged by.

    Attributes:
        name: what tells it from the others, with the round.
        record: the last evaluated round, or the best.
        path: the run folder.
        config: None if the folder holds none.
        rounds: finished rounds.
        rolled_back, below_quorum: rounds that kept the model before them.
        nodes: how many nodes share the data, or, where each has its own, how many the records name.
        model: folder of the model of `record`, with its predictions.
    """

    name: str
    record: Mapping[str, Any]
    path: Path = Path()
    config: Config | None = None
    rounds: int = 0
    rolled_back: int = 0
    below_quorum: int = 0
    nodes: int = 0
    model: Path = Path()


@dataclass(frozen=True)
class Comparison:
    """Header cells and rows of text cells."""

    header: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]


def read_run(path: Path, *, best: bool = False, label: str = "") -> RunResult:
    """The last evaluated round of a run, or its best one.

    Args:
        label: what the run is called; empty: method and seed.

    Raises:
        RunFolderError: the folder holds no run, or no round that was judged.
    """
    records = read_records(path)
    if not records:
        raise RunFolderError(f"{path} holds no finished round yet")
    record = best_record(records) if best else next(iter(evaluated(records)[::-1]), None)
    if record is None and not best:
        raise RunFolderError(f"no round of {path} was evaluated")
    if record is None:
        raise RunFolderError(f"no round of {path} was judged by other images than its test set, so none is the best")
    return RunResult(
        name=f"{label or run_label(path)} (round {record['round']})",
        record=record,
        path=path,
        config=_config(path),
        rounds=records[-1]["round"],
        rolled_back=sum(bool(line.get("rolled_back")) for line in records),
        below_quorum=sum(bool(line.get("kept_model") and not line.get("rolled_back")) for line in records),
        nodes=recorded_nodes(path) or len({name for line in records for name in (*line["nodes"], *line["failed"])}),
        model=path / "best" if best else path,
    )


def read_runs(paths: Sequence[Path], *, best: bool = False) -> list[RunResult]:
    """Runs with names that differ. Raises as `read_run`."""
    return [read_run(path, best=best, label=label) for path, label in zip(paths, run_labels(paths), strict=True)]


def run_labels(paths: Sequence[Path]) -> list[str]:
    """A name for each run: method and seed; also the folder's name, or its whole path, where that is not enough."""
    labels = [run_label(path) for path in paths]
    for more in (lambda path: path.resolve().name, str):
        count = Counter(labels)
        labels = [
            label if count[label] == 1 else f"{run_label(path)}, {more(path)}"
            for label, path in zip(labels, paths, strict=True)
        ]
    return labels


def run_label(path: Path) -> str:
    """Method and seed of a run, or the folder's name where its configuration is missing."""
    config = _config(path)
    if config is None:
        return path.name
    method = "dense" if config.prune.criterion == "none" else config.prune.criterion
    return f"{method} s{config.run.seed}"


def _config(path: Path) -> Config | None:
    return load_saved(path / CONFIG) if (path / CONFIG).is_file() else None


def comparison(runs: Sequence[RunResult]) -> Comparison:
    """One column a run; costs of the later ones also as a share of the first, metrics as a difference to it."""
    rows = [
        _row(title, [run.record.get(key) for run in runs], text, is_cost=is_cost) for title, key, text, is_cost in ROWS
    ]
    rows += [*_class_rows("Recall", "recall", runs), *_class_rows("AUROC", "auroc", runs)]
    if any(cells := [_degradation(runs[0].record, run.record) for run in runs[1:]]):
        rows.append(("Recall lost, dangerous / harmless", "-", *(cell or "-" for cell in cells)))
    rows += [
        _row(title, [run.record.get(key) for run in runs], text, is_cost=is_cost) for title, key, text, is_cost in COSTS
    ]
    return Comparison(("", *(run.name for run in runs)), tuple(rows))


def _class_rows(title: str, key: str, runs: Sequence[RunResult]) -> list[tuple[str, ...]]:
    """A row for each class that has test images anywhere, with their number in the first run's test set."""
    names = dict.fromkeys(name for run in runs for name, value in (run.record.get(key) or {}).items()
                          if value is not None)  # fmt: skip
    support = runs[0].record.get("support") or {}
    return [
        _row(
            f"{title} {name}" + (f" (n={support[name]})" if name in support else ""),
            [(run.record.get(key) or {}).get(name) for run in runs],
            "{:.3f}".format,
            is_cost=False,
        )
        for name in names
    ]


def _degradation(first: Mapping[str, Any], second: Mapping[str, Any]) -> str | None:
    lost = degradation(first["recall"], second["recall"])
    if lost is None:
        return None
    ratio = "-" if lost.ratio is None else f"{lost.ratio:.2f}"
    return f"{ratio} ({lost.dangerous:+.3f} / {lost.harmless:+.3f})"


def _row(title: str, values: Sequence[float | None], text: Callable[[Any], str], *, is_cost: bool) -> tuple[str, ...]:
    first = values[0]
    return (title, "-" if first is None else text(first), *(_cell(v, first, text, is_cost=is_cost) for v in values[1:]))


def _cell(value: float | None, first: float | None, text: Callable[[Any], str], *, is_cost: bool) -> str:
    if value is None:
        return "-"
    if first is None or (is_cost and not first):
        return text(value)
    return f"{text(value)} ({value / first:.1%})" if is_cost else f"{text(value)} ({value - first:+.3f})"


def to_data(runs: Sequence[RunResult]) -> dict[str, Any]:
    """Runs side by side, JSON-ready: what `comparison` shows, as numbers."""
    keys = ["round", *(key for _, key, _, _ in (*ROWS, *COSTS)), "recall", "auroc", "support"]
    return {
        "runs": [
            {"name": run.name, "folder": str(run.path), "finished_rounds": run.rounds, "nodes": run.nodes}
            | {"rounds": run.config.federation.rounds if run.config else None}
            | {"rounds_rolled_back": run.rolled_back, "rounds_below_quorum": run.below_quorum}
            | {key: run.record.get(key) for key in keys}
            for run in runs
        ]
    }


def to_markdown(table: Comparison) -> str:
    """For documents."""
    lines = ["| " + " | ".join(table.header) + " |", "|" + "---|" * len(table.header)]
    return "\n".join([*lines, *("| " + " | ".join(row) + " |" for row in table.rows)])


def to_console(table: Comparison, limit: int | None = None) -> str:
    """For a terminal of `limit` columns; None where there is none, and lines may be as long as they are."""
    shown = Table(*table.header)
    for row in table.rows:
        shown.add_row(*row)
    widths = [max(len(row[i]) for row in (table.header, *table.rows)) for i in range(len(table.header))]
    natural = max(80, sum(min(width, 48) + 3 for width in widths) + 1)
    console = Console(file=io.StringIO(), width=natural if limit is None else min(natural, limit))
    console.print(shown)
    return console.file.getvalue()  # type: ignore[attr-defined]
