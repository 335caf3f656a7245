"""The paper's table from run folders."""

from __future__ import annotations

import io
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from fedskew.config import Config, load_config
from fedskew.runs.folder import CONFIG, RunFolder, RunFolderError

ROWS: tuple[tuple[str, str, Callable[[Any], str], bool], ...] = (
    ("Accuracy", "accuracy", "{:.3f}".format, False),
    ("Balanced accuracy", "balanced_accuracy", "{:.3f}".format, False),
    ("Macro F1", "f1_macro", "{:.3f}".format, False),
    ("Macro AUROC", "auroc_macro", "{:.3f}".format, False),
    ("Melanoma recall", "recall_mel", "{:.3f}".format, False),
    ("GMACs (linear/conv)", "macs", lambda value: f"{value / 1e9:.4g}", True),
    ("GMACs with attention", "macs_total", lambda value: f"{value / 1e9:.4g}", True),
    ("Parameters (M)", "parameters", lambda value: f"{value / 1e6:.3f}", True),
    ("Memory footprint (MB)", "memory_bytes", lambda value: f"{value / 2**20:.2f}", True),
    ("Model file (MB)", "model_bytes", lambda value: f"{value / 1e6:.2f}", True),
    ("Sent to nodes (MB)", "bytes_down_total", lambda value: f"{value / 1e6:.1f}", True),
    ("Received from nodes (MB)", "bytes_up_total", lambda value: f"{value / 1e6:.1f}", True),
)


@dataclass(frozen=True)
class RunResult:
    """A run's name and the line of metrics that it is judged by."""

    name: str
    record: Mapping[str, Any]


@dataclass(frozen=True)
class Comparison:
    """Header cells and rows of text cells."""

    header: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]


def read_run(path: Path, *, best: bool = False) -> RunResult:
    """The last round of a run, or its best one.

    Raises:
        RunFolderError: the folder holds no run.
    """
    records = RunFolder(path).records()
    if not records:
        raise RunFolderError(f"{path} holds no finished round yet")
    config = _config(path)
    metric = config.run.best_metric if config else "balanced_accuracy"
    record = max(records, key=lambda line: line[metric] or 0.0) if best else records[-1]
    name = f"{run_label(path)} (round {record['round']})"
    return RunResult(name, {**record, "recall_mel": (record["recall"] or {}).get("mel")})


def run_label(path: Path) -> str:
    """Method and seed of a run, or the folder's name where its configuration is missing."""
    config = _config(path)
    return f"{config.prune.method} s{config.run.seed}" if config else path.name


def _config(path: Path) -> Config | None:
    return load_config(file=path / CONFIG) if (path / CONFIG).is_file() else None


def comparison(runs: Sequence[RunResult]) -> Comparison:
    """One column a run; costs of the later ones also as a share of the first, metrics as a difference to it."""
    rows = []
    for title, key, text, is_cost in ROWS:
        first = runs[0].record.get(key)
        cells = [title, "-" if first is None else text(first)]
        for run in runs[1:]:
            cells.append(_cell(run.record.get(key), first, text, is_cost=is_cost))
        rows.append(tuple(cells))
    return Comparison(("", *(run.name for run in runs)), tuple(rows))


def _cell(value: float | None, first: float | None, text: Callable[[Any], str], *, is_cost: bool) -> str:
    if value is None:
        return "-"
    if not first:
        return text(value)
    return f"{text(value)} ({value / first:.1%})" if is_cost else f"{text(value)} ({value - first:+.3f})"


def to_markdown(table: Comparison) -> str:
    """For documents."""
    lines = ["| " + " | ".join(table.header) + " |", "|" + "---|" * len(table.header)]
    return "\n".join([*lines, *("| " + " | ".join(row) + " |" for row in table.rows)])


def to_console(table: Comparison) -> str:
    """For a terminal."""
    shown = Table(*table.header)
    for row in table.rows:
        shown.add_row(*row)
    console = Console(file=io.StringIO(), width=max(80, 26 + 24 * (len(table.header) - 1)))
    console.print(shown)
    return console.file.getvalue()  # type: ignore[attr-defined]
