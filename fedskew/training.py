"""Train and evaluate a model, on a node or on the server. Knows nothing of federation or pruning."""

from __future__ import annotations

import math
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from fedskew.config.schema import TrainConfig
from fedskew.data.batches import ImageBatches
from fedskew.metrics import classification_metrics
from fedskew.model.swin import MultimodalSwin


class TrainingError(RuntimeError):
    """Training that cannot go on; the message says why and what to change."""


@dataclass(frozen=True)
class TrainResult:
    """What a node reports of its local training."""

    loss: float  # mean over the last epoch
    first_loss: float  # mean over the first epoch
    steps: int
    seconds: float


def pick_device(setting: str) -> torch.device:
    """`auto` is CUDA where there is one."""
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
    """bfloat16 autocast where the configuration asks for it (`auto`: on CUDA)."""
    enabled = config.precision == "bfloat16" or (config.precision == "auto" and device.type == "cuda")
    return torch.autocast(device.type, dtype=torch.bfloat16, enabled=enabled)


def class_weights(labels: np.ndarray, classes: int, setting: str) -> Tensor | None:
    """Loss weight of each class [classes] from the label counts; mean 1 over the examples, 0 for a missing class."""
    if setting == "none":
        return None
    counts = np.bincount(labels, minlength=classes).astype(np.float64)
    power = {"sqrt": 0.5, "inverse": 1.0}[setting]
    weights = np.divide(1.0, counts**power, out=np.zeros(classes), where=counts > 0)
    return torch.tensor(weights * len(labels) / max((weights * counts).sum(), 1e-12), dtype=torch.float32)


def learning_rate(config: TrainConfig, progress: float) -> float:
    """Linear warm-up, then cosine to the floor; `progress` runs from 0 to 1 over all rounds."""
    if progress < config.warmup:
        return config.lr * max(progress / config.warmup, 1e-3)
    phase = (progress - config.warmup) / max(1e-9, 1 - config.warmup)
    return config.lr * (config.lr_floor + (1 - config.lr_floor) * 0.5 * (1 + math.cos(math.pi * min(1.0, phase))))


def parameter_groups(model: nn.Module, weight_decay: float) -> list[dict[str, Any]]:
    """Weight decay for matrices only: not for biases, norms, embeddings' rows or position tables."""
    decay, plain = [], []
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            skip = parameter.ndim < 2 or "relative_position_bias_table" in name or name.startswith("embeddings.")
            (plain if skip else decay).append(parameter)
    return [{"params": decay, "weight_decay": weight_decay}, {"params": plain, "weight_decay": 0.0}]


def freeze_stages(model: MultimodalSwin, stages: Iterable[int]) -> tuple[str, ...]:
    """Stop gradients of whole stages; returns the names of the frozen tensors. Stage 0 takes the stem with it."""
    prefixes = tuple(frozen_prefixes(stages))
    frozen = [name for name in model.state_dict() if name.startswith(prefixes)] if prefixes else []
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(name not in set(frozen))
    return tuple(frozen)


def frozen_prefixes(stages: Iterable[int]) -> list[str]:
    """Name prefixes of the tensors that belong to frozen stages."""
    stages = sorted(stages)
    return [f"encoder.layers.{stage}." for stage in stages] + (["encoder.patch_embed."] if 0 in stages else [])


def train(
    model: MultimodalSwin,
    batches: ImageBatches,
    config: TrainConfig,
    *,
    round_number: int,
    rounds: int,
    seed: int,
    weights: Tensor | None = None,
) -> TrainResult:
    """Train in place for `config.local_epochs` passes with AdamW that starts afresh.

    The learning rate follows one warm-up and cosine over all rounds. With the same seed, threads and machine, the
    result is the same bit for bit.

    Raises:
        TrainingError: the loss is not finite.
    """
    start, device = time.perf_counter(), next(model.parameters()).device
    torch.manual_seed(seed)  # stochastic depth
    groups = parameter_groups(model, config.weight_decay)
    optimiser = torch.optim.AdamW(groups, lr=config.lr, fused=True)
    criterion = nn.CrossEntropyLoss(weight=weights.to(device) if weights is not None else None,
                                    label_smoothing=config.label_smoothing)  # fmt: skip
    trained = [parameter for group in groups for parameter in group["params"]]
    steps, means = 0, []
    total = max(1, config.local_epochs * len(batches))
    model.train()
    for epoch in range(config.local_epochs):
        batches.set_epoch(epoch)
        losses = torch.zeros((), device=device)
        for images, metadata, labels in batches:
            rate = learning_rate(config, (round_number - 1 + steps / total) / max(1, rounds))
            for group in optimiser.param_groups:
                group["lr"] = rate
            with autocast(config, device):
                logits = model(images.to(device), metadata.to(device))
            loss = criterion(logits.float(), labels.to(device))
            optimiser.zero_grad(set_to_none=True)
            loss.backward()
            if config.clip_norm:
                nn.utils.clip_grad_norm_(trained, config.clip_norm)
            optimiser.step()
            losses += loss.detach()
            steps += 1
        means.append(float(losses) / max(1, len(batches)))
        if not math.isfinite(means[-1]):
            raise TrainingError(f"the training loss is {means[-1]} in local epoch {epoch + 1}; lower train.lr")
    return TrainResult(means[-1], means[0], steps, time.perf_counter() - start)


@torch.no_grad()
def predict(model: MultimodalSwin, batches: ImageBatches, config: TrainConfig) -> tuple[np.ndarray, np.ndarray]:
    """Labels [N] and class probabilities [N, classes] in the order of the batches; the model's mode is restored."""
    device, training = next(model.parameters()).device, model.training
    labels, probabilities = [], []
    model.eval()
    for images, metadata, expected in batches:
        with autocast(config, device):
            logits = model(images.to(device), metadata.to(device))
        probabilities.append(logits.float().softmax(-1).cpu().numpy())
        labels.append(expected.numpy())
    model.train(training)
    if not labels:
        return np.zeros(0, dtype=np.int64), np.zeros((0, len(model.architecture.classes)))
    return np.concatenate(labels), np.concatenate(probabilities)


def evaluate(model: MultimodalSwin, batches: ImageBatches, config: TrainConfig) -> dict[str, Any]:
    """The metrics of `classification_metrics` on a data set."""
    return classification_metrics(*predict(model, batches, config), model.architecture.classes)
