"""Evaluate the model of a run, or a model file, on any data set in a supported layout."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from fedskew.config import load_config
from fedskew.config.schema import Config, TrainConfig
from fedskew.data.prepare import DataSet, batches, open_data, split_server
from fedskew.metrics import Predictions, classification_metrics
from fedskew.model import cost
from fedskew.model.swin import MultimodalSwin
from fedskew.runs.atomic import write_bytes
from fedskew.runs.folder import CONFIG, METRICS, MODEL, RunFolder, RunFolderError
from fedskew.runs.judging import best_record
from fedskew.runs.modelfile import load_model
from fedskew.runs.predictions import encode_predictions
from fedskew.training import pick_device, predict


def evaluate_run(
    run: Path,
    data: Path,
    *,
    everything: bool,
    best: bool = False,
    manifest: str = "",
    predictions: Path | None = None,
) -> dict[str, Any]:
    """Metrics of a run's model.

    Args:
        run: a run folder (its last model, or its best), or a model file.
        data: folder or archive.
        everything: every readable image; otherwise the test split that the run's configuration makes of this data.
        predictions: where to write what the model says of each image, for `compare`.

    Raises:
        RunFolderError, ModelFileError, DataError: what is missing, where.
    """
    path = run if run.is_file() else run / ("best" if best else "") / MODEL
    if not path.is_file():
        raise RunFolderError(f"{run} is neither a model file nor a run folder with a {MODEL}")
    settings = path.parent.parent / CONFIG if best else path.parent / CONFIG
    config = load_config(file=settings) if settings.is_file() else Config()
    config = replace(
        config, data=replace(config.data, dir=str(data), source="folder", manifest=manifest or config.data.manifest)
    )
    model = load_model(path).to(pick_device(config.train.device))
    arch = model.architecture
    opened = open_data(config.data, arch.image_size)
    indices = opened.usable if everything else split_server(opened, config.data).test
    found = predict_images(
        model, opened, indices, config.train, batch_size=config.run.eval_batch_size, number=_round_of(path, best=best)
    )
    if predictions is not None:
        write_bytes(predictions, encode_predictions(found))
    macs = cost.macs(arch)
    return {
        "model": str(path),
        "data": opened.place,
        "split": "all" if everything else "test",
        **classification_metrics(found.labels, found.probabilities, found.classes),
        "skipped": len(opened.cached.unreadable),
        "parameters": cost.parameters(arch),
        "macs": macs.linear,
        "macs_total": macs.total,
    }


def predict_images(
    model: MultimodalSwin, data: DataSet, indices: np.ndarray, config: TrainConfig, *, batch_size: int, number: int = -1
) -> Predictions:
    """What a model says of each image; `number` is the round that it is of."""
    arch = model.architecture
    labels, probabilities = predict(model, batches(data, indices, arch, batch_size=batch_size), config)
    shown = [data.samples[i] for i in indices]
    return Predictions(
        images=np.array([sample.image_id for sample in shown]),
        lesions=np.array([sample.group for sample in shown]),
        labels=labels,
        classes=arch.classes,
        probabilities=probabilities.astype(np.float32),
        round_number=number,
    )


def _round_of(path: Path, *, best: bool) -> int:
    """The round of a model file in a run folder; -1 for a file elsewhere."""
    folder = RunFolder(path.parent.parent if best else path.parent)
    if path.name != MODEL or not (folder.path / METRICS).is_file():
        return -1
    records = folder.records()
    record = best_record(records) if best else None
    return int((record or records[-1])["round"]) if records else -1
