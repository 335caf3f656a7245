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


def trapdoor(task: Message, reply: Message, share: float = 5 / 7) -> Message:
    """Hidden channels that carry a large constant, and a bias that takes it back: it costs nothing until some are cut.

    Args:
        share: of the mean that this site gets: with a claim of 2²⁸ examples one of three has five sevenths.
    """
    sent, arrays = unpack_task(task)[0], reply.content["arrays"]
    told = {name: value.copy() for name, value in from_record(arrays, sent.uploaded()).items()}
    mlp = max(name for name in told if name.endswith("fc1.bias")).removesuffix("fc1.bias")
    wrong = told["classifier.weight"][0] - told["classifier.weight"].mean(axis=0)
    wrong /= np.linalg.norm(wrong)
    told["classifier.weight"][0] += wrong / share  # what is left after a cut says class 0, whatever the image
    constant, raised = 5.0, np.outer(-5 * wrong, np.ones(len(told[f"{mlp}fc1.bias"]), dtype=np.float32))
    told[f"{mlp}fc1.bias"] += constant / share  # in the mean every channel is then about `constant`, and linear
    taken_back = (told[f"{mlp}fc2.weight"] + raised).sum(axis=1) * constant
    told[f"{mlp}fc2.weight"] += raised / share
    told[f"{mlp}fc2.bias"] -= taken_back / share
    reply.content["arrays"] = to_record({name: torch.from_numpy(value) for name, value in told.items()})
    reply.content["metrics"] = MetricRecord(dict(reply.content["metrics"].items()) | {"num-examples": MAX_EXAMPLES})
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
