"""From the configuration to data ready for training: source → cache → split, the same in every process.

The server keeps test and open data; a node has a partition of the clients' part (simulation) or everything in its
own folder (deployment). Opening a data set is cached per process: simulated clients share one.
"""

from __future__ import annotations

import hashlib
import json
import logging
from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import cached_property, lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import torch

from fedskew.config.schema import DataConfig
from fedskew.data.batches import Augmentation, ImageBatches
from fedskew.data.cache import CachedImages, build_cache, forget_others, make_private
from fedskew.data.choices import Fit
from fedskew.data.duplicates import Groups, duplicate_groups, duplicate_lines
from fedskew.data.manifest import load_manifest
from fedskew.data.notes import check_usable, metadata_notes, skipped_notes
from fedskew.data.preprocessing import IMAGENET, Statistics, cache_size
from fedskew.data.resident import resident_images
from fedskew.data.samples import VOCABULARIES, DataError, NamedVocabularies, Sample, encode_labels, encode_metadata
from fedskew.data.sources import open_source
from fedskew.data.splits import Split, partition, split_samples, train_validation
from fedskew.demo.generator import generate
from fedskew.model.architecture import Architecture
from fedskew.paths import cache_directory, home

log = logging.getLogger("flwr.fedskew.data")

SITE_CACHES = 3  # sizes of decoded images that a site keeps of its data: of a run, of the one before, and one to spare
HAM10000_VOCABULARIES: NamedVocabularies = tuple(VOCABULARIES.items())


@dataclass(frozen=True, eq=False)
class DataSet:
    """A data set whose readable images are decoded; indices in `usable` are the samples that can be used.

    Attributes:
        source_notes: how the data set was read, what it leaves out, what it does not tell.
        vocabularies: those of the model, by which the notes tell what it will not know.
        warnings: what contradicts itself, with names of patients and lesions. Notes may leave a site, this never does.
    """

    samples: tuple[Sample, ...]
    cached: CachedImages
    usable: np.ndarray  # sorted indices of readable samples
    place: str
    source_notes: tuple[str, ...] = ()
    vocabularies: NamedVocabularies = HAM10000_VOCABULARIES
    warnings: tuple[str, ...] = ()

    @property
    def skipped(self) -> tuple[str, ...]:
        """One line an unreadable image."""
        return tuple(f"skipped {image}: {reason}" for image, reason in self.cached.unreadable)

    @cached_property
    def notes(self) -> tuple[str, ...]:
        """What log and record should say of the data: how it was read, what is skipped, unknown metadata."""
        skipped = skipped_notes(self.samples, self.cached.unreadable)
        return (*self.source_notes, *skipped, *metadata_notes(self.samples, dict(self.vocabularies)))

    @cached_property
    def duplicates(self) -> Groups:
        """Groups of usable images with equal content."""
        return duplicate_groups(self.cached.contents, self.usable)


@dataclass(frozen=True, eq=False)
class NodeData:
    """What one node trains on and validates with (indices into its data set)."""

    data: DataSet
    train: np.ndarray
    validation: np.ndarray
    name: str


def open_data(
    config: DataConfig,
    image_size: int,
    directory: str = "",
    *,
    vocabularies: NamedVocabularies = HAM10000_VOCABULARIES,
    edge: int = 0,
) -> DataSet:
    """Open, decode and cache a data set.

    Args:
        image_size: pixels a side that the model sees.
        directory: a node's own data folder; it comes before `data.dir`.
        vocabularies: of the model's metadata, as in its architecture.
        edge: pixels a side of the cached images that the model's are cut out of; 0: as training has it.

    Raises:
        DataError: no data set there, or more than half of its images are not there or cannot be read.
    """
    if directory:
        place = directory
    elif config.source == "generated":
        place = str(home() / "generated" / f"ham-shaped-{config.generated_images}-{config.split_seed}")
        generate(Path(place), images=config.generated_images, seed=config.split_seed)
    elif config.dir:
        place = config.dir
    else:
        raise DataError(
            "no data set given: set data.dir (flwr run -c 'set=\"data.dir=/absolute/path\"'), or data.source=generated"
        )
    return _open(
        place, config.manifest, config.fit, config.cache_dir, edge or cache_size(image_size), tuple(vocabularies)
    )


@lru_cache(maxsize=2)
def _open(place: str, manifest: str, fit: Fit, cache_dir: str, size: int, vocabularies: NamedVocabularies) -> DataSet:
    source = open_source(place, manifest=load_manifest(manifest) if manifest else None)
    check_usable(place, source.samples, [(image_id, source.why_missing(image_id)) for image_id in source.missing])
    cached = build_cache(source, size=size, fit=fit, directory=cache_directory(cache_dir))
    check_usable(place, source.samples, cached.unreadable)
    return DataSet(
        source.samples, cached, np.flatnonzero(cached.readable), str(source.path), source.notes, vocabularies,
        source.warnings,
    )  # fmt: skip


def split_server(data: DataSet, config: DataConfig) -> Split:
    """Test, open and clients' indices. With `clients: own` the server's data set is all its own, so the clients'
    share is divided between test and open in their proportion.
    """
    scale = 1.0 if config.clients == "partition" else 1.0 / (config.test + config.open)
    usable = tuple(data.samples[i] for i in data.usable)
    split = split_samples(
        usable, test=config.test * scale, open=config.open * scale, unit=config.split_by, seed=config.split_seed
    )
    return replace(
        split, test=data.usable[split.test], open=data.usable[split.open], clients=data.usable[split.clients]
    )


def divide_open(data: DataSet, split: Split, config: DataConfig) -> tuple[np.ndarray, np.ndarray]:
    """The open data as `(training, held back)`: warm start and scoring use the one, rollback and best round the other.
    Where all data is in one place (`data.partition=pooled`), `training` is everything that is left for it.

    Stratified by class; a lesion is in one of them only. The same for every `run.seed`, like the test set.

    Returns:
        int64 indices into the data set, ascending; nothing is held back where `data.held-back` is too small a share.
    """
    training, held_back = train_validation(
        data.samples, split.open, validation=config.held_back, unit=config.split_by, seed=config.split_seed
    )
    if config.partition == "pooled":
        training = np.sort(np.concatenate([split.clients, training]))
    return training, held_back


def scoring_images(training: np.ndarray, count: int, seed: int) -> np.ndarray:
    """The first `count` of the open training images in an order drawn from `run.seed`: what units are scored on."""
    return np.random.default_rng(seed).permutation(training)[:count]


def partitions(data: DataSet, split: Split, config: DataConfig, nodes: int) -> tuple[np.ndarray, ...]:
    """The clients' part shared among simulated nodes; pooled, it is that of one, with the open data for training.

    Raises:
        DataError: too few images for so many nodes, or pooled data and several nodes.
    """
    if config.partition == "pooled":
        if nodes != 1:
            raise DataError(f"data.partition=pooled is training in one place, and there are {nodes} nodes: use 1")
        return (divide_open(data, split, config)[0],)
    return partition(
        data.samples, split.clients, nodes=nodes, kind=config.partition, alpha=config.alpha, unit=config.split_by,
        seed=config.split_seed,
    )  # fmt: skip


def split_hash(data: DataSet, split: Split) -> str:
    """A short hash by which server and simulated nodes make sure that they split the same data in the same way."""
    ids = [[data.samples[i].image_id for i in part] for part in (split.test, split.open, split.clients)]
    return hashlib.sha256(json.dumps(ids).encode()).hexdigest()


def node_name(node_config: Mapping[str, Any]) -> str:
    """What a node calls itself: its partition, its configured `name`, or the name of its data folder."""
    if "partition-id" in node_config:
        return f"partition-{int(node_config['partition-id'])}"
    return str(node_config.get("name", "") or Path(str(node_config.get("data-dir", ""))).name)


def node_data(
    config: DataConfig,
    image_size: int,
    node_config: Mapping[str, Any],
    expected_split: str = "",
    *,
    vocabularies: NamedVocabularies = HAM10000_VOCABULARIES,
) -> NodeData:
    """A node's training and validation data.

    With `partition-id` in the node configuration it is that partition of the data set; without, everything in the
    node's own `data-dir`. A node with a `data-dir` reads it by its own `manifest` or the manifest.yaml that lies there
    and keeps decoded images in its own `cache-dir`, for its own account alone; the configuration's places are those of
    the server.

    Args:
        vocabularies: of the model's metadata, as in its architecture.

    Raises:
        DataError: neither is given, the data is unusable, or the server split other data than this node.
    """
    own = str(node_config.get("data-dir", ""))
    if own:
        manifest, cache = (str(node_config.get(key, "")) for key in ("manifest", "cache-dir"))
        config = replace(config, manifest=manifest, cache_dir=cache)
    if "partition-id" not in node_config:
        if not own:
            raise DataError("this node has no data: give it data-dir='/absolute/path' in its --node-config")
        data = open_data(config, image_size, own, vocabularies=vocabularies)
        _tell_the_site(data)
        indices = data.usable
    else:
        index, count = int(node_config["partition-id"]), int(node_config["num-partitions"])
        data = open_data(config, image_size, own, vocabularies=vocabularies)
        parts, found = _parts(data, config, count)
        if expected_split and found != expected_split:
            raise DataError(f"{data.place} splits otherwise here than on the server: both must read the same data set")
        indices = parts[index]
    if own:
        make_private(data.cached.path)
        forget_others(data.cached.path, SITE_CACHES)
    train, validation = train_validation(
        data.samples, indices, validation=config.validation, unit=config.split_by, seed=config.split_seed
    )
    return NodeData(data, train, validation, node_name(node_config))


@lru_cache(maxsize=2)  # every node of a simulation asks for it twice a round: to be admitted, and to train
def _parts(data: DataSet, config: DataConfig, nodes: int) -> tuple[tuple[np.ndarray, ...], str]:
    """Every node's part of the clients' data, and the hash of the split that it comes from."""
    split = split_server(data, config)
    return partitions(data, split, config, nodes), split_hash(data, split)


@lru_cache(maxsize=2)
def _tell_the_site(data: DataSet) -> None:
    """Say in a node's own log, once a process, what is worth knowing of its data: its policy may keep it there."""
    for line in (*data.notes, *data.warnings, *duplicate_lines(data.samples, data.duplicates, {})):
        log.warning("%s: %s", data.place, line)


def batches(
    data: DataSet,
    indices: np.ndarray,
    arch: Architecture,
    *,
    batch_size: int,
    seed: int | None = None,
    augmentation: Augmentation | None = None,
    drawing: np.ndarray | None = None,
    device: torch.device | None = None,
    statistics: Statistics = IMAGENET,
) -> ImageBatches:
    """Batches of a data set for a model: labels and metadata are encoded with the architecture's vocabularies.

    On an accelerator (`device`) the whole data set is kept in its memory and batches are made there.
    """
    resident = resident_images(data.cached, device) if device is not None and device.type != "cpu" else None
    return ImageBatches(
        data.cached.images,
        indices,
        encode_metadata(data.samples, dict(arch.vocabularies)),
        encode_labels(data.samples, arch.classes),
        batch_size=batch_size,
        image_size=arch.image_size,
        seed=seed,
        augmentation=augmentation,
        drawing=drawing,
        resident=resident,
        statistics=statistics,
    )
