"""Training and prediction on some images of a data set: what a node does in a round, and the server on its own."""

from __future__ import annotations

import zlib
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from fedskew.config.schema import TrainConfig
from fedskew.console import counted
from fedskew.data.batches import Augmentation, ImageBatches
from fedskew.data.groups import groups_of
from fedskew.data.preprocessing import IMAGENET, Statistics
from fedskew.data.samples import encode_labels
from fedskew.learning.datasets import DataSet, batches
from fedskew.learning.imbalance import class_counts, drawing_weights
from fedskew.learning.optimiser import Moments
from fedskew.learning.teacher import Teacher
from fedskew.learning.train import TrainResult, pick_device, predict, train
from fedskew.metrics import Predictions
from fedskew.model.architecture import Architecture
from fedskew.model.fusion import MultimodalModel


@dataclass(frozen=True)
class Trainer:
    """Trains models on one node's images as one round of a run asks; two calls do the same.

    Attributes:
        images: int64 indices into the data set.
        seed: of this node in this round, see `local_seed`.
        known_counts: images of each class at all nodes that tell; empty: not known.
    """

    data: DataSet
    images: np.ndarray
    config: TrainConfig
    seed: int
    round_number: int
    rounds: int
    known_counts: tuple[int, ...] = ()

    def counts(self, arch: Architecture) -> np.ndarray:
        """Its own images of each class of the model: int64 [classes]."""
        labels = encode_labels(tuple(self.data.samples[i] for i in self.images), arch.classes)
        return class_counts(labels, len(arch.classes))

    def train(
        self,
        model: MultimodalModel,
        moments: Moments | None = None,
        told: Callable[[int], None] | None = None,
        teacher: Teacher | None = None,
    ) -> TrainResult:
        """Train a model in place; see `learning.train.train`."""
        arch, counts = model.architecture, self.counts(model.architecture)
        if self.known_counts:
            counts = np.maximum(counts, self.known_counts)  # a class that only a silent node has must not weigh nothing
        data = training_batches(self.data, self.images, arch, self.config, self.seed)
        return train(model, data, self.config, round_number=self.round_number, rounds=self.rounds, seed=self.seed,
                     counts=counts, moments=moments, told=told, teacher=teacher)  # fmt: skip


def training_batches(
    data: DataSet, indices: np.ndarray, arch: Architecture, config: TrainConfig, seed: int
) -> ImageBatches:
    """Batches for training, drawn and augmented as the configuration asks."""
    labels = encode_labels(tuple(data.samples[i] for i in indices), arch.classes)
    return batches(data, indices, arch, batch_size=config.batch_size, seed=seed, augmentation=augmentation(config),
                   drawing=drawing_weights(labels, config.sampling), device=pick_device(config.device))  # fmt: skip


def augmentation(config: TrainConfig) -> Augmentation:
    """The augmentation that the configuration asks for."""
    return Augmentation(
        config.flips, config.quarter_turns, config.colour, config.crop, config.zoom, config.rand_augment
    )


def local_seed(seed: int, round_number: int, node: str) -> int:
    """Seed of one node's training in one round: the same on every machine and in every process."""
    return zlib.crc32(f"{seed}/{round_number}/{node}".encode())


def predict_images(
    model: MultimodalModel,
    data: DataSet,
    indices: np.ndarray,
    config: TrainConfig,
    *,
    batch_size: int,
    number: int = -1,
    statistics: Statistics = IMAGENET,
) -> Predictions:
    """What a model says of each image.

    Args:
        number: the round that the model is of.
        statistics: what images are normalised by.
    """
    arch = model.architecture
    shown, device = [data.samples[i] for i in indices], next(model.parameters()).device
    source = batches(data, indices, arch, batch_size=batch_size, statistics=statistics, device=device)
    labels, probabilities = predict(model, counted(source, len(source), "batches classified"), config)
    return Predictions(
        images=np.array([sample.image_id for sample in shown]),
        lesions=np.array([sample.group for sample in shown]),
        labels=labels,
        classes=arch.classes,
        probabilities=probabilities.astype(np.float32),
        round_number=number,
        groups=groups_of(shown),
    )
