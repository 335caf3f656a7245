"""What a training in one place starts from: settings, and for `fedskew prune` the model that it makes smaller."""

from __future__ import annotations

import logging
import os
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open

from fedskew.config import Config, ConfigError, load_config
from fedskew.config.central import DENSE, ONE_PLACE, algorithm_1
from fedskew.config.load import Given, load_saved
from fedskew.config.schema import DataConfig
from fedskew.data.finder import is_image
from fedskew.data.manifest import load_manifest
from fedskew.data.samples import DataError, Sample
from fedskew.data.sources import open_source
from fedskew.model.catalogue import dense_architecture, model_settings
from fedskew.model.modelfile import ARCHITECTURE, ModelFileError, model_path, read_about, read_model
from fedskew.model.pretrained import head_outputs
from fedskew.runs.folder import CONFIG
from fedskew.runs.lineage import SPLIT_KEYS

log = logging.getLogger("flwr.fedskew.server")

CHECKPOINT: Mapping[str, Any] = {  # a recipe for weights that nobody knows the recipe of
    "data": {"source": "folder"},
    "train": {"local-epochs": 3, "lr": 1e-4, "round-warmup": 10},
}


@dataclass(frozen=True)
class Asked:
    """What a person says of a training in one place; empty: nothing.

    Attributes:
        preset, file, overrides: see `load_config`.
        data_dir, manifest, output_dir, name: paths are absolute.
    """

    preset: str = ""
    file: str = ""
    overrides: str = ""
    data_dir: str = ""
    manifest: str = ""
    output_dir: str = ""
    name: str = ""


def training_config(asked: Asked) -> Config:
    """The configuration of a dense training in one place: `fedskew train`."""
    return _placed(load_config(asked.preset, file=[ONE_PLACE, DENSE, *_own(asked)], overrides=asked.overrides), asked)


def pruning_config(model: Path, asked: Asked) -> Config:
    """The configuration of Algorithm 1 in one place: `fedskew prune`.

    A run's model goes on with the run's own settings, data and split unless a preset is given; a model file tells the
    split that it was trained with, so that no image that it has learnt from becomes a test image. Any other file is a
    checkpoint of timm's, for the model of `model.name` and the classes that the data have.

    Raises:
        ModelFileError, ConfigError: there is no such file, or it is another model's.
        DataError: no data; labels that the model does not know; a class of the model that has no image.
    """
    try:
        path = model_path(model)
    except ModelFileError as error:
        raise ConfigError(f"{error}; give a run folder, a model file, or a checkpoint (.safetensors, .pth)") from None
    return _of_fedskew(path, asked) if _is_ours(path) else _of_timm(path, asked)


def _own(asked: Asked) -> list[Given]:
    return [asked.file] if asked.file else []


def _placed(config: Config, asked: Asked) -> Config:
    """With the places and the name that a person gave, and none of the run's that the settings come from."""
    data = config.data
    if asked.data_dir:
        data = replace(data, dir=asked.data_dir, source="folder")
    if asked.manifest:
        data = replace(data, manifest=asked.manifest)
    return replace(config, data=data, run=replace(config.run, output_dir=asked.output_dir, name=asked.name))


def _is_ours(path: Path) -> bool:
    try:
        with safe_open(path, framework="pt") as file:
            return ARCHITECTURE in (file.metadata() or {})
    except (OSError, SafetensorError):
        return False  # a pickle, or damaged: whoever reads it next says which


def _of_fedskew(path: Path, asked: Asked) -> Config:
    arch, _ = read_model(path)
    shape: dict[str, Any] = {"model": {**model_settings(arch), "pretrained": "", "architecture-from": "",
                                       "from-run": str(path.resolve())}}  # fmt: skip
    own = next((folder / CONFIG for folder in (path.parent, path.parent.parent) if (folder / CONFIG).is_file()), None)
    steps: list[Given] = [ONE_PLACE, algorithm_1(arch.stages), shape, {"prune": {"removed": arch.removed}}]
    if own and not asked.preset:
        config = load_saved(own, file=[*steps, *_own(asked)], overrides=asked.overrides)
    else:
        split = {"data": {key.replace("_", "-"): value for key, value in _split_of(path, own).items()}}
        recipe: list[Given] = [] if asked.preset else [CHECKPOINT]
        config = load_config(asked.preset, file=[*recipe, *steps, split, *_own(asked)], overrides=asked.overrides)
    config = _placed(config, asked)
    if config.data.source == "folder":
        check_labels(_samples(config.data), arch.classes, str(path))
    return config


def _split_of(path: Path, own: Path | None) -> dict[str, Any]:
    """The settings of `data` that decide which images test, as the run of a model had them."""
    if own:
        data = load_saved(own).data
        return {key: getattr(data, key) for key in SPLIT_KEYS if key != "clients"}
    told = read_about(path).get("split", {})
    known = {spec.name for spec in fields(DataConfig)}
    return {key: value for key, value in told.items() if key in SPLIT_KEYS and key in known and key != "clients"}


def _of_timm(path: Path, asked: Asked) -> Config:
    brought: dict[str, Any] = {"model": {"pretrained": str(path.resolve()), "image-only": True}}
    steps: list[Given] = [CHECKPOINT, ONE_PLACE, brought]
    config = _placed(load_config(asked.preset, file=[*steps, *_own(asked)], overrides=asked.overrides), asked)
    samples = _samples(config.data)
    classes = sorted({sample.label for sample in samples})
    keep = config.model.image_only and head_outputs(path, config.model.pretrained_sha256) == len(classes)
    brought["model"] |= {"classes": classes, "head": "keep" if keep else "new"}
    schedule = algorithm_1(dense_architecture(config.model).stages, untrained=not keep)
    config = load_config(asked.preset, file=[*steps, schedule, *_own(asked)], overrides=asked.overrides)
    named = ", ".join(config.model.classes)
    if config.model.head == "keep":
        log.info("the classifier of %s is kept: its outputs are taken for %s, in this order", path.name, named)
    else:
        log.info("a new classifier for %s: a phase of training comes before the first cut", named)
    check_labels(samples, config.model.classes, "model.classes")
    return _placed(config, asked)


def _samples(data: DataConfig) -> Sequence[Sample]:
    if not data.dir:
        raise ConfigError("no data set given: give --data-dir DIR, images in folders by class or in a known layout")
    _check_folders(Path(data.dir))
    return open_source(data.dir, manifest=load_manifest(data.manifest) if data.manifest else None).samples


def _check_folders(place: Path) -> None:
    """Refuse folders by class one of which is empty: nothing reads it, and a class would be missing in silence."""
    tops = [path for path in place.iterdir() if not path.name.startswith(".")] if place.is_dir() else []
    if not tops or any(path.is_file() and not is_image(path.name) for path in tops):
        return  # an archive, or there is a table
    empty = [path.name for path in tops if path.is_dir() and not _has_image(path)]
    if empty and len(empty) < len(tops):
        raise DataError(f"{place}: no image is in the class folder {', '.join(empty)}; put some there, or remove it")


def _has_image(folder: Path) -> bool:
    return any(is_image(name) for _, _, names in os.walk(folder) for name in names)


def check_labels(samples: Sequence[Sample], classes: Sequence[str], model: str) -> None:
    """Refuse data whose labels are not the classes of a model.

    Raises:
        DataError: labels that the model does not know, or a class without an image.
    """
    counts = Counter(sample.label for sample in samples)
    strange = [f"{label} ({count} images)" for label, count in sorted(counts.items()) if label not in classes]
    known = f"the classes of {model} are {', '.join(classes)}"
    if strange:
        raise DataError(
            f"the data are labelled {', '.join(strange)}, and {known}: map or drop these labels in a manifest "
            "(labels: {name: class, other: null})"
        )
    if empty := [name for name in classes if not counts[name]]:
        raise DataError(
            f"no image of the data is labelled {', '.join(empty)}, and {known}: what it is never shown again it would "
            "forget; give images of every class"
        )
