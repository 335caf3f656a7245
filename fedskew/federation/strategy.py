"""FedAvg whose global model shrinks: Flower's strategy with its hooks overridden, its loop untouched."""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Callable, Iterable
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import torch
from flwr.app import ArrayRecord, ConfigRecord, Message, MessageType, MetricRecord, RecordDict
from flwr.serverapp import Grid
from flwr.serverapp.strategy import FedAvg

from fedskew.architecture import Architecture
from fedskew.config.schema import Config
from fedskew.federation.checks import Answer, BadReply, check_answer, check_reply, check_report
from fedskew.federation.companions import cut
from fedskew.federation.folding import make_folding
from fedskew.federation.messages import MOMENTS, VALIDATION_METRICS, Task, pack_task, payload_bytes
from fedskew.federation.phase import Phase
from fedskew.federation.selection import select_nodes, wait_for_nodes
from fedskew.federation.server_model import ServerModel
from fedskew.federation.server_optimiser import server_step
from fedskew.federation.streaming import StreamingGrid
from fedskew.federation.weights import from_record, layout, to_record, to_state
from fedskew.learning.freezing import frozen_prefixes
from fedskew.learning.optimiser import FIRST, SECOND, STEPS, no_moments
from fedskew.pruning.schedule import frozen_stages, stages_to_prune
from fedskew.runs.judging import is_evaluated
from fedskew.runs.record import RoundLog

log = logging.getLogger("flwr.fedskew.server")

AnswerT = TypeVar("AnswerT", bound=Answer)


class SkewPruning(FedAvg):
    """Federated averaging; after each round the server prunes the average and sends on the smaller model.

    Args:
        config: of the run.
        architecture: of the model that the first round starts from.
        server: scores and prunes on the server's open data.
        grid: the streaming grid of the run, the same that `start` is given.
        split_hash: lets simulated nodes check that they split the same data.
        first_round: 1, or the round after the checkpoint that the run resumes from (Flower counts from 1).
        scratch: where updates are spooled if the aggregation needs all of a round's at once.
    """

    def __init__(
        self,
        config: Config,
        architecture: Architecture,
        server: ServerModel,
        grid: StreamingGrid,
        *,
        split_hash: str = "",
        first_round: int = 1,
        scratch: Path | None = None,
    ) -> None:
        super().__init__(fraction_train=config.federation.fraction)
        self.config, self.architecture, self.server = config, architecture, server
        self.split_hash, self.offset = split_hash, first_round - 1
        self.round = RoundLog(self.offset)
        self._grid, self._scratch = grid, scratch
        self._names: dict[int, str] = {}  # of every node seen so far
        self._asked: dict[int, str] = {}  # nodes of the present phase that have not answered
        self.companions: dict[str, torch.Tensor] = {}  # of the model, see `companions`
        self.class_counts: dict[str, dict[str, int | None]] = {}  # node → images of each class, of all that ever told
        self.audit: dict[str, dict[str, Any]] = {}  # site → length and last hash of its audit log
        self._arrays = ArrayRecord()
        self._phase_started = 0.0
        self._phase: Phase | None = None
        self._lasted: dict[str, float] = {}  # what nodes did in a phase → seconds that it took the last time

    def summary(self) -> None:
        """Log nothing: the run's own head lines say it better."""

    def task(self, round_number: int, kind: str = MessageType.TRAIN) -> Task:
        """What the nodes are asked in a round."""
        frozen = frozen_stages(self.config.prune, round_number - 1, len(self.architecture.stages))
        skipped = tuple(frozen_prefixes(frozen)) if self.config.federation.upload == "trained" else ()
        rounds = self.config.federation.rounds
        extras = (MOMENTS,) if self.config.train.moments == "averaged" and kind == MessageType.TRAIN else ()
        return Task(
            round_number, rounds, self.architecture, self.config, frozen, skipped, self.split_hash,
            self._total_counts(), extras,
        )  # fmt: skip

    def _total_counts(self) -> tuple[int, ...]:
        """Images of each class at all nodes that told; empty while nobody did."""
        told = [self.class_counts[node] for node in sorted(self.class_counts)]
        # a suppressed count is of a few images, not of none: nodes must not weigh its class as one that nobody has
        total = tuple(
            sum(1 if (count := counts.get(name, 0)) is None else count for counts in told)
            for name in self.architecture.classes
        )
        return total if any(total) and self.config.train.class_counts == "global" else ()

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
        settings, number = self.config.federation, self.round.number
        connected = wait_for_nodes(self._grid, settings, number)
        for node in self._names.keys() - connected.keys():
            self._fail(self._names[node], "not connected")
        if fraction < 1:
            self._introduce(connected)
        named = {node: name or self._names.get(node, f"node {node}") for node, name in connected.items()}
        self._asked = chosen = select_nodes(named, settings, fraction, seed=self.config.run.seed, number=number)
        self._names.update(chosen)
        task = self.task(number, kind)
        content = pack_task(task, self._with_moments(arrays, task))
        self.round.bytes_down += payload_bytes(content) * len(chosen)
        self._phase_started, done = time.perf_counter(), "trained" if kind == MessageType.TRAIN else "evaluated"
        self._phase = Phase(
            f"round {number}/{self.config.federation.rounds}", done, len(chosen),
            before=self._lasted.get(done), folder=self._scratch,
        )  # fmt: skip
        # a task that outlives its round would keep a slow node from the next one
        return [Message(content, node, kind, ttl=settings.round_deadline) for node in chosen]

    def _with_moments(self, arrays: ArrayRecord, task: Task) -> ArrayRecord:
        """The arrays of a task: the weights, and the moments where nodes are to go on with them."""
        if not task.extras:
            return arrays
        state = to_state(arrays, task.architecture)
        return to_record(state | {name: self._moments(state)[name] for name in task.downloaded() if name not in state})

    def _moments(self, state: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        """The moments that the next round goes on with, of all tensors."""
        known = {name: tensor for name, tensor in self.companions.items() if name.startswith((FIRST, SECOND, STEPS))}
        return known or no_moments(state)

    def _introduce(self, connected: dict[int, str]) -> None:
        """Ask nodes without a name for theirs: a choice by node ids, which simulations draw anew, is not repeatable."""
        unknown = [node for node, name in connected.items() if not name and node not in self._names]
        wait = self.config.federation.round_deadline
        messages = [Message(RecordDict(), node, MessageType.QUERY, ttl=wait) for node in unknown]
        for reply in self._grid.send_and_receive(messages, timeout=wait):
            try:
                self._names[self._grid.destination(reply)] = check_report(reply).node
            except BadReply as reason:
                log.warning("node %d does not say its name: %s", self._grid.destination(reply), reason)

    def aggregate_train(
        self, server_round: int, replies: Iterable[Message]
    ) -> tuple[ArrayRecord | None, MetricRecord | None]:
        """Fold in the good replies as they arrive, set the others aside, then prune.

        Below the quorum the global model stays as it is, unpruned, and the record says so.
        """
        task, settings = self.task(self.round.number), self.config.federation
        reference = from_record(self._with_moments(self._arrays, task), task.downloaded())
        wanted = task.uploaded()
        folding = make_folding(settings, self.round.number, self._scratch)
        losses: dict[str, tuple[int, float]] = {}
        for reply in replies:
            name, update = self._accept(reply, lambda message: check_reply(message, wanted, reference))
            if update is not None:
                folding.add(name, update)
                losses[name] = (update.examples, update.metrics.get("loss", float("nan")))
                if settings.grace and len(losses) >= settings.quorum:
                    self._grid.hurry(settings.grace)
        self._close_phase()
        averaged, aside = folding.result()
        for name, reason in aside.items():
            self._fail(name, reason)
            del losses[name]
        self.round.seconds_training = time.perf_counter() - self._phase_started
        if len(losses) < settings.quorum:
            self.round.kept_model = True
            log.warning("round %d: %d usable replies, %d are needed: the global model stays as it was",
                        self.round.number, len(losses), settings.quorum)  # fmt: skip
            return self._arrays, None
        self.round.train_loss = loss = _weighted_loss(losses)
        return self._prune(self._advance(reference, averaged)), MetricRecord({} if loss is None else {"loss": loss})

    def _advance(self, reference: dict[str, np.ndarray], averaged: dict[str, np.ndarray]) -> dict[str, torch.Tensor]:
        """The new global model before it is pruned; keeps what the optimisers remember."""
        names = layout(self.architecture)
        mean = {name: array for name, array in averaged.items() if name in names}
        memory = {name: tensor for name, tensor in self.companions.items() if name.startswith("server-")}
        after, memory = server_step(self.config.federation, self.round.number, reference, mean, memory)
        state = {name: _tensor((reference | after)[name]) for name in names}
        if len(averaged) > len(mean):
            moments = {name: _tensor(array) for name, array in averaged.items() if name not in names}
            memory |= self._moments(state) | moments
        self.companions = memory
        return state

    def _prune(self, state: dict[str, torch.Tensor]) -> ArrayRecord:
        number = self.round.number
        self.round.before = before = self.architecture
        stages = stages_to_prune(self.config.prune, number, len(self.architecture.stages))
        if stages:
            step = self.server.prune(state, self.architecture, stages, number)
            self.round.step, self.round.seconds_scoring = step, step.seconds_total
            self.architecture, state = step.architecture, step.state
            self.companions = cut(self.companions, before, step.plan, self.config.prune.mlp_group)
        return to_record(state)

    def aggregate_evaluate(self, server_round: int, replies: Iterable[Message]) -> MetricRecord | None:
        """Mean of the nodes' validation metrics, weighted by their examples; bad replies are set aside.

        Each metric is averaged over the nodes that tell it: one whose images are all of one class has no AUROC.
        """
        if not self.config.federation.evaluate_clients:
            return None
        answers = [self._accept(reply, partial(check_answer, least=0), prefix="validation-") for reply in replies]
        self._close_phase()
        # a node may have too few images for a validation set: it says so, with no examples
        found = [answer for _, answer in sorted(answers, key=lambda pair: pair[0]) if answer and answer.examples]
        if not found:
            return None
        mean = {
            key: sum(answer.metrics[key] * answer.examples for answer in telling) / sum(a.examples for a in telling)
            for key in VALIDATION_METRICS
            if (telling := [answer for answer in found if key in answer.metrics])
        }
        self.round.validation = mean
        return MetricRecord(mean)

    def _accept(
        self, reply: Message, check: Callable[[Message], AnswerT], *, prefix: str = ""
    ) -> tuple[str, AnswerT | None]:
        """The node's name and its checked reply, or None after a bad one was named in log and record."""
        node = self._grid.destination(reply)
        name = self._asked.pop(node, self._names.get(node, f"node {node}"))
        try:
            answer = check(reply)
        except BadReply as reason:
            self._watch(0)
            self._fail(name, str(reason))
            return name, None
        self._watch(answer.examples)
        if name == f"node {node}" and answer.node:  # not registered under a name: take its own
            name = self._names[node] = self._own_name(node, answer.node)
        self.round.bytes_up += payload_bytes(reply.content)
        told = {f"{prefix}{key}": round(value, 6) for key, value in answer.metrics.items()}
        self.round.nodes.setdefault(name, {}).update(told)
        if answer.notes:
            self.round.notes[name] = list(answer.notes)
        if answer.class_counts or answer.suppressed_classes:
            counts = answer.class_counts | dict.fromkeys(answer.suppressed_classes)
            self.round.class_counts[name] = self.class_counts[name] = counts
        if answer.suppressed:
            self.round.nodes[name] |= {f"{prefix}{key}": None for key in answer.suppressed}
        if answer.audit:
            self._anchor(name, *answer.audit)
        if name not in self.round.ok:
            self.round.ok.append(name)
        return name, answer

    def _anchor(self, name: str, entries: int, sha256: str) -> None:
        """Keep where a site's audit log stands: one that has become shorter was cut, and its site cannot know."""
        known = self.audit.get(name, {"entries": 0})
        if entries <= known["entries"]:
            note = (
                f"its audit log has {entries} lines with this answer, and had {known['entries']} before: it was cut or "
                "begun anew; ask the site"
            )
            log.warning("round %d: %s: %s", self.round.number, name, note)
            self.round.notes.setdefault(name, []).append(note)
        self.audit[name] = self.round.audit[name] = {"entries": entries, "sha256": sha256}

    def _watch(self, images: int) -> None:
        """Tell whoever watches that one more node has answered."""
        if self._phase is not None:
            self._phase.answer(images)

    def _own_name(self, node: int, name: str) -> str:
        """A node's name for itself, with its number if another has it too (two hospitals with a folder /data/ham)."""
        taken = any(known == name and other != node for other, known in self._names.items())
        return f"{name} (node {node})" if taken else name

    def _fail(self, name: str, reason: str) -> None:
        """Note once by name who does not count in this round, and why."""
        if self.round.failed.get(name) != reason:
            log.warning("round %d: %s set aside: %s", self.round.number, name, reason)
        self.round.failed[name] = reason
        if name in self.round.ok:
            self.round.ok.remove(name)

    def _close_phase(self) -> None:
        """Whoever was asked and has not answered by now is late."""
        waited = time.perf_counter() - self._phase_started
        if self._phase is not None:
            self._lasted[self._phase.done] = waited
        for name in self._asked.values():
            self._fail(name, f"no reply within {waited:.0f} s")
        self._asked = {}


def _tensor(array: np.ndarray) -> torch.Tensor:
    return torch.from_numpy(np.array(array))


def _weighted_loss(losses: dict[str, tuple[int, float]]) -> float | None:
    """Mean over nodes by examples, summed in the order of names so that arrival does not matter.

    A site's policy may keep its loss to itself; None if all do.
    """
    told = [losses[name] for name in sorted(losses) if not math.isnan(losses[name][1])]
    return sum(count * loss for count, loss in told) / sum(count for count, _ in told) if told else None
