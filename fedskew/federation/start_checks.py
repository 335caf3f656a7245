"""What can be told of a run before its data is opened and its folder made: a start that must fail fails at once."""

from __future__ import annotations

import logging
import os
import shutil
from pathlib import Path

from fedskew.config.combinations import check_combination, check_data_given
from fedskew.config.schema import Config, ConfigError
from fedskew.data.archives import open_store
from fedskew.data.augment import RandAugment
from fedskew.data.samples import DataError
from fedskew.model import cost
from fedskew.model.architecture import Architecture
from fedskew.model.catalogue import dense_architecture
from fedskew.paths import runs_directory
from fedskew.pruning.units import check_bundles
from fedskew.runs.folder import RunFolderError
from fedskew.runs.resume import planned_folder
from fedskew.training import pick_device

log = logging.getLogger("flwr.fedskew.server")


def check_settings(config: Config) -> Architecture:
    """Refuse settings that would end the run later, on the server or on every node; returns the dense architecture.

    Raises:
        ConfigError: settings that contradict each other, no data set, the model's name or size, MLP groups that do not
            fit it, stages that cannot be frozen one after the other, or a RandAugment policy that is none.
        DataError: there is nothing where the data set should be.
        TrainingError: there is no such device.
    """
    check_combination(config)
    check_data_given(config.data)
    place = Path(config.data.dir).expanduser().absolute()
    if config.data.source == "folder" and not place.exists():
        open_store(place)  # says it, with what is near; before any weights are fetched
    arch = dense_architecture(config.model, removed=config.prune.removed)
    if config.prune.method != "none":
        try:
            check_bundles(arch, config.prune.mlp_group)
        except ValueError as error:
            raise ConfigError(f"{error}; expected ratio, width or a number that divides it") from None
        if config.prune.freeze and arch.stages == 1:
            raise ConfigError(
                f"prune.freeze stops training stage by stage, and {config.model.name} is one stage: nothing but the "
                "classifier would go on learning; switch prune.freeze off"
            )
    _check_policy(config.train.rand_augment)
    pick_device(config.train.device)
    _warn_of_threads(config)
    return arch


def _check_policy(policy: str) -> None:
    try:
        if policy:
            RandAugment(policy)
    except DataError:
        raise ConfigError(
            f"train.rand-augment is {policy!r}, which timm cannot read; expected such as rand-m5-n2-mstd0.5, or nothing"
        ) from None


def _warn_of_threads(config: Config) -> None:
    """More threads than CPUs are slow, but a run may have to be repeated with them: results depend on their number."""
    cpus = os.cpu_count() or 1
    here = {"run.threads": config.run.threads}
    if config.data.clients == "partition":  # the nodes are on this machine too
        here["train.threads"] = config.train.threads
    for key, threads in here.items():
        if threads > cpus:
            log.warning("%s is %d, and this machine has %d CPUs: that is slower than %d", key, threads, cpus, cpus)


def check_place(config: Config, arch: Architecture) -> None:
    """Refuse a place in which no run folder can be made, or that has no room for a first checkpoint; makes nothing.

    Raises:
        RunFolderError: the name is taken, the place cannot be written or is full.
    """
    parent = runs_directory(config.run.output_dir)
    planned_folder(config)
    there = next(path for path in (parent, *parent.parents) if os.path.exists(path))
    if not there.is_dir() or not os.access(there, os.W_OK | os.X_OK):
        why = "is no folder" if not there.is_dir() else "cannot be written"
        raise RunFolderError(
            f"no run folder can be made in {parent}: {there} {why}; set run.output-dir to a writable folder"
        )
    needed = cost.memory_bytes(arch) * (3 if config.train.moments == "averaged" else 1)
    _check_room(there, needed)


def _check_room(place: Path, needed: int) -> None:
    free = shutil.disk_usage(place).free
    if free < needed:
        raise RunFolderError(
            f"a checkpoint of this model has {needed / 2**20:.1f} MiB, and {free / 2**20:.1f} MiB are free in {place}; "
            "free space there, or set run.output-dir to another disk"
        )
