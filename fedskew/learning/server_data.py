"""What the server does with a global model on its own data: warm-start, show units, judge, evaluate."""

from __future__ import annotations

import logging
import time
from collections.abc import Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

from torch import Tensor

from fedskew.config.schema import Config, ConfigError
from fedskew.console import PROGRESS
from fedskew.data.batches import Batch
from fedskew.data.reference import Reference, measure
from fedskew.data.samples import DataError, encode_labels
from fedskew.data.splits import Split
from fedskew.data.units import unit_of
from fedskew.learning.datasets import DataSet, batches, divide_open, scoring_images
from fedskew.learning.judging import HELD_BACK, source_of
from fedskew.learning.local import Trainer, local_seed, predict_images
from fedskew.learning.teacher import Teacher
from fedskew.learning.train import TrainResult, cpu_threads, evaluate, pick_device
from fedskew.metrics import Predictions, classification_metrics
from fedskew.model.architecture import Architecture
from fedskew.model.fusion import MultimodalModel, build

log, progress = logging.getLogger("flwr.fedskew.server"), logging.getLogger(PROGRESS)


@dataclass(frozen=True)
class Evaluation:
    """A model on the server's data: what the record says of it.

    Attributes:
        metrics: on the test set.
        held_back: on the open images that are held back; None if there are none.
        predictions: for every image of the test set.
    """

    metrics: dict[str, Any]
    held_back: dict[str, Any] | None
    predictions: Predictions


class ServerData:
    """The server's data and what is done with it. The open data is never a client's, never the test set's.

    Attributes:
        held_back: open images (`data.held-back` of them) that nothing is trained or scored on: the rollback judges on
            them, and the best round is chosen by them if the nodes do not evaluate. int64 indices into the data set.
        training: the other open images: the warm start's.
        scoring: those of `training` on which units are scored: the first `prune.batch-size` in an order drawn from
            `run.seed`.
        folder: of the run, for whoever watches from another process; None before there is one.
    """

    folder: Path | None = None

    def __init__(self, config: Config, data: DataSet, split: Split) -> None:
        encode_labels([data.samples[i] for i in data.usable], config.model.classes)  # refuses any other
        if not len(split.open) or not len(split.test):
            groups = len({unit_of(data.samples[i], split.unit) for i in data.usable})
            raise DataError(
                f"{data.place} leaves {len(split.open)} open and {len(split.test)} test images of "
                f"{groups} groups that stay together ({split.unit}s); both are needed: use more data, raise data.open "
                "and data.test, or see whether the lesions or patients are the right ones (docs/data.md)"
            )
        self.config, self._data, self._split = config, data, split
        self.training, self.held_back = divide_open(data, split, config.data)
        self.scoring = scoring_images(self.training, config.prune.batch_size, config.run.seed)
        self._device = pick_device(config.train.device)
        self._judged: MultimodalModel | None = None
        self._check_judging()

    def _check_judging(self) -> None:
        """Refuse at the start a run in which nothing could be judged."""
        federation, settings = self.config.federation, self.config.data
        if federation.evaluate_clients and not settings.validation:
            raise ConfigError(
                "federation.evaluate-clients asks nodes for metrics on their validation images, and data.validation "
                "is 0: they have none. Raise data.validation, or switch federation.evaluate-clients off"
            )
        prune = self.config.prune
        needed = {"choosing the best round": source_of(self.config) == HELD_BACK,
                  "prune.rollback": prune.criterion != "none" and prune.rollback >= 0}  # fmt: skip
        classes = {self._data.samples[i].label for i in self.held_back}
        if any(needed.values()) and len(classes) < 2:
            raise DataError(
                f"{' and '.join(name for name, asked in needed.items() if asked)} need open images of at least two "
                f"classes that are held back from training, and there are {len(self.held_back)} of {len(classes)} "
                f"(data.held-back is {settings.held_back:g} of {len(self._split.open)} open images); raise "
                "data.held-back or data.open"
            )

    @property
    def scoring_note(self) -> str:
        """Where fewer images are left to score on than were asked for; else empty."""
        prune = self.config.prune
        if prune.criterion == "none" or len(self.scoring) == prune.batch_size:
            return ""
        return (
            f"units are scored on all {len(self.scoring)} open images that are not held back (prune.batch-size asks "
            f"for {prune.batch_size}; a larger data.open has more)"
        )

    def threads(self) -> AbstractContextManager[None]:
        """The CPU threads that the server computes with."""
        return cpu_threads(self.config.run.threads)

    def net(self, state: Mapping[str, Tensor], arch: Architecture, *, drop_path: float = 0.0) -> MultimodalModel:
        """A model on the server's device."""
        return build(arch, dict(state), drop_path=drop_path).to(self._device)

    def warm_start(
        self, state: Mapping[str, Tensor], arch: Architecture
    ) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        """Train on the open data for `train.warm-start-epochs`, before the first round, with the nodes' own recipe.

        Returns:
            The model's state, and the optimiser's moments.
        """
        settings = self.config.train
        log.info("warm start: %d epochs on %d open images", settings.warm_start_epochs, len(self.training))
        once = replace(settings, local_epochs=settings.warm_start_epochs, lr=settings.warm_start_lr or settings.lr)
        model = self.net(state, arch, drop_path=self.config.model.drop_path)
        seed = local_seed(self.config.run.seed, 0, "server")
        begun = time.perf_counter()

        def told(done: int) -> None:
            left = (time.perf_counter() - begun) / done * (once.local_epochs - done) if done else 0.0
            text = f", about {left:.0f} s left" if left else ""
            progress.debug("warm start: %d of %d epochs are done%s", done, once.local_epochs, text,
                           extra={"folder": self.folder})  # fmt: skip

        told(0)
        with self.threads():
            result = Trainer(self._data, self.training, once, seed, round_number=1, rounds=1).train(model, told=told)
        return {name: tensor.cpu() for name, tensor in model.state_dict().items()}, dict(result.moments)

    def teach(self, model: MultimodalModel, teacher: Teacher, number: int) -> TrainResult:
        """Train a model in place on the open data after round `number`, by its labels and a teacher's answers."""
        settings = self.config.train
        once = replace(settings, local_epochs=settings.distil_epochs)
        seed = local_seed(self.config.run.seed, number, "teacher")
        with self.threads():
            trainer = Trainer(self._data, self.training, once, seed, number, self.config.federation.rounds)
            return trainer.train(model, teacher=teacher)

    def as_a_node(self, number: int) -> Trainer:
        """A node of round `number` whose images are the open ones of the warm start.

        Where two nodes contradict each other its is the only other opinion that the server has.
        """
        seed = local_seed(self.config.run.seed, number, "server")
        return Trainer(self._data, self.training, self.config.train, seed, number, self.config.federation.rounds)

    def scoring_batch(self, arch: Architecture) -> Batch:
        """The images that units are scored on, with metadata and labels, on the server's device."""
        batch = next(iter(batches(self._data, self.scoring, arch, batch_size=len(self.scoring))))
        return Batch(*(tensor.to(self._device) for tensor in batch))

    @cached_property
    def reference(self) -> Reference | None:
        """What the open pictures that are not held back are like: goes with the model, so that whoever uses it can be
        told of a picture that is far from them. Nothing of the nodes' pictures is known here.
        """
        return measure(self._data.cached.images, self._data.cached.sides, self.training)

    def judge(self, model: MultimodalModel) -> float:
        """Balanced accuracy on the images of `metrics`."""
        return float(self._metrics(model)["balanced_accuracy"])

    def metrics(self, state: Mapping[str, Tensor], arch: Architecture) -> dict[str, Any]:
        """A model's metrics on the open images held back, or where none are on the scoring images."""
        with self.threads():
            return self._metrics(self._to_judge(state, arch))

    def _to_judge(self, state: Mapping[str, Tensor], arch: Architecture) -> MultimodalModel:
        """A model to evaluate. One of the same architecture is filled anew: building costs more than a few images."""
        if self._judged is None or self._judged.architecture != arch:
            self._judged = self.net(state, arch)
        else:
            self._judged.load_state_dict(state)
        return self._judged

    def evaluate(
        self,
        state: Mapping[str, Tensor],
        arch: Architecture,
        number: int = -1,
        *,
        held_back: dict[str, Any] | None = None,
    ) -> Evaluation:
        """A model on the test set and on the open images held back.

        Args:
            number: its round.
            held_back: its metrics on the open images held back, if they are known already.
        """
        with self.threads():
            model = self._to_judge(state, arch)
            size = self.config.run.eval_batch_size
            found = predict_images(
                model, self._data, self._split.test, self.config.train, batch_size=size, number=number
            )
            if not len(self.held_back):
                held_back = None
            elif held_back is None:
                held_back = self._metrics(model)
        metrics = classification_metrics(found.labels, found.probabilities, found.classes)
        return Evaluation(metrics, held_back, found)

    def _metrics(self, model: MultimodalModel) -> dict[str, Any]:
        images = self.held_back if len(self.held_back) else self.scoring
        size = self.config.run.eval_batch_size
        data = batches(self._data, images, model.architecture, batch_size=size, device=self._device)
        return evaluate(model, data, self.config.train)
