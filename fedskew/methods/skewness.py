"""Skewness-guided pruning (the paper's Algorithm 1), and the same schedule with every other criterion.

After a round that is due, units of the unlocked stages are scored on open data, the rule decides, what costs too much
accuracy is given back, and the model is sliced: the next round's is smaller.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import replace

from torch import Tensor

from fedskew.config.schema import Config
from fedskew.learning.freezing import without_stages
from fedskew.learning.local import Trainer, local_seed
from fedskew.learning.server_data import ServerData
from fedskew.methods.average import moments_travel, train_locally, warm_start
from fedskew.methods.base import Answer, Model, Step, Work
from fedskew.methods.distillation import remembered, taught
from fedskew.model.architecture import Architecture
from fedskew.model.fusion import MultimodalModel
from fedskew.model.layout import EVERYTHING
from fedskew.pruning.annotations import Annotations
from fedskew.pruning.schedule import frozen_stages, stages_to_prune, steps_left
from fedskew.pruning.score import few_value_warnings
from fedskew.pruning.slicing import slice_companions
from fedskew.pruning.step import StepResult, prune_step

log = logging.getLogger("flwr.fedskew.server")

SKEWNESS = "skewness"


class SkewnessPruning:
    """See `base.Method`."""

    def __init__(self, config: Config) -> None:
        self._config = config
        self._warned: set[str] = set()

    def start(self, model: Model, server: ServerData) -> Step:
        """The warm start, and the pruning step of round 0 if one is due."""
        warm = warm_start(model, server, self._config)
        return replace(self.advance(warm.model, 0, server), seconds_training=warm.seconds_training)

    def work(self, arch: Architecture, number: int) -> Work:
        """What is not frozen is trained; with `federation.upload=trained` only that travels back."""
        trained = without_stages(arch, frozen_stages(self._config.prune, number - 1, arch.stages))
        up = trained if self._config.federation.upload == "trained" else EVERYTHING
        return Work(SKEWNESS, trained, up, moments_travel(self._config))

    def answer(self, net: MultimodalModel, work: Work, node: Trainer, extras: Mapping[str, Tensor]) -> Answer:
        """Train what is not frozen."""
        return train_locally(net, work, node, extras)

    def advance(self, model: Model, number: int, server: ServerData) -> Step:
        """Prune if this round is due (0: after the warm start), and let a dense model teach in the last rounds."""
        step = self._pruned(remembered(model, server, self._config), number, server)
        trained = self.work(step.model.architecture, number + 1).train
        return taught(step, number, server, self._config, trained)

    def _pruned(self, model: Model, number: int, server: ServerData) -> Step:
        """Observe, score, decide, roll back, slice."""
        arch, prune = model.architecture, self._config.prune
        stages = stages_to_prune(prune, number, arch.stages)
        if not stages:
            return Step(model)
        with server.threads():
            images, metadata, labels = server.scoring_batch(arch)
            done = prune_step(
                server.net(model.state, arch),
                images,
                prune,
                stages=stages,
                seed=local_seed(self._config.run.seed, number, "pruning"),
                judge=server.judge,
                known=Annotations(labels, metadata),
                left=steps_left(prune, number, arch.stages, self._config.federation.rounds),
            )
        self._warn_of_few_values(done)
        companions = slice_companions(model.companions, arch, done.plan)
        return Step(Model(done.architecture, done.state, companions), done)

    def _warn_of_few_values(self, step: StepResult) -> None:
        """Say, once a run, where a skewness was taken over fewer values than its sign needs."""
        for line in few_value_warnings(step.scored, self._config.prune.reading):
            if line not in self._warned:
                self._warned.add(line)
                log.warning(line)
