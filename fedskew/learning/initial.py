"""The model that a run starts from: random weights, pretrained ones, another run's model, or another run's shape."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import torch
from torch import Tensor

from fedskew.config.schema import Config, ConfigError, ModelConfig
from fedskew.files import file_sha256
from fedskew.model.architecture import Architecture
from fedskew.model.catalogue import dense_architecture
from fedskew.model.fusion import build
from fedskew.model.modelfile import model_path, read_model
from fedskew.model.pretrained import load_pretrained
from fedskew.model.signature import ModelFileError


def initial_model(config: Config) -> tuple[dict[str, Tensor], Architecture]:
    """The model that a run starts from. Random weights follow from `run.seed`.

    Raises:
        ConfigError: see `dense_architecture`, `load_pretrained`; or the file is missing or another model's.
    """
    model, removed = config.model, config.prune.removed
    if model.from_run:
        arch, state = read_named("model.from-run", model.from_run)
        return state, _fitting(arch, config, "model.from-run")
    arch = dense_architecture(model, removed=removed)
    if model.architecture_from:
        shape, _ = read_named("model.architecture-from", model.architecture_from)
        arch = _fitting(shape, config, "model.architecture-from")
    torch.manual_seed(config.run.seed)
    net = build(arch, embedding_std=model.embedding_std)
    if model.pretrained:
        load_pretrained(net, model)
    return net.state_dict(), arch


def started_from(model: ModelConfig) -> dict[str, str]:
    """`from`: SHA-256 of the file whose model or shape a run starts with; empty if there is none."""
    place = model.from_run or model.architecture_from
    return {"from": file_sha256(model_path(Path(place)))} if place else {}


def read_named(key: str, place: str) -> tuple[Architecture, dict[str, Tensor]]:
    """Architecture and weights of a run or model file that a setting names; raises `ConfigError`."""
    try:
        return read_model(model_path(Path(place)))
    except ModelFileError as error:
        raise ConfigError(f"{key}: {error}") from None


def _fitting(arch: Architecture, config: Config, key: str) -> Architecture:
    """The architecture of a file for a run with these settings.

    Raises:
        ConfigError: it is no pruned form of the model that the settings describe.
    """
    if all(arch.units.values()):  # no sublayer is gone: what takes its place is not decided yet
        arch = replace(arch, removed=config.prune.removed)
    expected = dense_architecture(config.model, removed=config.prune.removed)
    if differing := "; ".join(_differences(arch.dense(), expected)):
        raise ConfigError(
            f"{key}: {getattr(config.model, key.partition('.')[2].replace('-', '_'))} holds another model than the "
            f"settings describe: {differing}. Set these as in the run that it comes from (its config.yaml), or use "
            "fedskew prune, which takes them from the file"
        )
    return arch


def _differences(found: Architecture, expected: Architecture) -> Iterator[str]:
    if found.spec != expected.spec:
        sizes = [f"{arch.name} for {arch.image_size} pixels" for arch in (found, expected)]
        yield f"it is {sizes[0]}, model.name and its settings make {sizes[1]}"
    if found.classes != expected.classes:
        yield f"its classes are {', '.join(found.classes)}, model.classes {', '.join(expected.classes)}"
    if (found.vocabularies, found.weights) != (expected.vocabularies, expected.weights):
        named = [", ".join(name for name, _ in arch.vocabularies) or "images alone" for arch in (found, expected)]
        yield f"its metadata ({named[0]}) have other values or weights than those of the settings ({named[1]})"
    if found.removed != expected.removed:
        yield f"in place of removed sublayers it has {found.removed}, prune.removed is {expected.removed}"
