"""A sweep's table as text, Markdown and CSV."""

from __future__ import annotations

import csv
import io
from collections.abc import Sequence
from dataclasses import dataclass

from fedskew.sweeps.results import Cell
from fedskew.sweeps.table import CellTable, Entry, Gap
from fedskew.tools.compare import Comparison, to_console, to_markdown

TITLES = {
    "balanced_accuracy": "Balanced accuracy",
    "accuracy": "Accuracy",
    "f1_macro": "Macro F1",
    "auroc_macro": "Macro AUROC",
    "loss": "Cross entropy",
    "recall.mel": "Melanoma recall",
    "parameters_share": "Parameters, % of dense",
    "macs_share": "MACs (linear/conv), % of dense",
    "macs_total_share": "MACs with attention, % of dense",
    "memory_share": "Memory footprint, % of dense",
    "parameters": "Parameters (M)",
    "macs": "MACs (linear/conv, M)",
    "macs_total": "MACs with attention (M)",
    "model_bytes": "Model file (MB)",
    "bytes_down_total": "Sent to nodes (MB)",
    "bytes_up_total": "Received from nodes (MB)",
}
MILLIONS = {"parameters": 3, "macs": 2, "macs_total": 2, "model_bytes": 2}  # metric: digits
UNSEEN = "no difference seen"
CSV_HEADER = ("cell", "metric", "seeds", "mean", "sd", "reference", "difference", "low", "high", "seen")


@dataclass(frozen=True)
class Layout:
    """How a table is laid out.

    Attributes:
        by_cell: a row a cell; otherwise a row a metric.
        each: the values of all seeds; otherwise mean ± standard deviation.
    """

    by_cell: bool = False
    each: bool = False


def as_markdown(table: CellTable, layout: Layout = Layout()) -> str:
    """For documents; what has to be known follows as a paragraph."""
    return "\n\n".join([to_markdown(_grid(table, layout)), *filter(None, [" ".join(table.notes)])])


def as_text(table: CellTable, layout: Layout = Layout()) -> str:
    """For a terminal."""
    return "\n".join([to_console(_grid(table, layout)).rstrip("\n"), *table.notes])


def as_csv(table: CellTable) -> str:
    """One line a cell and metric, values as they are: fractions, percent and bytes, no points and megabytes."""
    target = io.StringIO()
    writer = csv.writer(target, lineterminator="\n")
    writer.writerow(CSV_HEADER)
    for cell in table.cells:
        for metric in table.metrics:
            entry = table.entries[metric, cell.name]
            gap = entry.gap
            compared = (table.reference, gap.mean, gap.low, gap.high, gap.seen) if gap else ("", None, None, None, None)
            seeds = " ".join(str(seed) for seed in sorted(cell.runs))
            row = (cell.name, metric, seeds, entry.mean, entry.sd, *compared)
            writer.writerow("" if value is None else f"{value:.6g}" if type(value) is float else value for value in row)
    return target.getvalue()


def title(metric: str) -> str:
    """What a metric is called in tables."""
    kind, _, name = metric.partition(".")
    return TITLES.get(metric) or (f"Recall of {name}" if kind == "recall" else metric.replace("_", " "))


def number(metric: str, value: float, beside: float | None = None) -> str:
    """A metric's value without its unit (see `title`), with as many digits as a value that it stands beside."""
    if metric in MILLIONS:
        return f"{value / 1e6:.{MILLIONS[metric]}f}"
    if "bytes" in metric:
        return f"{value / 1e6:.0f}" if (value if beside is None else beside) >= 1e8 else f"{value / 1e6:.1f}"
    return f"{value:.1f}" if metric.endswith("_share") else f"{value:.3f}"


def spread(metric: str, entry: Entry, *, each: bool = False) -> str:
    """`0.392 ± 0.014`; one figure if there is one run, or all runs are alike; a dash if there is none."""
    if entry.mean is None:
        return "–"
    if each:
        return ", ".join(number(metric, value) for value in entry.values)
    mean = number(metric, entry.mean)
    return mean if not entry.sd else f"{mean} ± {number(metric, entry.sd, entry.mean)}"


def gap_text(gap: Gap | None) -> str:
    """`+0.9 [−0.4, +2.1], no difference seen`, in points (hundredths); without an interval, only the mean."""
    if gap is None:
        return ""
    if gap.low is None or gap.high is None:
        return points(gap.mean)
    return f"{points(gap.mean)} [{points(gap.low)}, {points(gap.high)}]" + ("" if gap.seen else f", {UNSEEN}")


def points(difference: float) -> str:
    """A difference of two shares of 1, in hundredths, with its sign."""
    text = f"{100 * difference:+.1f}".replace("-", "−")
    return "0.0" if text in ("+0.0", "−0.0") else text


def seeds_text(cell: Cell) -> str:
    """`3`, or `2 of 3` if some are not finished."""
    return str(len(cell.runs)) + (f" of {len(cell.runs) + len(cell.unfinished)}" if cell.unfinished else "")


def _grid(table: CellTable, layout: Layout) -> Comparison:
    """Rows of text; every metric that is compared has a second line (or column) with the differences."""
    lines: list[tuple[str, ...]] = [("Seeds", *(seeds_text(cell) for cell in table.cells))]
    for metric in table.metrics:
        entries = [table.entries[metric, cell.name] for cell in table.cells]
        lines.append((title(metric), *(spread(metric, entry, each=layout.each) for entry in entries)))
        if any(entry.gap for entry in entries):
            lines.append((f"difference to {table.reference}, points", *(gap_text(entry.gap) for entry in entries)))
    header = ("", *(cell.name for cell in table.cells))
    if not layout.by_cell:
        return Comparison(header, tuple(lines))
    columns: Sequence[tuple[str, ...]] = list(zip(header, *lines, strict=True))
    return Comparison(columns[0], tuple(columns[1:]))
