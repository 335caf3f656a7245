"""Cells that start from what others made: `model.from-run=@pruned` is the run of the cell `pruned` with that seed.

`@pruned/best` is that run's best model. The setting may be `model.from-run`, `model.architecture-from` or
`train.distil-teacher`. A run waits until those that it needs are done.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from fedskew.config import Config

MARK = "@"
SETTINGS = (("model", "from_run"), ("model", "architecture_from"), ("train", "distil_teacher"))


@dataclass(frozen=True)
class PlannedRun:
    """One cell with one seed.

    Attributes:
        config: resolved: seed, name, folder and references are set.
        needs: names of the runs that must be done before.
    """

    cell: str
    seed: int
    nodes: int
    config: Config
    needs: tuple[str, ...] = ()

    @property
    def name(self) -> str:
        """Name of the run's folder."""
        return run_name(self.cell, self.seed)


def run_name(cell: str, seed: int) -> str:
    """Name of the folder of a cell's run with a seed."""
    return f"{cell}-s{seed}"


def resolved(config: Config, out: Path, seed: int) -> tuple[Config, tuple[str, ...]]:
    """The configuration with the paths that its references stand for, and the names of the runs that they are."""
    needs = []
    for section, key in SETTINGS:
        value = getattr(getattr(config, section), key)
        if value.startswith(MARK):
            cell, slash, rest = value.removeprefix(MARK).partition("/")
            needs.append(run_name(cell, seed))
            part = replace(getattr(config, section), **{key: f"{out / needs[-1]}{slash}{rest}"})
            config = replace(config, **{section: part})
    return config, tuple(needs)


def unmet(runs: Iterable[PlannedRun]) -> list[str]:
    """What is wrong with references, a line each: to a run that the study has not, or in a circle."""
    by_name = {run.name: run for run in runs}
    lines = []
    for run in by_name.values():
        for need in run.needs:
            if need not in by_name:
                cell = need.rpartition("-s")[0]
                lines.append(f"cell {run.cell}: {MARK}{cell} is no cell of this study with seed {run.seed}")
            elif run.name in _all_needs(by_name, need):
                lines.append(f"cell {run.cell}: it starts from {need}, which starts from it")
    return list(dict.fromkeys(lines))


def _all_needs(by_name: dict[str, PlannedRun], name: str) -> set[str]:
    found, left = set[str](), [name]
    while left:
        needs: Sequence[str] = by_name[one].needs if (one := left.pop()) in by_name else ()
        left += [need for need in needs if need not in found]
        found.update(needs)
    return found | {name}
