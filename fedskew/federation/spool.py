"""Updates on disk: for what needs all of a round's updates at once, without all of them in memory."""

from __future__ import annotations

import shutil
import statistics
import tempfile
from collections.abc import Iterator
from pathlib import Path
from types import TracebackType

import numpy as np

from fedskew.federation.checks import Update


class UpdateSpool:
    """Keeps the arrays of updates in a temporary folder, and their norms; read back one at a time."""

    def __init__(self, parent: Path | None = None) -> None:
        self._folder = Path(tempfile.mkdtemp(prefix=".updates-", dir=parent))
        self._kept: list[tuple[str, int, float]] = []  # node, examples, norm

    def __enter__(self) -> UpdateSpool:
        return self

    def __exit__(self, _: type[BaseException] | None, __: BaseException | None, ___: TracebackType | None) -> None:
        shutil.rmtree(self._folder, ignore_errors=True)

    def add(self, node: str, update: Update) -> None:
        """Write an update to disk."""
        np.savez(self._folder / str(len(self._kept)), **update.arrays)
        self._kept.append((node, update.examples, update.norm))

    def median_norm(self) -> float:
        """Median of the norms of all kept updates; 0 if there are none."""
        return statistics.median(norm for _, _, norm in self._kept) if self._kept else 0.0

    def items(self) -> Iterator[tuple[str, int, float, dict[str, np.ndarray]]]:
        """(node, examples, norm, arrays) of each update, in the order of the nodes' names."""
        for index in sorted(range(len(self._kept)), key=lambda i: self._kept[i]):
            with np.load(self._folder / f"{index}.npz", allow_pickle=False) as arrays:
                yield (*self._kept[index], {name: arrays[name] for name in arrays.files})
