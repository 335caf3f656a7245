"""Clipping and local noise by Flower's own `LocalDpMod`, for updates that hold part of a model whose shape changes."""

from __future__ import annotations

import copy
import math

import numpy as np
from flwr.app import Array, ArrayRecord, Context, Message, RecordDict
from flwr.clientapp.mod import LocalDpMod

from fedskew.errors import FedskewError
from fedskew.flower import add_gaussian_noise_inplace, get_norm
from fedskew.site.policy import Noise

_NO_NOISE = Noise(sensitivity=0.0, epsilon=1.0, delta=1e-5)  # a deviation of 0: the mod then only clips
_NO_CONTEXT = Context(0, 0, {}, RecordDict(), {})  # the mod hands it on and reads nothing of it


class PrivacyError(FedskewError, ValueError):
    """An update that cannot be clipped; it must not leave."""


def protect(
    task: Message, reply: Message, record: str, received: ArrayRecord, clipping_norm: float, noise: Noise | None = None
) -> None:
    """Replace a reply's arrays by received model + clipped update + Gaussian noise, in place.

    Flower's mod wants the reply to hold the very arrays of the task. Frozen stages are not sent back, so the mod is
    given a task with `received` only. A mod lives for one task: shapes may change between rounds.

    Args:
        task: the message as it came.
        reply: float arrays under the key `record`, each also in `received`.
        received: what training started from, of the part of the model that is sent back.
        clipping_norm: largest 2-norm of the whole update.
        noise: None for clipping alone.

    Raises:
        PrivacyError: the reply holds an array that `received` does not, or one that is not floating point or finite.
    """
    sent = reply.content.array_records[record]
    reference = ArrayRecord({name: _same_kind(name, array, received.get(name)) for name, array in sent.items()})
    settings = noise or _NO_NOISE
    norm = get_norm([sent[name].numpy() - array.numpy() for name, array in reference.items()])
    if not math.isfinite(norm):  # Flower's clipping would let it pass
        raise PrivacyError("the update is not finite: it cannot be clipped")
    if norm == 0:  # Flower's clipping divides by it
        _add_noise_only(reply, record, settings)
        return
    trimmed = copy.copy(task)
    trimmed.content = RecordDict({record: reference})
    mod = LocalDpMod(clipping_norm, settings.sensitivity, settings.epsilon, settings.delta)
    answer = mod(trimmed, _NO_CONTEXT, lambda *_: reply)
    if answer.has_error():
        raise PrivacyError(f"Flower's local differential privacy failed: {answer.error.reason}")


def _same_kind(name: str, sent: Array, received: Array | None) -> Array:
    if received is None or tuple(received.shape) != tuple(sent.shape) or received.dtype != sent.dtype:
        raise PrivacyError(f"tensor {name} was not received in the shape in which it is sent: it cannot be clipped")
    if np.dtype(sent.dtype).kind != "f" or not sent.shape:  # numpy scalars are not changed in place by Flower's helpers
        raise PrivacyError(f"tensor {name} is {sent.dtype} {tuple(sent.shape)}: only floating-point arrays are clipped")
    return received


def _add_noise_only(reply: Message, record: str, noise: Noise) -> None:
    sent = reply.content.array_records[record]
    values = {name: array.numpy() for name, array in sent.items()}
    add_gaussian_noise_inplace(list(values.values()), noise.deviation)
    reply.content[record] = ArrayRecord({name: Array(value) for name, value in values.items()})
