"""Train and evaluate a model, on a node or on the server. Knows nothing of federation or pruning."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from fedskew.config.schema import TrainConfig
from fedskew.data.batches import Batch, ImageBatches
from fedskew.errors import FedskewError
from fedskew.learning.deadline import check_time
from fedskew.learning.imbalance import class_weights, logit_offsets
from fedskew.learning.memory import keep_freed_memory
from fedskew.learning.mixing import Mixing
from fedskew.learning.optimiser import (
    Moments,
    Proximal,
    clip_in_step,
    get_moments,
    learning_rate,
    parameter_groups,
    set_moments,
)
from fedskew.learning.precision import BFLOAT16, choose_precision
from fedskew.learning.teacher import Teacher
from fedskew.metrics import classification_metrics
from fedskew.model.fusion import MultimodalModel


class TrainingError(FedskewError, RuntimeError):
    """Training that cannot go on; the message says why and what to change."""


@dataclass(frozen=True)
class TrainResult:
    """What a node reports of its local training."""

    loss: float  # mean over the last epoch
    first_loss: float  # mean over the first epoch
    steps: int
    seconds: float
    moments: Moments  # of the optimiser, where it stopped


def pick_device(setting: str) -> torch.device:
    """`auto` is CUDA where there is one.

    Raises:
        TrainingError: CUDA is asked for and there is none.
    """
    if setting == "cuda" and not torch.cuda.is_available():
        why = "finds no GPU" if torch.version.cuda else "was built without CUDA"
        raise TrainingError(
            f"train.device is cuda, but torch {torch.__version__} {why} here; set train.device=auto or cpu"
        )
    return torch.device(
        "cuda" if setting == "auto" and torch.cuda.is_available() else "cpu" if setting == "auto" else setting
    )


@contextmanager
def cpu_threads(count: int) -> Iterator[None]:
    """Run with a number of CPU threads (0: leave it) and restore the number afterwards: part of repeatability."""
    before = torch.get_num_threads()
    if count:
        torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def autocast(config: TrainConfig, device: torch.device) -> torch.autocast:
    """bfloat16 autocast where the configuration means it on this device, see `choose_precision`."""
    enabled = choose_precision(config.precision, device) == BFLOAT16
    return torch.autocast(device.type, dtype=torch.bfloat16, enabled=enabled)


@dataclass(frozen=True)
class Objective:
    """The loss of a batch: class weights, logit offsets and soft targets where the configuration asks for them."""

    weights: Tensor | None  # [classes]
    offsets: Tensor | None  # [classes], added to the logits in training only
    smoothing: float

    def __call__(self, logits: Tensor, targets: Tensor) -> Tensor:
        """Mean cross entropy of logits [B, classes] and labels [B] or soft targets [B, classes]."""
        logits = logits.float() if self.offsets is None else logits.float() + self.offsets
        smoothing = self.smoothing if targets.ndim == 1 else 0.0  # soft targets are smoothed already
        return nn.functional.cross_entropy(logits, targets, weight=self.weights, label_smoothing=smoothing)


def make_objective(config: TrainConfig, counts: np.ndarray | None, device: torch.device) -> Objective:
    """The loss that the configuration asks for; `counts` are images of each class [classes]."""
    if counts is None:
        return Objective(None, None, config.label_smoothing)
    parts = class_weights(counts, config.class_weights), logit_offsets(counts, config.logit_adjustment)
    weights, offsets = (None if part is None else part.to(device) for part in parts)
    return Objective(weights, offsets, config.label_smoothing)


def train(
    model: MultimodalModel,
    batches: ImageBatches,
    config: TrainConfig,
    *,
    round_number: int,
    rounds: int,
    seed: int,
    counts: np.ndarray | None = None,
    moments: Moments | None = None,
    told: Callable[[int], None] | None = None,
    teacher: Teacher | None = None,
) -> TrainResult:
    """Train in place for `config.local_epochs` passes with AdamW.

    The learning rate follows one warm-up and cosine over all rounds. With the same seed, threads and machine, the
    result is the same bit for bit.

    Args:
        counts: images of each class [classes], for class weights and logit adjustment; None for neither.
        moments: where the optimiser goes on; None starts it afresh.
        told: is called after each pass with the number of those that are done.
        teacher: whose answers count beside the labels.

    Raises:
        TrainingError: the loss is not finite.
        TimeIsUp: see `deadline`.
    """
    start, device = time.perf_counter(), next(model.parameters()).device
    if device.type == "cpu":
        keep_freed_memory()
    torch.manual_seed(seed)  # stochastic depth
    step = _Step(model, config, counts, moments, seed, teacher)
    steps, means = 0, []
    total = max(1, config.local_epochs * len(batches))
    model.train()
    for epoch in range(config.local_epochs):
        batches.set_epoch(epoch)
        losses = torch.zeros((), device=device)
        for batch in batches:
            check_time()
            losses += step(batch, learning_rate(config, (round_number - 1 + steps / total) / max(1, rounds), steps))
            steps += 1
        means.append(float(losses) / max(1, len(batches)))
        if not math.isfinite(means[-1]):
            raise TrainingError(f"the training loss is {means[-1]} in local epoch {epoch + 1}; lower train.lr")
        if told:
            told(epoch + 1)
    return TrainResult(means[-1], means[0], steps, time.perf_counter() - start, get_moments(step.optimiser, model))


class _Step:
    """One optimiser step on one batch, with everything of the recipe that it needs."""

    def __init__(
        self,
        model: MultimodalModel,
        config: TrainConfig,
        counts: np.ndarray | None,
        moments: Moments | None,
        seed: int,
        teacher: Teacher | None,
    ) -> None:
        self._model, self._config, self._device = model, config, next(model.parameters()).device
        self._teacher = teacher
        groups = parameter_groups(model, config.weight_decay)
        self.optimiser = torch.optim.AdamW(groups, lr=config.lr, fused=True)
        if moments is not None:
            set_moments(self.optimiser, model, moments)
        self._trained = [parameter for group in groups for parameter in group["params"]]
        self._proximal = Proximal(self._trained, config.proximal)
        self._objective = make_objective(config, counts, self._device)
        self._mixing = Mixing(config.mixup, config.cutmix, classes=len(model.architecture.classes),
                              smoothing=config.label_smoothing, seed=seed)  # fmt: skip

    def __call__(self, batch: Batch, rate: float) -> Tensor:
        """The loss of a batch [], after which the model has made its step."""
        for group in self.optimiser.param_groups:
            group["lr"] = rate
        mixed, targets = self._mixing(batch.images, batch.labels)
        images, metadata = mixed.to(self._device), batch.metadata.to(self._device)
        with autocast(self._config, self._device):
            logits = self._model(images, metadata)
            answers = self._teacher.answers(images, metadata) if self._teacher else None
        loss = self._objective(logits, targets.to(self._device))
        if self._teacher and answers is not None:
            loss = self._teacher.loss(loss, logits, answers)
        self.optimiser.zero_grad(set_to_none=True)
        loss.backward()
        self._proximal.add()
        clip_in_step(self.optimiser, self._trained, self._config.clip_norm)
        self.optimiser.step()
        return loss.detach()


@torch.no_grad()
def predict(model: MultimodalModel, batches: Iterable[Batch], config: TrainConfig) -> tuple[np.ndarray, np.ndarray]:
    """Labels [N] and class probabilities [N, classes] in the order of the batches; the model's mode is restored."""
    device, training = next(model.parameters()).device, model.training
    labels, probabilities = [], []
    model.eval()
    for images, metadata, expected in batches:
        check_time()
        with autocast(config, device):
            logits = model(images.to(device), metadata.to(device))
        probabilities.append(logits.float().softmax(-1).cpu().numpy())
        labels.append(expected.cpu().numpy())
    model.train(training)
    if not labels:
        return np.zeros(0, dtype=np.int64), np.zeros((0, len(model.architecture.classes)))
    return np.concatenate(labels), np.concatenate(probabilities)


def evaluate(model: MultimodalModel, batches: ImageBatches, config: TrainConfig) -> dict[str, Any]:
    """The metrics of `classification_metrics` on a data set."""
    return classification_metrics(*predict(model, batches, config), model.architecture.classes)
