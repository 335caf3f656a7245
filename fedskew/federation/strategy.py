"""FedAvg whose global model shrinks: Flower's strategy with its hooks overridden, its loop untouched."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import TypeVar

import numpy as np
import torch
from flwr.app import ArrayRecord, ConfigRecord, Message, MessageType, MetricRecord
from flwr.serverapp import Grid
from flwr.serverapp.strategy import FedAvg

from fedskew.architecture import Architecture
from fedskew.config.schema import Config
from fedskew.federation.aggregate import RunningMean
from fedskew.federation.checks import Answer, BadReply, Expected, check_answer, check_reply
from fedskew.federation.messages import EXAMPLES, Task, pack_task, payload_bytes, to_record
from fedskew.federation.selection import select_nodes
from fedskew.federation.server_model import ServerModel
from fedskew.pruning.schedule import frozen_stages, stages_to_prune
from fedskew.runs.record import RoundLog
from fedskew.training import frozen_prefixes

log = logging.getLogger("flwr.fedskew.server")

AnswerT = TypeVar("AnswerT", bound=Answer)


@dataclass
class Phase:
    """One exchange with the nodes: who was asked, who answered."""

    asked: dict[int, str] = field(default_factory=dict)  # node id → name so far
    started: float = field(default_factory=time.perf_counter)


class SkewPruning(FedAvg):
    """Federated averaging; after each round the server prunes the average and sends on the smaller model.

    Args:
        config: of the run.
        architecture: of the model that the first round starts from.
        server: scores and prunes on the server's open data.
        split_hash: lets simulated nodes check that they split the same data.
        first_round: 1, or the round after the checkpoint that the run resumes from (Flower counts from 1).
    """

    def __init__(
        self,
        config: Config,
        architecture: Architecture,
        server: ServerModel,
        *,
        split_hash: str = "",
        first_round: int = 1,
    ) -> None:
        evaluate = 1.0 if config.federation.evaluate_clients else 0.0
        super().__init__(fraction_train=config.federation.fraction, fraction_evaluate=evaluate,
                         min_train_nodes=config.federation.min_nodes, min_available_nodes=config.federation.min_nodes)  # fmt: skip
        self.config, self.architecture, self.server = config, architecture, server
        self.split_hash, self.offset = split_hash, first_round - 1
        self.names: dict[int, str] = {}
        self.round = RoundLog(self.offset)
        self._arrays = ArrayRecord()
        self._phase = Phase()

    def summary(self) -> None:
        """Log nothing: the run's own head lines say it better."""

    def task(self, round_number: int) -> Task:
        """What the nodes are asked in a round."""
        frozen = frozen_stages(self.config.prune, round_number - 1, len(self.architecture.stages))
        skipped = tuple(frozen_prefixes(frozen)) if self.config.federation.upload == "trained" else ()
        return Task(
            round_number,
            self.config.federation.rounds,
            self.architecture,
            self.config,
            frozen,
            skipped,
            self.split_hash,
        )

    def configure_train(
        self, server_round: int, arrays: ArrayRecord, config: ConfigRecord, grid: Grid
    ) -> Iterable[Message]:
        """Send the model of this round, whatever its shape, to the selected nodes."""
        self.round = RoundLog(server_round + self.offset)
        self._arrays = arrays
        return self._messages(grid, arrays, MessageType.TRAIN, self.fraction_train)

    def _messages(self, grid: Grid, arrays: ArrayRecord, kind: str, fraction: float) -> list[Message]:
        nodes = select_nodes(
            grid, self.config.federation, fraction, seed=self.config.run.seed, number=self.round.number
        )
        content = pack_task(self.task(self.round.number), arrays)
        self.round.bytes_down += payload_bytes(content) * len(nodes)
        self._phase = Phase({node: self.names.get(node, name) for node, name in nodes.items()})
        return list(self._construct_messages(content, list(nodes), kind))

    def aggregate_train(
        self, server_round: int, replies: Iterable[Message]
    ) -> tuple[ArrayRecord | None, MetricRecord | None]:
        """Fold in the good replies as they arrive, set the others aside, then prune.

        Without any good reply the global model stays as it is, unpruned, and the record says so.
        """
        mean, losses = RunningMean(), []
        task = self.task(self.round.number)
        reference = {name: array.numpy() for name, array in self._arrays.items()}
        wanted = {
            name: Expected(array.shape, str(array.dtype)) for name, array in reference.items() if task.uploads(name)
        }
        floats = {name for name, want in wanted.items() if np.dtype(want.dtype).kind == "f"}
        for reply in replies:
            update = self._accept(reply, lambda message: check_reply(message, wanted, reference))
            if update is not None:
                mean.add({name: update.arrays[name] for name in floats}, update.examples)
                losses.append((update.node, update.examples, update.metrics.get("loss", float("nan"))))
        self._close_phase()
        self.round.seconds_training = time.perf_counter() - self._phase.started
        if not mean.updates:
            self.round.kept_model = True
            log.warning("round %d: no usable reply, the global model stays as it was", self.round.number)
            return self._arrays, None
        self.round.train_loss = _weighted_loss(losses)
        arrays = self._prune(reference | mean.result())
        return arrays, MetricRecord({"loss": self.round.train_loss})

    def _prune(self, averaged: dict[str, np.ndarray]) -> ArrayRecord:
        number = self.round.number
        self.round.before = self.architecture
        stages = stages_to_prune(self.config.prune, number, len(self.architecture.stages))
        state = {name: torch.from_numpy(np.array(array)) for name, array in averaged.items()}
        if stages:
            step = self.server.prune(state, self.architecture, stages, number)
            self.round.step, self.round.seconds_scoring = step, step.seconds_total
            self.architecture, state = step.architecture, step.state
        return to_record(state)

    def configure_evaluate(
        self, server_round: int, arrays: ArrayRecord, config: ConfigRecord, grid: Grid
    ) -> Iterable[Message]:
        """Ask the nodes to evaluate on their validation images, if the run wants that phase."""
        if not self.fraction_evaluate:
            return []
        return self._messages(grid, arrays, MessageType.EVALUATE, self.fraction_evaluate)

    def aggregate_evaluate(self, server_round: int, replies: Iterable[Message]) -> MetricRecord | None:
        """Mean of the nodes' validation metrics, weighted by their examples; bad replies are set aside."""
        if not self.fraction_evaluate:
            return None
        found = [answer for reply in replies if (answer := self._accept(reply, check_answer)) is not None]
        self._close_phase()
        if not found:
            return None
        found.sort(key=lambda answer: answer.node)  # sums must not depend on the order of arrival
        total = sum(answer.examples for answer in found)
        keys = sorted(set.intersection(*(set(answer.metrics) for answer in found)) - {EXAMPLES})
        mean = {key: sum(answer.metrics[key] * answer.examples for answer in found) / total for key in keys}
        self.round.validation = mean
        return MetricRecord(mean)

    def _accept(self, reply: Message, check: Callable[[Message], AnswerT]) -> AnswerT | None:
        """The checked reply, or None after a bad one was named in log and record."""
        node = reply.metadata.src_node_id
        name = self._phase.asked.pop(node, self.names.get(node, f"node {node}"))
        try:
            answer = check(reply)
        except BadReply as reason:
            self.round.failed[name] = str(reason)
            log.warning("round %d: reply of %s set aside: %s", self.round.number, name, reason)
            return None
        name = self.names[node] = answer.node or name
        self.round.bytes_up += payload_bytes(reply.content)
        self.round.nodes.setdefault(name, {}).update({key: round(value, 6) for key, value in answer.metrics.items()})
        if answer.notes:
            self.round.notes[name] = list(answer.notes)
        if name not in self.round.ok:
            self.round.ok.append(name)
        return answer

    def _close_phase(self) -> None:
        """Whoever was asked and has not answered by now is late."""
        for name in self._phase.asked.values():
            self.round.failed[name] = f"no reply within {self.config.federation.round_deadline:g} s"
            log.warning("round %d: %s did not reply in time", self.round.number, name)
        self._phase.asked = {}


def _weighted_loss(losses: list[tuple[str, int, float]]) -> float:
    """Mean over nodes by examples, summed in the order of names so that arrival does not matter."""
    ordered = sorted(losses)
    return sum(count * loss for _, count, loss in ordered) / sum(count for _, count, _ in ordered)
