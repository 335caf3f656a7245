"""An in-process grid: the same messages and the same client app, without Ray or a SuperLink."""

from __future__ import annotations

import time
from collections.abc import Iterable
from uuid import uuid4

from flwr.app import Context, Message, RecordDict
from flwr.clientapp import ClientApp
from flwr.common.constant import SUPERLINK_NODE_ID
from flwr.proto.node_pb2 import NodeInfo
from flwr.serverapp import Grid
from flwr.supercore.run import Run
from flwr.supercore.task_identity import TaskIdentity

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
