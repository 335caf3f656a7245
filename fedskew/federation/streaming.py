"""A grid that hands replies over as they arrive, so that the strategy can fold each in and free it."""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator

from flwr.app import Message, RecordDict
from flwr.proto.node_pb2 import NodeInfo
from flwr.serverapp import Grid
from flwr.supercore.run import Run


class StreamingGrid(Grid):
    """Wraps any Flower grid. Only `send_and_receive` differs: it yields instead of collecting."""

    def __init__(self, inner: Grid, pull_interval: float = 0.2) -> None:
        self._inner = inner
        self._pull_interval = pull_interval

    def set_run(self, run: Run) -> None:
        """See `Grid`."""
        self._inner.set_run(run)

    @property
    def run(self) -> Run:
        """See `Grid`."""
        return self._inner.run

    def create_message(self, content: RecordDict, message_type: str, dst_node_id: int, group_id: str,
                       ttl: float | None = None) -> Message:  # fmt: skip
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

    def send_and_receive(self, messages: Iterable[Message], *, timeout: float | None = None) -> Iterator[Message]:
        """Send at once, then yield each reply when it is there, until all came or `timeout` seconds have passed.

        Not a generator function: the messages leave when this is called, not when the first reply is asked for.
        """
        waiting = set(self._inner.push_messages(messages))
        deadline = None if timeout is None else time.monotonic() + timeout
        return self._replies(waiting, deadline)

    def _replies(self, waiting: set[str], deadline: float | None) -> Iterator[Message]:
        while waiting and (deadline is None or time.monotonic() < deadline):
            replies = list(self._inner.pull_messages(waiting))
            waiting.difference_update(reply.metadata.reply_to_message_id for reply in replies)
            while replies:
                yield replies.pop()
            if waiting:
                time.sleep(self._pull_interval)
