"""The grids of a run: one that hands replies over as they arrive, and one in this process without Ray or SuperLink."""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator
from uuid import uuid4

from flwr.app import Context, Message, RecordDict
from flwr.clientapp import ClientApp
from flwr.serverapp import Grid

from fedskew.flower import SUPERLINK_NODE_ID, NodeInfo, Run, TaskIdentity

PULL_AT_ONCE = 2  # replies in memory at most, however many are waiting


class StreamingGrid(Grid):
    """Wraps any Flower grid. Only `send_and_receive` differs: it yields instead of collecting.

    A reply's arrays are gone when the next one is asked for.
    """

    def __init__(self, inner: Grid, pull_interval: float = 0.2) -> None:
        self._inner = inner
        self._pull_interval = pull_interval
        self._destinations: dict[str, int] = {}
        self._deadline = float("inf")

    def set_run(self, run: Run) -> None:
        """See `Grid`."""
        self._inner.set_run(run)

    @property
    def run(self) -> Run:
        """See `Grid`."""
        return self._inner.run

    def create_message(
        self,
        content: RecordDict,
        message_type: str,
        dst_node_id: int,
        group_id: str,
        ttl: float | None = None,
    ) -> Message:
        """See `Grid`."""
        return Message(content, dst_node_id, message_type, ttl=ttl, group_id=group_id)

    def get_node_ids(self) -> Iterable[int]:
        """See `Grid`."""
        return self._inner.get_node_ids()

    def get_nodes(self) -> Iterable[NodeInfo]:
        """See `Grid`."""
        return self._inner.get_nodes()

    def push_messages(self, messages: Iterable[Message]) -> Iterable[str]:
        """See `Grid`."""
        return self._inner.push_messages(messages)

    def pull_messages(self, message_ids: Iterable[str]) -> Iterable[Message]:
        """See `Grid`."""
        return self._inner.pull_messages(message_ids)

    def destination(self, reply: Message) -> int | None:
        """The node whose task of the present exchange a reply answers; None if it answers none.

        When a node vanishes, the SuperLink answers for it under its own id: only the message replied to tells whose
        it is. What a reply says of its source proves nothing.
        """
        return self._destinations.get(reply.metadata.reply_to_message_id)

    def hurry(self, seconds: float) -> None:
        """Wait at most this many seconds longer for the replies of the present exchange."""
        self._deadline = min(self._deadline, time.monotonic() + seconds)

    def send_and_receive(self, messages: Iterable[Message], *, timeout: float | None = None) -> Iterator[Message]:
        """Send at once, then yield each reply when it is there, until all came or `timeout` seconds have passed.

        Not a generator function: the messages leave when this is called, not when the first reply is asked for.
        """
        sent = list(messages)
        self._destinations = {}
        for message_id, message in zip(self._inner.push_messages(sent), sent, strict=False):
            self._destinations[message_id] = message.metadata.dst_node_id
        self._deadline = float("inf") if timeout is None else time.monotonic() + timeout
        return self._replies(list(self._destinations))

    def _replies(self, waiting: list[str]) -> Iterator[Message]:
        while waiting and time.monotonic() < self._deadline:
            arrived = 0
            for start in range(0, len(waiting), PULL_AT_ONCE):
                replies = list(self._inner.pull_messages(waiting[start : start + PULL_AT_ONCE]))
                arrived += len(replies)
                answered = {reply.metadata.reply_to_message_id for reply in replies}
                while replies:
                    reply = replies.pop(0)
                    yield reply
                    _release(reply)  # whoever asks for the next has done with this one
                if answered:  # the list has changed: begin again with what is left of it
                    waiting = [message_id for message_id in waiting if message_id not in answered]
                    break
            if waiting and not arrived:
                time.sleep(self._pull_interval)


def _release(reply: Message) -> None:
    """Free a reply's arrays now: Flower's records are reference cycles, which live on until Python looks for such."""
    if reply.has_content():
        for record in reply.content.array_records.values():
            record.clear()


LOCAL_RUN_ID = 1


class LocalGrid(Grid):
    """Runs a ClientApp for each message, one after the other, when its reply is pulled.

    Node `i` (id `i + 1`) has the node configuration that Flower's simulation gives: `partition-id` and
    `num-partitions`.
    """

    def __init__(
        self, client_app: ClientApp, nodes: int, *, node_configs: dict[int, dict[str, str | int]] | None = None
    ) -> None:
        self._app = client_app
        self._configs = node_configs or {i + 1: {"partition-id": i, "num-partitions": nodes} for i in range(nodes)}
        self._states = {node: RecordDict() for node in self._configs}
        self._pending: dict[str, Message] = {}
        self._run = Run.create_empty(LOCAL_RUN_ID)
        # Flower's messages name the task they come from; in its runtimes the launcher says which that is
        TaskIdentity.task_id, TaskIdentity.run_id, TaskIdentity.node_id = 1, LOCAL_RUN_ID, SUPERLINK_NODE_ID

    def set_run(self, run: Run) -> None:
        """See `Grid`."""
        self._run = run

    @property
    def run(self) -> Run:
        """See `Grid`."""
        return self._run

    def create_message(self, content: RecordDict, message_type: str, dst_node_id: int, group_id: str,
                       ttl: float | None = None) -> Message:  # fmt: skip
        """See `Grid`."""
        return Message(content, dst_node_id, message_type, ttl=ttl, group_id=group_id)

    def get_node_ids(self) -> Iterable[int]:
        """See `Grid`."""
        return list(self._configs)

    def get_nodes(self) -> Iterable[NodeInfo]:
        """See `Grid`."""
        return [NodeInfo(node_id=node) for node in self._configs]

    def push_messages(self, messages: Iterable[Message]) -> Iterable[str]:
        """Keep messages until their replies are pulled."""
        pushed = {}
        for message in messages:
            message.metadata.__dict__["_message_id"] = str(uuid4())  # as Flower's own in-memory grid does
            pushed[message.metadata.message_id] = message
        self._pending.update(pushed)
        return list(pushed)

    def pull_messages(self, message_ids: Iterable[str]) -> Iterable[Message]:
        """Run the next of these messages and return its reply: one at a time, so that one reply is in memory."""
        for message_id in sorted(message_ids, key=list(self._pending).index):
            message = self._pending.pop(message_id)
            node = message.metadata.dst_node_id
            context = Context(self.run.run_id, node, dict(self._configs[node]), self._states[node], {})
            return [self._app(message, context)]
        return []

    def send_and_receive(self, messages: Iterable[Message], *, timeout: float | None = None) -> Iterable[Message]:
        """See `Grid`; no reply can be late in one process, so `timeout` only ends the loop."""
        waiting, replies = set(self.push_messages(messages)), []
        deadline = None if timeout is None else time.monotonic() + timeout
        while waiting and (deadline is None or time.monotonic() < deadline):
            for reply in self.pull_messages(waiting):
                waiting.discard(reply.metadata.reply_to_message_id)
                replies.append(reply)
        return replies
