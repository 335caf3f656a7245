"""Whoever is told of a run's rounds as they end: the report, TensorBoard, MLflow, or something of one's own.

An observer has no say: what it does, and that it fails, changes no bit of the run and does not end it. It is said, in
every round in which it happens.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from copy import deepcopy
from functools import partial
from pathlib import Path
from typing import Any, Protocol

from fedskew.config.schema import Config

log = logging.getLogger("flwr.fedskew.runs")


class Observer(Protocol):
    """Sees the rounds of one run."""

    def observe(self, round_number: int, metrics: Mapping[str, Any]) -> None:
        """A round has ended, and is on disk: `metrics` is its line of `metrics.jsonl`."""

    def close(self) -> None:
        """The run has ended, and its summary is on disk. Not called where it breaks off."""


Opener = Callable[[Path, Config, int], Observer]  # run folder, configuration, first round that it will see


class Observers:
    """All observers of a run as one; what each of them raises becomes a warning.

    Args:
        openers: one an observer.
        folder: of the run.
        first_round: the first round that they will see: 0, or the one that a resumed run goes on with.
    """

    def __init__(self, openers: Sequence[Opener], folder: Path, config: Config, first_round: int) -> None:
        self._observers: list[Observer] = []
        for opener in openers:
            self._guard("an observer does not start", partial(self._open, opener, folder, config, first_round))

    def _open(self, opener: Opener, folder: Path, config: Config, first_round: int) -> None:
        self._observers.append(opener(folder, config, first_round))

    def observe(self, round_number: int, metrics: Mapping[str, Any]) -> None:
        """Tell all of them, each on a copy of its own."""
        for one in self._observers:
            what = f"{type(one).__name__} fails in round {round_number}"
            self._guard(what, partial(one.observe, round_number, deepcopy(metrics)))

    def close(self) -> None:
        """Tell all of them that this was the last round."""
        for one in self._observers:
            self._guard(f"{type(one).__name__} fails at the end", one.close)

    @staticmethod
    def _guard(what: str, act: Callable[[], None]) -> None:
        try:
            act()
        except Exception as error:  # any fault: hours of training must not end by it
            log.warning("%s, and the run goes on without it: %s: %s", what, type(error).__name__, error)
            log.debug("%s", what, exc_info=error)
