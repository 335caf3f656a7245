"""What can be told of a run before its data is opened and its folder made: a start that must fail fails at once.

Among it are settings that are each valid, and together contradict each other or are without effect. They are looked at
when a run is to start, not when its configuration is read: run folders of earlier versions can still be compared.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from pathlib import Path

import torch

from fedskew.config.names import check_names
from fedskew.config.schema import Config, ConfigError, DataConfig, PruneConfig
from fedskew.data.archives import is_archive_name, open_store
from fedskew.data.augment import RandAugment
from fedskew.data.manifest import load_manifest
from fedskew.data.samples import DataError, encode_labels
from fedskew.data.sources import open_source
from fedskew.learning.precision import slow_precision
from fedskew.learning.train import pick_device
from fedskew.model import cost
from fedskew.model.architecture import Architecture
from fedskew.model.catalogue import dense_architecture
from fedskew.paths import runs_directory
from fedskew.pruning.annotations import Annotations
from fedskew.pruning.budget import check_budget
from fedskew.pruning.criteria import WITHOUT_SIGN
from fedskew.pruning.schedule import budget_steps, steps_until
from fedskew.pruning.score import check_annotations
from fedskew.pruning.units import check_bundles
from fedskew.runs.folder import RunFolderError
from fedskew.runs.resume import planned_folder


def check_combination(config: Config) -> None:
    """Refuse settings with which a run would not do what it says.

    Raises:
        ConfigError: a criterion or method that there is not, a pruning rule that removes nothing with its criterion, a
            criterion that looks at what no run has, a method that does not go with the criterion, or a schedule that
            ends before it begins.
    """
    check_names(config)
    prune, method = config.prune, config.federation.method
    check_rule(prune)
    if prune.criterion != "none":
        check_annotations(prune, Annotations(labels=torch.empty(0)))  # the open images have labels, and no masks
    if method == "average" and prune.criterion != "none":
        raise ConfigError(
            f"federation.method=average prunes nothing, and prune.criterion is {prune.criterion}: set "
            "prune.criterion=none, or federation.method=auto"
        )
    if method == "skewness" and prune.criterion == "none":
        raise ConfigError(
            "federation.method=skewness prunes, and prune.criterion is none: set a criterion, or federation.method=auto"
        )
    if prune.criterion != "none" and prune.freeze and not prune.steps_per_stage:
        raise ConfigError(
            "prune.freeze freezes a stage when the next one unlocks, and prune.steps-per-stage=0 unlocks all at once: "
            "switch prune.freeze off, or set prune.steps-per-stage=1 or more"
        )
    if prune.criterion != "none" and 0 < prune.last_round < prune.first_round:
        raise ConfigError(
            f"prune.first-round is {prune.first_round} and prune.last-round {prune.last_round}: no round is left for a "
            "pruning step. Set prune.last-round=0 (no limit) or later, or prune.criterion=none"
        )


def check_rule(prune: PruneConfig) -> None:
    """Refuse the sign rule for scores without a sign.

    Raises:
        ConfigError: nothing would ever be removed.
    """
    if prune.criterion in WITHOUT_SIGN and prune.rule == "sign":
        raise ConfigError(
            f"prune.criterion={prune.criterion} with prune.rule=sign removes nothing: it removes scores <= 0, and "
            "this criterion's are never below 0. Set prune.rule=match (as many units as the sign of the skewness would "
            "remove), prune.rule=share (prune.share of them) or prune.rule=budget (down to prune.min-parameters)"
        )


def idle_settings(config: Config) -> Iterator[str]:
    """One line for each setting that was changed and has no effect in this run.

    What a preset or a person set to its default cannot be told from what nobody set: it is passed over.
    """
    data, prune, rounds = config.data, config.prune, config.federation.rounds
    if data.clients == "partition" and data.partition != "dirichlet" and data.alpha != type(data).alpha:
        yield f"data.alpha={data.alpha:g} has no effect: data.partition is {data.partition}, not dirichlet"
    if prune.criterion == "none":
        return
    if prune.criterion != "automatic" and prune.boundary != type(prune).boundary:
        yield f"prune.boundary={prune.boundary:g} has no effect: prune.criterion is {prune.criterion}, not automatic"
    if prune.rule != "share" and prune.share != type(prune).share:
        yield f"prune.share={prune.share:g} has no effect: prune.rule is {prune.rule}, not share"
    if not steps_until(prune, rounds):
        yield f"nothing will be pruned: prune.first-round is {prune.first_round}, federation.rounds {rounds}"
    elif prune.last_round > rounds:
        yield f"prune.last-round={prune.last_round} has no effect: federation.rounds is {rounds}"


def check_enough_nodes(config: Config, nodes: int) -> None:
    """Refuse a simulation with fewer nodes than are to take part: it would wait for the others.

    Raises:
        ConfigError: more are asked for than there are, or several share pooled data.
    """
    if config.data.partition == "pooled" and nodes != 1:
        raise ConfigError(
            f"data.partition=pooled is training in one place, and {nodes} nodes are simulated: give --nodes 1"
        )
    only = config.federation.only_node
    if only and only not in (names := [f"partition-{number}" for number in range(nodes)]):
        raise ConfigError(f"federation.only-node is {only}, and the simulated nodes are {', '.join(names)}")
    for key, count in {"min-nodes": config.federation.min_nodes, "quorum": config.federation.quorum}.items():
        if count > nodes:
            raise ConfigError(
                f"federation.{key} is {count}, and {nodes} nodes are simulated: give --nodes {count} or more, "
                f"or --set federation.{key}={nodes} or less"
            )


def check_data_given(data: DataConfig) -> None:
    """Refuse a run without a data set before anything is fetched or started for it.

    Raises:
        ConfigError: no data set is named.
    """
    if data.source == "folder" and not data.dir:
        raise ConfigError(
            'no data set given: give --data-dir DIR (data.dir in a file, data-dir="/absolute/path" with flwr run), or '
            "set data.source=generated"
        )


def check_pruning(config: Config, arch: Architecture) -> None:
    """Refuse pruning settings that do not fit an architecture.

    Raises:
        ConfigError: MLP groups that do not divide its widths, or a budget that the run's steps do not reach.
    """
    check_bundles(arch, config.prune.mlp_group)
    check_budget(arch, config.prune, budget_steps(config.prune, arch.stages, config.federation.rounds))


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
    if config.prune.criterion != "none":
        check_pruning(config, arch)
        if config.prune.freeze and arch.stages == 1:
            raise ConfigError(
                f"prune.freeze stops training stage by stage, and {config.model.name} is one stage: nothing but the "
                "classifier would go on learning; switch prune.freeze off"
            )
    _check_policy(config.train.rand_augment)
    pick_device(config.train.device)
    return arch


def check_tables(config: Config) -> None:
    """Refuse a data set whose tables or labels the server would refuse; no image is opened.

    Archives are left to the server: to list a compressed one it has to be read to its end.

    Raises:
        DataError: see `open_source` and `encode_labels`.
    """
    place = Path(config.data.dir).expanduser().absolute()
    if config.data.source != "folder" or not place.is_dir() or any(map(is_archive_name, os.listdir(place))):
        return
    manifest = load_manifest(config.data.manifest) if config.data.manifest else None
    encode_labels(open_source(place, manifest=manifest).samples, config.model.classes)


def _check_policy(policy: str) -> None:
    try:
        if policy:
            RandAugment(policy)
    except DataError as error:
        raise ConfigError(f"train.rand-augment: {error}") from None


def doubtful_settings(config: Config) -> Iterator[str]:
    """One line for each setting that a run goes on with, and that may not do what was meant: for its head."""
    yield from idle_settings(config)
    if slow := slow_precision(config.train.precision, pick_device(config.train.device)):
        yield slow
    yield from _threads(config)


def _threads(config: Config) -> Iterator[str]:
    """More threads than CPUs are slow, but a run may have to be repeated with them: results depend on their number."""
    cpus = os.cpu_count() or 1
    here = {"run.threads": config.run.threads}
    if config.data.clients == "partition":  # the nodes are on this machine too
        here["train.threads"] = config.train.threads
    for key, threads in here.items():
        if threads > cpus:
            yield f"{key} is {threads}, and this machine has {cpus} CPUs: that is slower than {cpus}"


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
