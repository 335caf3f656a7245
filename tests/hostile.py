"""What a hostile site does to its own answer, and a federation some of whose sites do it."""

from __future__ import annotations

from collections.abc import Callable, Collection

import numpy as np
import torch
from flwr.app import Array, ArrayRecord, Context, Message, MessageType, MetricRecord

from fedskew.apps import make_client_app
from fedskew.federation.checks import MAX_EXAMPLES
from fedskew.federation.messages import unpack_task
from fedskew.federation.weights import from_record, to_record
from fedskew.learning.optimiser import FIRST

app = make_client_app()

Change = Callable[[np.ndarray, np.ndarray], np.ndarray]  # (what it was sent, what it would honestly send) → its lie


def lie(task: Message, reply: Message, change: Change, examples: int | None = None) -> Message:
    """A reply whose weights are changed, and its number of examples where one is given."""
    ((name, honest),) = reply.content["arrays"].items()
    sent = next(iter(task.content["arrays"].values())).numpy()
    wrong = np.asarray(change(sent, honest.numpy()), dtype=np.float32)
    reply.content["arrays"] = ArrayRecord({name: Array(np.ascontiguousarray(wrong))})
    if examples is not None:
        metrics = dict(reply.content["metrics"].items()) | {"num-examples": examples}
        reply.content["metrics"] = MetricRecord(metrics)
    return reply


def huge(task: Message, reply: Message) -> Message:
    """Every weight 1e30: finite, of the right shape."""
    return lie(task, reply, lambda _, honest: np.full_like(honest, 1e30))


def zeros(task: Message, reply: Message) -> Message:
    """No model at all, said to come from 2²⁸ examples."""
    return lie(task, reply, lambda _, honest: np.zeros_like(honest), MAX_EXAMPLES)


def reversed_update(task: Message, reply: Message) -> Message:
    """Its honest update turned round, at 1.8 times the norm, said to come from 2²⁸ examples."""
    return lie(task, reply, lambda sent, honest: sent - 1.8 * (honest - sent), MAX_EXAMPLES)


def nothing(task: Message, reply: Message) -> Message:
    """What it was sent, all but unchanged: next to an update of norm 0, others look large."""
    return lie(task, reply, lambda sent, _: sent * np.float32(1 + 1e-6))


def spoilt_moments(task: Message, reply: Message) -> Message:
    """An honest update; the first moments that travel beside it are 1e6."""
    sent, arrays = unpack_task(task)[0], reply.content["arrays"]
    told = {name: torch.from_numpy(value.copy()) for name, value in from_record(arrays, sent.uploaded()).items()}
    wrong = {name: torch.full_like(value, 1e6) for name, value in told.items() if name.startswith(FIRST)}
    reply.content["arrays"] = to_record(told | wrong)
    return reply


def federation(
    attack: Callable[[Message, Message], Message], sites: Collection[int], rounds: Collection[int] | None = None
) -> Callable[[Message, Context], Message]:
    """A client app: the partitions in `sites` attack when they train, in some rounds or in all."""

    def answer(message: Message, context: Context) -> Message:
        reply = app(message, context)
        if context.node_config["partition-id"] not in sites or message.metadata.message_type != MessageType.TRAIN:
            return reply
        number = message.content["config"]["server-round"]
        return attack(message, reply) if rounds is None or number in rounds else reply

    return answer
