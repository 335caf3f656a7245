"""Evaluate the model of a run, or a model file, on any data set in a supported layout."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

from fedskew.config import load_config
from fedskew.config.schema import Config
from fedskew.data.prepare import batches, open_data, split_server
from fedskew.model import cost
from fedskew.runs.folder import CONFIG, MODEL, RunFolderError
from fedskew.runs.modelfile import load_model
from fedskew.training import evaluate, pick_device


def evaluate_run(run: Path, data: Path, *, everything: bool, best: bool = False, manifest: str = "") -> dict[str, Any]:
    """Metrics of a run's model.

    Args:
        run: a run folder (its last model, or its best), or a model file.
        data: folder or archive.
        everything: every readable image; otherwise the test split that the run's configuration makes of this data.

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
    metrics = evaluate(model, batches(opened, indices, arch, batch_size=config.run.eval_batch_size), config.train)
    macs = cost.macs(arch)
    return {
        "model": str(path),
        "data": opened.place,
        "split": "all" if everything else "test",
        **metrics,
        "skipped": len(opened.cached.unreadable),
        "parameters": cost.parameters(arch),
        "macs": macs.linear,
        "macs_total": macs.total,
    }
