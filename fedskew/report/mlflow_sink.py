"""MLflow: settings, and every round's numbers. Where `MLFLOW_TRACKING_URI` says, else in `mlflow.db` beside the run."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from mlflow import MlflowClient
from mlflow.entities import Metric, Param

from fedskew.config import Config
from fedskew.config.load import to_mapping
from fedskew.report.scalars import scalars


class MLflowSink:
    """See `runs.observers.Observer`. A note in the run folder keeps which of MLflow's runs a resumed run goes on in."""

    def __init__(self, folder: Path, config: Config) -> None:
        note, here = folder / "mlflow-run.txt", f"sqlite:///{folder.resolve().parent / 'mlflow.db'}"
        self._client = MlflowClient(os.environ.get("MLFLOW_TRACKING_URI") or here)
        if not note.is_file():
            run = self._client.create_run("0", run_name=folder.name).info.run_id
            given = [Param(f"{name}.{key}", str(value)) for name, own in to_mapping(config).items()
                     if isinstance(own, dict) for key, value in own.items()]  # fmt: skip
            for start in range(0, len(given), 100):  # MLflow takes no more at once
                self._client.log_batch(run, params=given[start : start + 100])
            note.write_text(run, encoding="utf-8")
        self._run = note.read_text(encoding="utf-8")

    def observe(self, round_number: int, metrics: Mapping[str, Any]) -> None:
        """One point in each curve."""
        points = [Metric(name, value, 0, round_number) for name, value in scalars(metrics).items()]
        self._client.log_batch(self._run, metrics=points)

    def close(self) -> None:
        """Say that it is finished."""
        self._client.set_terminated(self._run)
