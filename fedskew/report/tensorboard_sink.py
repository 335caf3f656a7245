"""TensorBoard: the numbers of every round under `tensorboard/` of the run folder.

tensorboard --logdir runs
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch.utils.tensorboard import SummaryWriter

from fedskew.report.scalars import scalars


class TensorBoardSink:
    """See `runs.observers.Observer`. Of a resumed run, what TensorBoard knows of later rounds is dropped."""

    def __init__(self, folder: Path, first_round: int) -> None:
        self._writer = SummaryWriter(str(folder / "tensorboard"), purge_step=first_round)

    def observe(self, round_number: int, metrics: Mapping[str, Any]) -> None:
        """One point in each curve."""
        for name, value in scalars(metrics).items():
            self._writer.add_scalar(name, value, round_number)
        self._writer.flush()

    def close(self) -> None:
        """Close the file."""
        self._writer.close()
