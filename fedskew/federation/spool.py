"""Updates put aside: for what needs all of a round's updates at once, without all of them in memory."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path
from types import TracebackType

import numpy as np

from fedskew.federation.checks import Update

IN_MEMORY = 64 * 2**20  # bytes of a round's updates; what is beyond them lies on disk


class UpdateSpool:
    """Keeps the first updates in memory, the others in a temporary folder; hands them out one at a time.

    Args:
        parent: where the folder is made, if one is needed.
        in_memory: bytes that may stay in memory.
    """

    def __init__(self, parent: Path | None = None, in_memory: int = IN_MEMORY) -> None:
        self._parent, self._left = parent, in_memory
        self._folder: Path | None = None
        self._kept: list[tuple[str, dict[str, np.ndarray] | None]] = []  # node, arrays unless they are on disk

    def __enter__(self) -> UpdateSpool:
        return self

    def __exit__(self, _: type[BaseException] | None, __: BaseException | None, ___: TracebackType | None) -> None:
        self._kept.clear()
        if self._folder:
            shutil.rmtree(self._folder, ignore_errors=True)

    def add(self, node: str, update: Update) -> None:
        """Put the arrays of an update aside."""
        size = sum(array.nbytes for array in update.arrays.values())
        if size <= self._left:
            self._left -= size
            self._kept.append((node, update.arrays))
            return
        if self._folder is None:
            self._folder = Path(tempfile.mkdtemp(prefix=".updates-", dir=self._parent))
        np.savez(self._folder / str(len(self._kept)), **update.arrays)  # type: ignore[arg-type]  # no tensor has numpy's option's name
        self._kept.append((node, None))

    def items(self) -> Iterator[tuple[str, dict[str, np.ndarray]]]:
        """Node and arrays of each update, in the order of the nodes' names."""
        for index in sorted(range(len(self._kept)), key=lambda i: self._kept[i][0]):
            node, arrays = self._kept[index]
            yield node, self._read(index) if arrays is None else arrays

    def _read(self, index: int) -> dict[str, np.ndarray]:
        assert self._folder is not None
        with np.load(self._folder / f"{index}.npz", allow_pickle=False) as arrays:
            return {name: arrays[name] for name in arrays.files}
