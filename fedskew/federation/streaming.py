"""A grid that hands replies over as they arrive, so that the strategy can fold each in and free it."""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator

from flwr.app import Message, RecordDict
from flwr.proto.node_pb2 import NodeInfo
from flwr.serverapp import Grid
from flwr.supercore.run import Run

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
