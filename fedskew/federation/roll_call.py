"""Who is asked in a phase, who has answered, and what a round's record says of each: nobody counts twice or unasked."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any, TypeVar

from flwr.app import Message, MessageType, RecordDict

from fedskew.config.schema import FederationConfig
from fedskew.console import PROGRESS
from fedskew.federation.checks import Answer, BadReply, check_report
from fedskew.federation.grids import StreamingGrid
from fedskew.federation.messages import payload_bytes
from fedskew.federation.seal import check_seal, new_nonce, with_nonce
from fedskew.federation.selection import public_keys
from fedskew.flower import ErrorCode
from fedskew.runs.reading import FAILED, LATE, MISSING, REFUSED
from fedskew.runs.record import RoundLog
from fedskew.text import duration

log = logging.getLogger("flwr.fedskew.server")
progress = logging.getLogger(PROGRESS)

AnswerT = TypeVar("AnswerT", bound=Answer)
OF_ERRORS = {  # the SuperLink's own answers for a node
    ErrorCode.NODE_UNAVAILABLE: MISSING,
    ErrorCode.MESSAGE_UNAVAILABLE: LATE,
    ErrorCode.REPLY_MESSAGE_UNAVAILABLE: LATE,
}
DONE = {MessageType.TRAIN: "trained", MessageType.EVALUATE: "evaluated"}


class RollCall:
    """The nodes of a run as the server knows them.

    Args:
        grid: the streaming grid of the run.
        settings: of the federation.
        folder: run folder, for whoever watches from another process.

    Attributes:
        round: what is noted of the round in progress.
        names: of every node seen so far, by its id.
        class_counts: node → images of each class (None: suppressed), of all that ever told.
        audit: site → length and last hash of its audit log.
        sites: names that nodes of this run were registered under; kept over restarts, so that one which is gone when
            the server comes back is still named as missing.
    """

    def __init__(self, grid: StreamingGrid, settings: FederationConfig, folder: Path | None) -> None:
        self.round = RoundLog(0)
        self.names: dict[int, str] = {}
        self.class_counts: dict[str, dict[str, int | None]] = {}
        self.audit: dict[str, dict[str, Any]] = {}
        self.sites: list[str] = []
        self._grid, self._settings, self._folder = grid, settings, folder
        self._asked: dict[int, str] = {}  # nodes of the present phase that have not answered
        self._nonces: dict[int, str] = {}  # of all nodes of the present phase
        self._keys: dict[int, bytes] = {}  # what nodes are registered with
        self._kind, self._started = "", 0.0
        self._phase: Phase | None = None
        self._lasted: dict[str, float] = {}  # what nodes did in a phase → seconds that it took the last time

    def begin(self, kind: str) -> None:
        """A phase of the round begins: what becomes of nodes in training is on record, evaluation changes nothing."""
        self._kind = kind

    def register(self, names: Iterable[str]) -> None:
        """Keep the names of nodes that take part; those of simulated nodes, which are registered nowhere, are empty."""
        self.sites[:] = sorted({*self.sites, *filter(None, names)})

    def messages(self, content: RecordDict, kind: str, chosen: dict[int, str]) -> list[Message]:
        """The same task for each of the chosen nodes, with a nonce of its own; the phase begins."""
        self.names.update(chosen)
        tasks = self._address(content, kind, chosen)
        self.round.bytes_down += sum(payload_bytes(task.content) for task in tasks)
        self._started, done = time.perf_counter(), DONE[kind]
        self._phase = Phase(
            f"round {self.round.number}/{self._settings.rounds}", done, len(chosen),
            before=self._lasted.get(done), folder=self._folder,
        )  # fmt: skip
        return tasks

    def _address(self, content: RecordDict, kind: str, chosen: dict[int, str]) -> list[Message]:
        self._asked, self._kind = dict(chosen), kind
        self._nonces = {node: new_nonce() for node in chosen}
        self._keys = public_keys(self._grid)
        # a task that outlives its round would keep a slow node from the next one
        return [Message(with_nonce(content, nonce), node, kind, ttl=self._settings.round_deadline)
                for node, nonce in self._nonces.items()]  # fmt: skip

    def introduce(self, connected: dict[int, str]) -> None:
        """Ask nodes without a name for theirs: a choice by node ids, which simulations draw anew, is not repeatable."""
        unknown = {node: f"node {node}" for node, name in connected.items() if not name and node not in self.names}
        messages = self._address(RecordDict(), MessageType.QUERY, unknown)
        for reply in self._grid.send_and_receive(messages, timeout=self._settings.round_deadline):
            if (node := self._sender(reply)) is not None:
                try:
                    self._check(reply, node, 0)
                    if name := check_report(reply).node:
                        self.names[node] = self._own_name(node, name)
                except BadReply as reason:
                    log.warning("node %d does not say its name: %s", node, reason)

    def accept(
        self, reply: Message, check: Callable[[Message], AnswerT], *, prefix: str = ""
    ) -> tuple[str, AnswerT | None]:
        """The node's name and its checked reply, or None after a bad one was named in log and record."""
        node = self._sender(reply)
        if node is None:
            return "", None
        name = self.names.get(node) or f"node {node}"
        try:
            self._check(reply, node, self.round.number)
            answer = check(reply)
        except BadReply as reason:
            self._watch(0)
            self.fail(name, str(reason), _outcome(reply))
            return name, None
        self._watch(answer.examples)
        if name == f"node {node}" and answer.node:  # not registered under a name: take its own
            name = self.names[node] = self._own_name(node, answer.node)
        self._note(name, reply, answer, prefix)
        return name, answer

    def _note(self, name: str, reply: Message, answer: Answer, prefix: str) -> None:
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
        if name not in self.round.ok and name not in self.round.failed:  # it may evaluate what it did not train
            self.round.ok.append(name)

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

    def _sender(self, reply: Message) -> int | None:
        """The node whose task a reply answers; None if nobody was asked for it, or its node has answered already."""
        node, source = self._grid.destination(reply), reply.metadata.src_node_id
        if node is None:
            self._stranger(f"an answer that names node {source} belongs to no task of this round")
        elif self._asked.pop(node, None) is None:
            self._stranger(f"a second answer of {self.names.get(node) or f'node {node}'} was left out")
        else:
            return node
        return None

    def _check(self, reply: Message, node: int, number: int) -> None:
        """Raise `BadReply` where an answer is not that of the node that was asked, and note it as a stranger's."""
        if reply.has_error():
            return  # a node that vanished is answered for by the SuperLink, under an id of its own
        try:
            if reply.metadata.src_node_id != node:
                raise BadReply(f"its answer comes from node {reply.metadata.src_node_id}, which was not asked for it")
            check_seal(
                reply, nonce=self._nonces[node], run_id=self._grid.run.run_id, kind=self._kind, round_number=number,
                public_key=self._keys.get(node, b""), required=self._settings.require_signatures,
            )  # fmt: skip
        except BadReply as reason:
            self._stranger(f"in the name of {self.names.get(node) or f'node {node}'}: {reason}")
            raise

    def _stranger(self, what: str) -> None:
        """Note what nobody should have sent: a person should look into it."""
        log.error("round %d: %s", self.round.number, what)
        self.round.strangers.append(what)

    def _watch(self, images: int) -> None:
        """Tell whoever watches that one more node has answered."""
        if self._phase is not None:
            self._phase.answer(images)

    def _own_name(self, node: int, name: str) -> str:
        """A node's name for itself, with its number if another has it too (two hospitals with a folder /data/ham)."""
        taken = any(known == name and other != node for other, known in self.names.items())
        return f"{name} (node {node})" if taken else name

    def fail(self, name: str, reason: str, outcome: str = REFUSED) -> None:
        """Note once by name who does not count in this round, and why.

        Args:
            outcome: one of `record.OUTCOMES`.
        """
        if self.round.failed.get(name) != reason:
            log.warning("round %d: %s set aside: %s", self.round.number, name, reason)
        self.round.failed[name] = reason
        if self._kind != MessageType.EVALUATE:
            self.round.participation[name] = outcome
        if name in self.round.ok:
            self.round.ok.remove(name)

    def close(self) -> float:
        """Whoever was asked and has not answered by now is late; returns the seconds that the phase took."""
        waited = time.perf_counter() - self._started
        if self._phase is not None:
            self._lasted[self._phase.done] = waited
        for node, name in self._asked.items():
            self.fail(name or f"node {node}", f"no reply within {waited:.0f} s", LATE)
        self._asked = {}
        return waited


def _outcome(reply: Message) -> str:
    """What an answer that cannot be used says of its node."""
    if not reply.has_error():
        return REFUSED
    return OF_ERRORS.get(reply.error.code, FAILED)


class Phase:
    """One phase in progress: the nodes train, or they evaluate.

    Args:
        title: `round 3/8`.
        done: what nodes that answered have done: `trained`.
        asked: how many nodes were asked.
        before: seconds that the same phase took in the round before; None if there was none.
        folder: run folder, for whoever watches from another process.
        clock: seconds; for tests.
    """

    def __init__(
        self,
        title: str,
        done: str,
        asked: int,
        *,
        before: float | None = None,
        folder: Path | None = None,
        clock: Callable[[], float] = time.perf_counter,
    ) -> None:
        self.done, self._title, self._asked = done, title, asked
        self._before, self._folder, self._clock = before, folder, clock
        self._started, self._answered, self._images = clock(), 0, 0
        self._tell()

    def answer(self, images: int) -> None:
        """A node has answered; 0 images if its answer cannot be used."""
        self._answered += 1
        self._images += images
        self._tell()

    @property
    def seconds(self) -> float:
        """How long it has taken so far."""
        return self._clock() - self._started

    def text(self) -> str:
        """`round 3/8: 2 of 4 nodes have trained, 1,120 images, about 0m12s left`."""
        if self._asked and self._answered == self._asked:
            return f"{self._title}: all {self._asked} nodes have {self.done}, {self._images:,} images; now the server"
        left = self._left()
        parts = [f"{self._title}: {self._answered} of {self._asked} nodes have {self.done}"]
        parts += [f"{self._images:,} images"] if self._images else []
        parts += [] if left is None else [f"about {duration(left)} left"]
        return ", ".join(parts)

    def _left(self) -> float | None:
        """Seconds, by the pace of those that have answered, else by the round before."""
        if self._answered:
            return self.seconds / self._answered * (self._asked - self._answered)
        return None if self._before is None else max(0.0, self._before - self.seconds)

    def _tell(self) -> None:
        progress.debug("%s", self.text(), extra={"folder": self._folder})
