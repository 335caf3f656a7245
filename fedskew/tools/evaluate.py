"""Evaluate the model of a run, or a model file, on any data set in a supported layout."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from fedskew.config.load import from_mapping, load_saved
from fedskew.config.schema import Config, ConfigError
from fedskew.data.preprocessing import Preprocessing, training_preprocessing
from fedskew.files import file_sha256, write_bytes
from fedskew.learning.datasets import DataSet, open_data, split_hash, split_server
from fedskew.learning.judging import best_record
from fedskew.learning.local import predict_images
from fedskew.learning.train import pick_device
from fedskew.metrics import Predictions, classification_metrics
from fedskew.model import cost
from fedskew.model.architecture import Architecture
from fedskew.model.modelfile import ModelFileError, load_model, read_about, read_preprocessing
from fedskew.runs.folder import CONFIG, METRICS, MODEL, RunFolder, RunFolderError
from fedskew.runs.lineage import SPLIT_KEYS
from fedskew.runs.predictions import PredictionsError, check_target, encode_predictions
from fedskew.tools.seen import run_split, seen_images

log = logging.getLogger("flwr.fedskew.runs")

OTHER_IMAGES = (
    "holds what the run's model says of the run's test set, and these are other images: give --predictions another "
    "place"
)


@dataclass(frozen=True)
class Setting:
    """How a model file is to be evaluated, and what had to be assumed because nothing says it."""

    config: Config
    preprocessing: Preprocessing
    assumed: tuple[str, ...]
    lineage: Mapping[str, Any]


def evaluate_run(
    run: Path,
    data: Path | None,
    *,
    everything: bool,
    best: bool = False,
    manifest: str = "",
    predictions: Path | None = None,
) -> dict[str, Any]:
    """Metrics of a run's model.

    Pictures are prepared as the model file says, and split as the run's configuration beside it or, for a file alone,
    as the file says. `assumed` of the result names what files of earlier versions leave open.

    Args:
        run: a run folder (its last model, or its best), or a model file.
        data: folder or archive; None: what the run itself used.
        everything: every readable image; otherwise the test split that the run's settings make of this data.
            `split_as_in_run` of the result says whether it is the split of the run, `seen_in_training` how many of
            the images the run had in its training or open part (None: not known), `warnings` the same in words.
        predictions: where to write what the model says of each image, for `compare`.

    Raises:
        RunFolderError, ModelFileError, DataError: what is missing, where.
        PredictionsError: they cannot be written there, or are not those of the run that lies there.
    """
    path = model_file(run, best=best)
    if data is None and not config_beside(path, best=best).is_file():
        raise RunFolderError(f"{path} does not say what data it was trained on: give --data-dir")
    own = predictions is not None and check_target(predictions, path)
    model = load_model(path)
    arch = model.architecture
    setting = setting_of(path, arch, best=best, everything=everything)
    config, prepared = of_data(setting, data, manifest), setting.preprocessing
    opened = open_data(config.data, prepared.image_size, vocabularies=arch.vocabularies, edge=prepared.edge)
    split = split_server(opened, config.data)
    same = _same_split(setting.lineage, split_hash(opened, split))
    if own and (everything or same is False):
        raise PredictionsError(f"{predictions} {OTHER_IMAGES}")
    found = predict_images(
        model.to(pick_device(config.train.device)),
        opened,
        opened.usable if everything else split.test,
        config.train,
        batch_size=config.run.eval_batch_size,
        number=_round_of(path, best=best),
        statistics=prepared.statistics,
    )
    if predictions is not None:
        write_bytes(predictions, encode_predictions(replace(found, model=file_sha256(path))))
    for line in setting.assumed:
        log.warning("%s: %s", path, line)
    seen = seen_images(
        found.images.tolist(), run_split(path), same_split=same, everything=everything, test=len(split.test)
    )
    return _result(path, opened, found, arch, setting) | {
        "split": "all" if everything else "test",
        "split_as_in_run": None if everything else same,
        "seen_in_training": seen.trained,
        "warnings": [*opened.warnings, *seen.warnings],
    }


def model_file(run: Path, *, best: bool = False) -> Path:
    """The model file of a run folder (its last model, or its best), or the file itself.

    Raises:
        RunFolderError: there is none.
    """
    path = run if run.is_file() else run / ("best" if best else "") / MODEL
    if not path.is_file():
        raise RunFolderError(f"{run} is neither a model file nor a run folder with a {MODEL}")
    return path


def config_beside(model: Path, *, best: bool) -> Path:
    """Where the configuration of a model file's run would lie."""
    return (model.parent.parent if best else model.parent) / CONFIG


def setting_of(path: Path, arch: Architecture, *, best: bool, everything: bool) -> Setting:
    """How a model file is used: what it says, then the configuration beside it, then what training does by default.

    Raises:
        ModelFileError: what it says cannot be used.
    """
    about, prepared, assumed = read_about(path), read_preprocessing(path), []
    beside = config_beside(path, best=best)
    config = load_saved(beside) if beside.is_file() else _config_from(path, about)
    if not (beside.is_file() or about.get("split") or everything):
        assumed.append("nothing says how the run split its data: split by the default settings of data.*")
    if prepared is None:
        prepared = training_preprocessing(arch.image_size, config.data.fit)
        source = f"of {CONFIG} beside it" if beside.is_file() else "as is the default"
        assumed.append(
            f"the file, of an earlier version, does not say how pictures are prepared: assumed fit {prepared.fit} "
            f"{source}, {prepared.image_size} pixels out of {prepared.edge}, ImageNet's mean and deviation"
        )
    if prepared.image_size != arch.image_size:
        raise ModelFileError(
            f"{path} prepares pictures of {prepared.image_size} pixels for a model of {arch.image_size}"
        )
    return Setting(config, prepared, tuple(assumed), about.get("lineage", {}))


def _config_from(path: Path, about: Mapping[str, Any]) -> Config:
    """The defaults, with the split that a model file tells."""
    told = {key: value for key, value in about.get("split", {}).items() if key in SPLIT_KEYS}
    try:
        return from_mapping({"data": told}, f"{path} (split)")
    except ConfigError as error:
        raise ModelFileError(str(error)) from error


def of_data(setting: Setting, data: Path | None, manifest: str) -> Config:
    """The configuration for a data set elsewhere, or for the run's own (None)."""
    settings = setting.config.data
    where = {"dir": str(data), "source": "folder"} if data is not None else {}
    prepared = replace(settings, **where, fit=setting.preprocessing.fit, manifest=manifest or settings.manifest)
    return replace(setting.config, data=prepared)


def _same_split(lineage: Mapping[str, Any], found: str) -> bool | None:
    """Whether the test images are those of the run; None if the file does not say."""
    return lineage["split_hash"] == found if "split_hash" in lineage else None


def _result(path: Path, opened: DataSet, found: Predictions, arch: Architecture, setting: Setting) -> dict[str, Any]:
    macs = cost.macs(arch)
    return {
        "model": str(path),
        "data": opened.place,
        **classification_metrics(found.labels, found.probabilities, found.classes),
        "skipped": len(opened.cached.unreadable),
        "parameters": cost.parameters(arch),
        "macs": macs.linear,
        "macs_total": macs.total,
        "notes": list(opened.notes),
        "preprocessing": setting.preprocessing.to_mapping(),
        "assumed": list(setting.assumed),
        "lineage": dict(setting.lineage),
    }


def _round_of(path: Path, *, best: bool) -> int:
    """The round of a model file in a run folder; -1 for a file elsewhere."""
    folder = RunFolder(path.parent.parent if best else path.parent)
    if path.name != MODEL or not (folder.path / METRICS).is_file():
        return -1
    records = folder.records()
    record = best_record(records) if best else None
    return int((record or records[-1])["round"]) if records else -1
