"""A sweep's table: each cell's values over seeds, and its paired difference to a reference cell."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean, stdev

from fedskew.console import counted
from fedskew.metrics import Difference, PairingError, paired_differences
from fedskew.sweeps.results import Cell, ResultsError, metric_names

OTHER_SCORES = ("expected_calibration_error", "melanoma_specificity")  # compared, but without intervals
SCORES = ("balanced_accuracy", "accuracy", "f1_macro", "auroc_macro")
CLASSES = ("mel", "akiec", "bcc")
COSTS = ("parameters_share", "macs_share", "bytes_down_total", "bytes_up_total")


@dataclass(frozen=True)
class Gap:
    """A cell's paired difference to the reference in one metric, mean over the seeds that both have.

    Attributes:
        low, high: 95 % interval; None without predictions.
        seen: whether the interval leaves out 0; None without one.
    """

    mean: float
    seeds: tuple[int, ...]
    low: float | None = None
    high: float | None = None
    seen: bool | None = None


@dataclass(frozen=True)
class Entry:
    """A cell's values in one metric, one a seed, and its difference to the reference."""

    values: tuple[float, ...]
    gap: Gap | None

    @property
    def mean(self) -> float | None:
        """Mean over seeds."""
        return fmean(self.values) if self.values else None

    @property
    def sd(self) -> float | None:
        """Standard deviation over seeds (of a sample, n − 1); None with fewer than two."""
        return stdev(self.values) if len(self.values) > 1 else None


@dataclass(frozen=True)
class CellTable:
    """Entries by metric and cell, and what a reader must know of them."""

    cells: tuple[Cell, ...]
    metrics: tuple[str, ...]
    reference: str
    entries: Mapping[tuple[str, str], Entry]  # (metric, cell name)
    notes: tuple[str, ...]


def default_metrics(cells: Sequence[Cell], classes: Sequence[str] = CLASSES) -> tuple[str, ...]:
    """Scores, recall of the classes that the records know, size and traffic."""
    records = [run.record for cell in cells for run in cell.runs.values()]
    known = set(metric_names(records[0])) if records else set()
    recalls = [f"recall.{name}" for name in classes if f"recall.{name}" in known]
    return (*SCORES, *recalls, *COSTS)


def cell_table(
    cells: Sequence[Cell], metrics: Sequence[str] = (), *, reference: str = "", over_seeds: bool = False
) -> CellTable:
    """Compute a table.

    Args:
        metrics: names, see `results.metric_value`; `default_metrics` if there are none.
        reference: name of the cell that the others are compared with; empty: the first.
        over_seeds: intervals over lesions and seeds (other training runs), instead of over lesions only (these models).

    Raises:
        ResultsError: no such cell or metric, or predictions of another model.
    """
    names = [cell.name for cell in cells]
    reference = reference or names[0]
    if reference not in names:
        raise ResultsError(f"no cell {reference!r} to compare with; there are {', '.join(names)}")
    metrics = tuple(metrics) or default_metrics(cells)
    first, notes = cells[names.index(reference)], [*_unfinished(cells), *_without_predictions(cells)]
    entries = {}
    for cell in counted(cells, len(cells), "cells compared"):
        gaps = _gaps(first, cell, metrics, notes, over_seeds=over_seeds) if cell is not first else {}
        for metric in metrics:
            entries[metric, cell.name] = Entry(tuple(cell.values(metric)), gaps.get(metric))
    return CellTable(tuple(cells), metrics, reference, entries, tuple(notes))


def _unfinished(cells: Sequence[Cell]) -> list[str]:
    notes = []
    for cell in cells:
        if cell.unfinished:
            missing = ", ".join(f"seed {seed}: {state}" for seed, state in cell.unfinished.items())
            total = len(cell.runs) + len(cell.unfinished)
            notes.append(f"{cell.name} has {len(cell.runs)} of {total} seeds ({missing}).")
    return notes


def _without_predictions(cells: Sequence[Cell]) -> list[str]:
    lacking = [cell.name for cell in cells if any(run.predictions is None for run in cell.runs.values())]
    if not lacking or len(cells) < 2:
        return []
    whose = "" if len(lacking) == len(cells) else f" for {', '.join(lacking)}"
    return [f"No intervals{whose}: test predictions were not kept."]


def _gaps(first: Cell, second: Cell, metrics: Sequence[str], notes: list[str], *, over_seeds: bool) -> dict[str, Gap]:
    """Second minus first in each score; costs have no difference, they are told as shares."""
    seeds = tuple(sorted(first.runs.keys() & second.runs.keys()))
    if not seeds:
        return {}
    if any(set(cell.runs) != set(seeds) for cell in (first, second)):
        notes.append(f"{second.name} is compared with {first.name} on seed {', '.join(map(str, seeds))}.")
    pairs = [[cell.runs[seed].predictions for seed in seeds] for cell in (first, second)]
    found: dict[str, Difference] = {}
    if not any(predictions is None for side in pairs for predictions in side):
        try:
            found = paired_differences(*pairs, [metric for metric in metrics if _paired(metric)])  # type: ignore[arg-type]
        except PairingError as error:
            notes.append(f"{second.name} is not compared with {first.name}: {error}.")
            return {}
    gaps = {}
    for metric in metrics:
        sides = [cell.values(metric, seeds) for cell in (first, second)]
        if is_score(metric) and all(sides):
            gaps[metric] = _gap(metric, sides, seeds, found.get(metric), over_seeds=over_seeds)
    return gaps


def _gap(
    metric: str, sides: Sequence[Sequence[float]], seeds: tuple[int, ...], found: Difference | None, *, over_seeds: bool
) -> Gap:
    mean = fmean(second - first for first, second in zip(*sides, strict=True))
    if found is None:
        return Gap(mean, seeds)
    low, high = (found.seeds_low, found.seeds_high) if over_seeds else (found.low, found.high)
    return Gap(mean, seeds, low, high, None if low is None or high is None else not low <= 0 <= high)


def _paired(metric: str) -> bool:
    """Whether `metrics.paired` knows the metric."""
    return metric in SCORES or metric.startswith(("recall.", "auroc."))


def is_score(metric: str) -> bool:
    """Whether a metric says how good predictions are, as a share of 1; others, costs above all, are not compared."""
    return _paired(metric) or metric in OTHER_SCORES
