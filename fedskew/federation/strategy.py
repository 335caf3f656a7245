"""FedAvg whose global model may shrink: Flower's strategy with its hooks overridden, its loop untouched."""

from __future__ import annotations

import logging
import math
from collections.abc import Iterable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from flwr.app import ArrayRecord, ConfigRecord, Message, MessageType, MetricRecord
from flwr.serverapp import Grid
from flwr.serverapp.strategy import FedAvg

from fedskew.config.schema import Config
from fedskew.federation.aggregate import limited_weights, total_counts
from fedskew.federation.checks import check_answer, check_reply, update_norm
from fedskew.federation.folding import Folded, make_folding
from fedskew.federation.grids import StreamingGrid
from fedskew.federation.mean import largest, mean_loss, mean_metrics, noted, objection, server_step
from fedskew.federation.messages import Task, pack_task
from fedskew.federation.roll_call import RollCall
from fedskew.federation.selection import missing_names, select_nodes, told_apart, wait_for_nodes
from fedskew.federation.weights import from_record, to_record, to_state
from fedskew.learning.judging import is_evaluated
from fedskew.learning.server_data import ServerData
from fedskew.learning.train import TrainingError
from fedskew.methods import make_method
from fedskew.methods.base import Model
from fedskew.model.architecture import Architecture
from fedskew.model.finite import not_finite
from fedskew.model.layout import layout
from fedskew.runs.reading import FAILED, IN, MISSING, UNUSED
from fedskew.runs.record import RoundLog

log = logging.getLogger("flwr.fedskew.server")


class RoundStrategy(FedAvg):
    """Federated rounds of any method: it says what nodes do, and makes the next model of an accepted mean.

    Args:
        config: of the run.
        architecture: of the model that the first round starts from.
        server: the server's open data, by which a round is judged.
        grid: the streaming grid of the run, the same that `start` is given.
        split_hash: lets simulated nodes check that they split the same data.
        first_round: 1, or the round after the checkpoint that the run resumes from (Flower counts from 1).
        scratch: where updates are spooled if the aggregation needs all of a round's at once.
    """

    def __init__(
        self,
        config: Config,
        architecture: Architecture,
        server: ServerData,
        grid: StreamingGrid,
        *,
        split_hash: str = "",
        first_round: int = 1,
        scratch: Path | None = None,
    ) -> None:
        super().__init__(fraction_train=config.federation.fraction)
        self.config, self.architecture, self.server = config, architecture, server
        self.method = make_method(config)
        self.split_hash, self.offset = split_hash, first_round - 1
        self.roll = RollCall(grid, config.federation, scratch)
        self.round = RoundLog(self.offset)
        self._grid, self._scratch = grid, scratch
        self.companions: dict[str, torch.Tensor] = {}  # of the model, see `methods.base.Model`
        self.open_metrics: dict[str, Any] | None = None  # of the global model on open data, once they are known
        self.losses: dict[str, float] = {}  # on open data so far, see `mean.noted`
        self._arrays = ArrayRecord()

    @property
    def round(self) -> RoundLog:
        """What is noted of the round in progress."""
        return self.roll.round

    @round.setter
    def round(self, note: RoundLog) -> None:
        self.roll.round = note

    def summary(self) -> None:
        """Log nothing: the run's own head lines say it better."""

    def task(self, round_number: int, kind: str = MessageType.TRAIN) -> Task:
        """What the nodes are asked in a round."""
        work = self.method.work(self.architecture, round_number)
        if kind != MessageType.TRAIN:
            work = replace(work, extras=())
        return Task(
            round_number, self.config.federation.rounds, self.architecture, self.config, work, self.split_hash,
            self._total_counts(),
        )  # fmt: skip

    def _total_counts(self) -> tuple[int, ...]:
        """Images of each class at all nodes that told; empty while nobody did."""
        settings = self.config
        total = total_counts(self.roll.class_counts, self.architecture.classes, settings.federation.max_weight_ratio)
        return total if any(total) and settings.train.class_counts == "global" else ()

    def configure_train(
        self, server_round: int, arrays: ArrayRecord, config: ConfigRecord, grid: Grid
    ) -> Iterable[Message]:
        """Send the model of this round, whatever its shape, to the selected nodes."""
        self.round = RoundLog(server_round + self.offset)
        self._arrays = arrays
        return self._messages(arrays, MessageType.TRAIN, self.fraction_train)

    def configure_evaluate(
        self, server_round: int, arrays: ArrayRecord, config: ConfigRecord, grid: Grid
    ) -> Iterable[Message]:
        """Ask the nodes to evaluate on their validation images, if the run wants that phase in this round."""
        if not self.config.federation.evaluate_clients or not is_evaluated(self.config, self.round.number):
            return []
        return self._messages(arrays, MessageType.EVALUATE, 1.0)

    def _messages(self, arrays: ArrayRecord, kind: str, fraction: float) -> list[Message]:
        settings, number, names = self.config.federation, self.round.number, self.roll.names
        self.roll.begin(kind)
        connected = wait_for_nodes(self._grid, settings, number)
        for name in missing_names(names, connected, self.roll.sites):
            self.roll.fail(name, "not connected", MISSING)
        if fraction < 1 or settings.only_node:
            self.roll.introduce(connected)
        named = told_apart({node: name or names.get(node, f"node {node}") for node, name in connected.items()})
        chosen = select_nodes(named, settings, fraction, seed=self.config.run.seed, number=number)
        self.roll.register(connected[node] for node in chosen)
        task = self.task(number, kind)
        return self.roll.messages(pack_task(task, self._with_extras(arrays, task)), kind, chosen)

    def _with_extras(self, arrays: ArrayRecord, task: Task) -> ArrayRecord:
        """The arrays of a task: the weights, and beside them what nodes are to go on with (zeros at first)."""
        if not task.work.extras:
            return arrays
        beside = task.work.beside(task.architecture)
        kept = {name: self.companions[name] for name in beside if name in self.companions}
        fresh = {name: torch.zeros(spec.shape, dtype=getattr(torch, spec.dtype)) for name, spec in beside.items()}
        return to_record(to_state(arrays, task.architecture) | fresh | kept)

    def aggregate_train(
        self, server_round: int, replies: Iterable[Message]
    ) -> tuple[ArrayRecord | None, MetricRecord | None]:
        """Fold in the good replies as they arrive, set the others aside, judge what they make, then prune.

        Below the quorum, and where what they make must not be taken, the global model stays as it is, unpruned, and
        the record says so.
        """
        task, settings = self.task(self.round.number), self.config.federation
        reference = from_record(self._with_extras(self._arrays, task), task.downloaded())
        wanted = task.uploaded()
        folding = make_folding(settings, self.round.number, self._scratch, lambda: self._own_norm(task, reference))
        losses: dict[str, tuple[int, float]] = {}
        check = partial(check_reply, expected=wanted, reference=reference, clip_norm=self.config.train.clip_norm)
        for reply in replies:
            name, update = self.roll.accept(reply, check)
            if update is not None:
                folding.add(name, update)
                self.round.norms[name] = update.norm
                losses[name] = (update.examples, update.metrics.get("loss", float("nan")))
                if settings.grace and len(losses) >= settings.quorum:
                    self._grid.hurry(settings.grace)
        self.round.seconds_training = self.roll.close()
        folded = folding.result()
        self._note(folded, losses)
        if len(losses) < settings.quorum or folded.no_effect:
            why = folded.no_effect or f"{len(losses)} usable replies, {settings.quorum} are needed"
            arrays = self._keep(why, forget=FAILED in self.round.participation.values())
            self._settle(losses, {})
            return arrays, None
        self.round.train_loss = loss = mean_loss(losses)
        arrays = self._take(reference, folded, {name: examples for name, (examples, _) in losses.items()})
        self._settle(losses, {} if self.round.kept_model else folded.weights)
        return arrays, MetricRecord({} if loss is None else {"loss": loss})

    def _settle(self, good: Iterable[str], weights: dict[str, int]) -> None:
        """Note of everybody with a good answer whether it is in the new global model."""
        self.round.weights = weights
        self.round.participation |= {name: IN if name in weights else UNUSED for name in good}

    def _note(self, folded: Folded, losses: dict[str, tuple[int, float]]) -> None:
        """Who was refused or weighs less, in log and record; whoever was refused has no part in the losses."""
        for name, reason in folded.refused.items():
            self.roll.fail(name, reason)
            del losses[name]
        self.round.no_effect = folded.no_effect or None
        for name, weight in folded.limited.items():
            examples, _ = losses[name]
            self.round.limited[name] = {"examples": examples, "weight": weight}
            log.warning("round %d: %s says it has %d examples and weighs as %d (federation.max-weight-ratio=%g)",
                        self.round.number, name, examples, weight, self.config.federation.max_weight_ratio)  # fmt: skip
            losses[name] = (weight, losses[name][1])

    def _keep(self, why: str, *, forget: bool) -> ArrayRecord:
        """The global model of the round before, and the note that it is that.

        Args:
            forget: optimisers begin afresh: a round that failed by what they remember would fail so for ever.
        """
        self.round.kept_model = True
        log.warning("round %d: %s: the global model stays as it was", self.round.number, why)
        if forget:
            self.companions = {}
        return self._arrays

    def _own_norm(self, task: Task, reference: dict[str, np.ndarray]) -> float:
        """Norm of the update that the server's own training on open data makes of this round's model; NaN: of none."""
        given = {name: _tensor(array) for name, array in reference.items()}
        state = {name: given.pop(name) for name in layout(self.architecture)}
        net = self.server.net(state, self.architecture, drop_path=self.config.model.drop_path)
        try:
            with self.server.threads():
                answer = self.method.answer(net, task.work, self.server.as_a_node(task.round_number), given)
        except TrainingError as error:  # a round that nobody can judge does not count; it does not end the run
            log.warning("round %d: the server's own training tells nothing: %s", self.round.number, error)
            return math.nan
        return update_norm({name: tensor.cpu().numpy() for name, tensor in answer.tensors.items()}, reference)

    def _take(self, reference: dict[str, np.ndarray], folded: Folded, weights: dict[str, int]) -> ArrayRecord:
        """The new global model, pruned if it is time, unless it must not be taken: then this round is rolled back."""
        state, companions = self._advance(reference, folded.arrays)
        if reason := self._objection(reference, state, companions):
            self.round.rolled_back = f"{reason} ({largest(self.round.norms, weights)})"
            return self._keep(f"rollback: {self.round.rolled_back}", forget=True)
        self.companions = companions
        return self._step(state)

    def _objection(
        self, reference: dict[str, np.ndarray], state: dict[str, torch.Tensor], companions: dict[str, torch.Tensor]
    ) -> str:
        """Why a new model must not be taken; empty if it may, and then its metrics on open data are known."""
        if name := not_finite(companions | state):
            return f"{name} of the new global model is not finite"
        if self.open_metrics is None:
            before = {name: _tensor(reference[name]) for name in state}
            self.open_metrics = self.server.metrics(before, self.architecture)
        noted(self.losses, self.open_metrics["loss"])
        after = self.server.metrics(state, self.architecture)
        if reason := objection(self.losses["best"], after["loss"], self.config.federation.rollback):
            return reason
        noted(self.losses, after["loss"])
        self.open_metrics = after
        return ""

    def _advance(
        self, reference: dict[str, np.ndarray], averaged: dict[str, np.ndarray]
    ) -> tuple[dict[str, torch.Tensor], dict[str, torch.Tensor]]:
        """The new global model before it is pruned, and what the optimisers are to remember with it."""
        names = layout(self.architecture)
        mean = {name: array for name, array in averaged.items() if name in names}
        memory = {name: tensor for name, tensor in self.companions.items() if name.startswith("server-")}
        after, memory = server_step(self.config.federation, self.round.number, reference, mean, memory)
        state = {name: _tensor((reference | after)[name]) for name in names}
        extras = {name: _tensor(array) for name, array in averaged.items() if name not in names}
        kept = {name: tensor for name, tensor in self.companions.items() if not name.startswith("server-")}
        return state, memory | kept | extras

    def _step(self, state: dict[str, torch.Tensor]) -> ArrayRecord:
        """What the method makes of an average that was taken. Which units go follows from the nodes' updates, so what
        is left is judged as the average was, and dropped if it is too bad.
        """
        self.round.before = self.architecture
        step = self.method.advance(Model(self.architecture, state, self.companions), self.round.number, self.server)
        if step.pruned:
            self.round.step, self.round.seconds_scoring = step.pruned, step.pruned.seconds_total
        if step.pruned or step.taught:
            metrics = self.server.metrics(step.model.state, step.model.architecture)
            if reason := objection(self.losses["best"], metrics["loss"], self.config.federation.rollback):
                self.round.undo_step(reason)
                return to_record(state)
            self.open_metrics = metrics
        self.round.distillation = step.taught
        self.architecture, self.companions = step.model.architecture, dict(step.model.companions)
        return to_record(step.model.state)

    def aggregate_evaluate(self, server_round: int, replies: Iterable[Message]) -> MetricRecord | None:
        """Mean of the nodes' validation metrics, weighted as their updates are; bad replies are set aside."""
        if not self.config.federation.evaluate_clients:
            return None
        answers = [self.roll.accept(reply, partial(check_answer, least=0), prefix="validation-") for reply in replies]
        self.roll.close()
        # a node may have too few images for a validation set: it says so, with no examples
        found = sorted(((name, a) for name, a in answers if a and a.examples), key=lambda pair: pair[0])
        if not found:
            return None
        weights = limited_weights(
            {name: answer.examples for name, answer in found}, self.config.federation.max_weight_ratio
        )
        self.round.validation = mean = mean_metrics({name: answer.metrics for name, answer in found}, weights)
        return MetricRecord({**mean})


def _tensor(array: np.ndarray) -> torch.Tensor:
    return torch.from_numpy(np.array(array))
