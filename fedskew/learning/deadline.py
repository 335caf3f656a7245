"""A limit on how long the work of one task may take, looked at before every batch: whoever sets it need not be here."""

from __future__ import annotations

import math
import time
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar

from fedskew.errors import FedskewError

clock = time.monotonic
_until: ContextVar[float] = ContextVar("until", default=math.inf)


class TimeIsUp(FedskewError, RuntimeError):
    """The work took longer than it may."""


@contextmanager
def time_limit(seconds: float) -> Iterator[None]:
    """While this lasts, `check_time` raises `TimeIsUp` once so many seconds have passed."""
    token = _until.set(clock() + seconds)
    try:
        yield
    finally:
        _until.reset(token)


def check_time() -> None:
    """To be called before every piece of work that is short.

    Raises:
        TimeIsUp: the time limit around the caller has passed.
    """
    if clock() > _until.get():
        raise TimeIsUp("the time for this task is over")
