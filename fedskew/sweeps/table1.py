"""Table 1 of the paper, made anew: four columns (in one place or federated, dense or pruned) beside its own figures."""

from __future__ import annotations

import csv
import io
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean, stdev
from typing import Any

from fedskew.config.load import preset_directory
from fedskew.files import write_bytes
from fedskew.sweeps.results import Cell, ResultsError, read_cells
from fedskew.sweeps.study import StudyError
from fedskew.tools.compare import Comparison, to_console, to_markdown

COLUMNS = {"single": "Single", "single-pruned": "Single, pruned", "fl": "FL", "fl-pruned": "FL, pruned"}
LEGEND = (
    "Mean ± standard deviation over seeds, on the test set; in brackets the share of the dense model. GFLOPs are "
    "multiply-accumulates of linear and convolution layers, as in the paper. MiB are 2^20 bytes (the paper's MB of its "
    "footprint), MB 10^6. Traffic is what a client receives and sends in the whole run; the paper tells none."
)


@dataclass(frozen=True)
class Row:
    """A row of the table.

    Attributes:
        value: of the record of a run's last round.
        dense: the same of the dense model, where the paper compares with it.
        digits: after the point.
        paper: the paper's figures, in the order of `COLUMNS`; empty: it has none.
    """

    title: str
    value: Callable[[Mapping[str, Any]], float]
    digits: int
    paper: tuple[str, ...]
    dense: Callable[[Mapping[str, Any]], float] | None = None


def _of(key: str, unit: float = 1.0) -> Callable[[Mapping[str, Any]], float]:
    return lambda record: record[key] / unit


def _traffic(record: Mapping[str, Any]) -> float:
    total = record["bytes_down_total"] + record["bytes_up_total"]
    return total / 1e6 / max(1, len(record["participation"]))


ROWS = (
    Row("Accuracy", _of("accuracy"), 3, ("0.851", "0.844", "0.838", "0.838")),
    Row("Macro F1", _of("f1_macro"), 3, ("0.769", "0.747", "0.709", "0.696")),
    Row("GFLOPs", _of("macs", 1e9), 3, ("4.36", "2.32 (53 %)", "4.36", "2.16 (49.5 %)"), _of("dense_macs", 1e9)),
    Row("Parameters (M)", _of("parameters", 1e6), 2, ("27.70", "10.44 (38 %)", "27.70", "9.99 (36 %)"),
        _of("dense_parameters", 1e6)),
    Row("Memory footprint (MiB)", _of("memory_bytes", 2**20), 2, ("106.02", "40.14", "106.02", "38.45"),
        _of("dense_memory_bytes", 2**20)),
    Row("Model file (MB)", _of("model_bytes", 1e6), 2, ("108.67", "41.19", "108.6", "39.45")),
    Row("Traffic of a client (MB)", _traffic, 1, ()),
)  # fmt: skip


def study_file(scale: str) -> Path:
    """The study of a scale; raises `StudyError` if there is none of that name."""
    folder = preset_directory() / "studies"
    path = folder / f"table1-{scale}.yaml"
    if not path.is_file():
        scales = sorted(found.stem.removeprefix("table1-") for found in folder.glob("table1-*.yaml"))
        raise StudyError(f"there is no scale {scale!r} of table1; there are {', '.join(scales)}")
    return path


def read_table1(folder: Path) -> dict[str, Cell]:
    """The four cells of a sweep's folder, in the order of the columns; raises `ResultsError` if one is missing."""
    cells = {cell.name: cell for cell in read_cells([folder])}
    if missing := [name for name in COLUMNS if name not in cells]:
        raise ResultsError(f"{folder} holds no cell {', '.join(missing)}: it is no sweep of table1")
    return {name: cells[name] for name in COLUMNS}


def entry(row: Row, cell: Cell) -> str:
    """`0.765 ± 0.012`, `2.51 (36.0 %)`; a dash before a run is finished."""
    values = [row.value(run.record) for run in cell.runs.values()]
    if not values:
        return "–"
    text = f"{fmean(values):.{row.digits}f}"
    if len(values) > 1 and (sd := stdev(values)):
        text += f" ± {sd:.{row.digits}f}"
    if row.dense is None:
        return text
    share = fmean(value / row.dense(run.record) for value, run in zip(values, cell.runs.values(), strict=True))
    return f"{text} ({100 * share:.1f} %)" if share < 1 else text


def table1(cells: Mapping[str, Cell]) -> Comparison:
    """Two lines a row: what was measured, and the paper's figures."""
    seeds = [f"{len(cell.runs)} of {len(cell.runs) + len(cell.unfinished)}" for cell in cells.values()]
    lines: list[tuple[str, ...]] = [("Seeds finished", *seeds)]
    for row in ROWS:
        lines.append((row.title, *(entry(row, cell) for cell in cells.values())))
        if row.paper:
            lines.append(("  paper", *row.paper))
    return Comparison(("", *(COLUMNS[name] for name in cells)), tuple(lines))


def table1_csv(cells: Mapping[str, Cell]) -> str:
    """One line a row and column, values as they are."""
    target = io.StringIO()
    writer = csv.writer(target, lineterminator="\n")
    writer.writerow(("row", "column", "seeds", "mean", "sd", "paper"))
    for row in ROWS:
        for position, (name, cell) in enumerate(cells.items()):
            values = [row.value(run.record) for run in cell.runs.values()]
            mean = f"{fmean(values):.6g}" if values else ""
            sd = f"{stdev(values):.6g}" if len(values) > 1 else ""
            seeds = " ".join(str(seed) for seed in sorted(cell.runs))
            writer.writerow((row.title, name, seeds, mean, sd, row.paper[position] if row.paper else ""))
    return target.getvalue()


def write_table1(folder: Path) -> tuple[str, tuple[Path, ...]]:
    """Write `table1.md`, `.csv` and `.txt` into a sweep's folder; the text, and where they are."""
    cells = read_table1(folder)
    text = f"{to_console(table1(cells)).rstrip()}\n{LEGEND}\n"
    contents = {"txt": text, "md": f"{to_markdown(table1(cells))}\n\n{LEGEND}\n", "csv": table1_csv(cells)}
    paths: Sequence[Path] = [folder / f"table1.{suffix}" for suffix in contents]
    for path, content in zip(paths, contents.values(), strict=True):
        write_bytes(path, content.encode())
    return text, tuple(paths)
