"""How far a phase of a round is: who has answered, how many images that was, how long the rest may take."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from pathlib import Path

from fedskew.console import PROGRESS
from fedskew.runs.report import duration

log = logging.getLogger(PROGRESS)


class Phase:
    """One phase in progress: the nodes train, or they evaluate.

    Args:
        title: `round 3/8`.
        done: what nodes that answered have done: `trained`.
        asked: how many nodes were asked.
        before: seconds that the same phase took in the round before; None if there was none.
        folder: run folder, for whoever watches from another process.
        clock: seconds; for tests.
    """

    def __init__(
        self,
        title: str,
        done: str,
        asked: int,
        *,
        before: float | None = None,
        folder: Path | None = None,
        clock: Callable[[], float] = time.perf_counter,
    ) -> None:
        self.done, self._title, self._asked = done, title, asked
        self._before, self._folder, self._clock = before, folder, clock
        self._started, self._answered, self._images = clock(), 0, 0
        self._tell()

    def answer(self, images: int) -> None:
        """A node has answered; 0 images if its answer cannot be used."""
        self._answered += 1
        self._images += images
        self._tell()

    @property
    def seconds(self) -> float:
        """How long it has taken so far."""
        return self._clock() - self._started

    def text(self) -> str:
        """`round 3/8: 2 of 4 nodes have trained, 1,120 images, about 0m12s left`."""
        if self._asked and self._answered == self._asked:
            return f"{self._title}: all {self._asked} nodes have {self.done}, {self._images:,} images; now the server"
        left = self._left()
        parts = [f"{self._title}: {self._answered} of {self._asked} nodes have {self.done}"]
        parts += [f"{self._images:,} images"] if self._images else []
        parts += [] if left is None else [f"about {duration(left)} left"]
        return ", ".join(parts)

    def _left(self) -> float | None:
        """Seconds, by the pace of those that have answered, else by the round before."""
        if self._answered:
            return self.seconds / self._answered * (self._asked - self._answered)
        return None if self._before is None else max(0.0, self._before - self.seconds)

    def _tell(self) -> None:
        log.debug("%s", self.text(), extra={"folder": self._folder})
