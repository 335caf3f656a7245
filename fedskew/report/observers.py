"""Who is told of the rounds of a run that these settings describe: its report, and the sinks of `run.sinks`."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from fedskew.config import Config, ConfigError
from fedskew.runs.observers import Observer, Opener

PACKAGES = {"tensorboard": "tensorboard", "mlflow": "mlflow"}  # sink → the package that it needs
FIRST_SECONDS = 1.5  # what the first writing is taken to cost, with the import of what draws


class ReportObserver:
    """Rewrites a run's report after its rounds, within a share of the run's time, and always at its end.

    Args:
        share: of the time since the run began, or went on, that all writings together may take.
        clock: seconds that only go forward.
    """

    def __init__(self, folder: Path, share: float, clock: Callable[[], float] = time.perf_counter) -> None:
        self._folder, self._share, self._clock = folder, share, clock
        self._begun, self._spent, self._cost = clock(), 0.0, FIRST_SECONDS

    def observe(self, round_number: int, metrics: Mapping[str, Any]) -> None:
        """Rewrite the report if that is within the share."""
        if self._spent + self._cost <= self._share * (self._clock() - self._begun):
            self._write()

    def close(self) -> None:
        """Write it."""
        self._write()

    def _write(self) -> None:
        started = self._clock()
        try:
            from fedskew.report.page import write_report  # noqa: PLC0415 - matplotlib, for runs that get that far

            write_report(self._folder)
        finally:
            self._cost = self._clock() - started
            self._spent += self._cost


def observers_of(config: Config) -> list[Opener]:
    """What opens the observers of a run.

    Raises:
        ConfigError: a sink's package is not installed here.
    """
    for name in config.run.sink_names:
        if find_spec(PACKAGES[name]) is None:
            raise ConfigError(
                f"run.sinks names {name}, and its package is not installed here: pip install 'fedskew[{name}]', or "
                "leave it out"
            )
    openers: list[Opener] = []
    if config.run.report:
        openers.append(lambda folder, config, _: ReportObserver(folder, config.run.report))
    return openers + [SINKS[name] for name in config.run.sink_names]


def _tensorboard(folder: Path, config: Config, first_round: int) -> Observer:
    from fedskew.report.tensorboard_sink import TensorBoardSink  # noqa: PLC0415 - an extra

    return TensorBoardSink(folder, first_round)


def _mlflow(folder: Path, config: Config, first_round: int) -> Observer:
    from fedskew.report.mlflow_sink import MLflowSink  # noqa: PLC0415 - an extra

    return MLflowSink(folder, config)


SINKS: dict[str, Opener] = {"tensorboard": _tensorboard, "mlflow": _mlflow}
