"""What the server does with a global model on its own data: warm-start, prune, evaluate."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from fedskew.architecture import Architecture
from fedskew.config.schema import Config, ConfigError
from fedskew.data.prepare import DataSet, batches
from fedskew.data.samples import DataError
from fedskew.data.splits import Split
from fedskew.federation.client import augmentation, local_seed
from fedskew.model.families import dense_architecture
from fedskew.model.pretrained import load_pretrained
from fedskew.model.swin import MultimodalSwin, build
from fedskew.pruning.score import few_value_warnings
from fedskew.pruning.step import StepResult, prune_step
from fedskew.pruning.units import group_size
from fedskew.training import cpu_threads, evaluate, pick_device, train

log = logging.getLogger("flwr.fedskew.server")


class ServerModel:
    """The server's data and what is done with it. The open data is never a client's, never the test set's.

    The first `prune.batch-size` open images (in an order drawn once from the seed) are the scoring batch; the guard
    judges on the rest.
    """

    def __init__(self, config: Config, data: DataSet, split: Split) -> None:
        if not len(split.open) or not len(split.test):
            raise DataError(
                f"{data.place} leaves {len(split.open)} open and {len(split.test)} test images; both are needed"
            )
        self.config, self._data, self._split = config, data, split
        order = np.random.default_rng(config.run.seed).permutation(split.open)
        self._scoring = order[: config.prune.batch_size]
        self._guarding = order[config.prune.batch_size :]
        self._device = pick_device(config.train.device)
        self._warned: set[str] = set()
        self._check_pruning()

    def _check_pruning(self) -> None:
        """Refuse at the start what would end the run after its first training."""
        prune = self.config.prune
        if prune.method == "none":
            return
        if prune.guard >= 0 and not len(self._guarding):
            raise DataError(
                f"prune.guard needs open data beyond the scoring batch, and all {len(self._scoring)} open images are "
                "in it; lower prune.batch-size or raise data.open"
            )
        arch = dense_architecture(self.config.model, removed=prune.removed)
        for stage in range(len(arch.stages)):
            try:
                group_size(prune.mlp_group, arch, stage)
            except ValueError as error:
                raise ConfigError(str(error)) from None

    def initial(self) -> tuple[dict[str, Tensor], Architecture]:
        """The dense model that the run starts from: seeded random weights, or pretrained ones."""
        arch = dense_architecture(self.config.model, removed=self.config.prune.removed)
        torch.manual_seed(self.config.run.seed)
        model = build(arch)
        if self.config.model.pretrained:
            load_pretrained(model, self.config.model)
        return model.state_dict(), arch

    def warm_start(self, state: Mapping[str, Tensor], arch: Architecture) -> dict[str, Tensor]:
        """Train on the open data for `prune.warm-start-epochs`, before the first round."""
        config = self.config.train
        model = self._model(state, arch, drop_path=self.config.model.drop_path)
        seed = local_seed(self.config.run.seed, 0, "server")
        data = batches(self._data, self._split.open, arch, batch_size=config.batch_size, seed=seed,
                       augmentation=augmentation(config))  # fmt: skip
        with cpu_threads(self.config.run.threads):
            once = replace(config, local_epochs=self.config.prune.warm_start_epochs)
            train(model, data, once, round_number=1, rounds=1, seed=seed)
        return {name: tensor.cpu() for name, tensor in model.state_dict().items()}

    def prune(
        self, state: Mapping[str, Tensor], arch: Architecture, stages: tuple[int, ...], number: int
    ) -> StepResult:
        """One pruning step after round `number` (0: after the warm start)."""
        with cpu_threads(self.config.run.threads):
            batch = next(iter(batches(self._data, self._scoring, arch, batch_size=len(self._scoring))))
            step = prune_step(
                self._model(state, arch),
                batch.images.to(self._device),
                self.config.prune,
                stages=stages,
                seed=local_seed(self.config.run.seed, number, "pruning"),
                judge=self._judge,
            )
        for line in few_value_warnings(step.scored, self.config.prune.reading):
            if line not in self._warned:  # once a run, not in every round
                self._warned.add(line)
                log.warning(line)
        return step

    def evaluate(self, state: Mapping[str, Tensor], arch: Architecture) -> dict[str, Any]:
        """Metrics of a model on the test set."""
        with cpu_threads(self.config.run.threads):
            return self._evaluate(self._model(state, arch), self._split.test)

    def _judge(self, model: MultimodalSwin) -> float:
        return self._evaluate(model, self._guarding)["balanced_accuracy"]

    def _evaluate(self, model: MultimodalSwin, indices: np.ndarray) -> dict[str, Any]:
        data = batches(self._data, indices, model.architecture, batch_size=self.config.run.eval_batch_size)
        return evaluate(model, data, self.config.train)

    def _model(self, state: Mapping[str, Tensor], arch: Architecture, *, drop_path: float = 0.0) -> MultimodalSwin:
        return build(arch, dict(state), drop_path=drop_path).to(self._device)
