"""What every message of an error is for: the person who can mend it, and the program that started fedskew."""

from __future__ import annotations

from enum import IntEnum


class FedskewError(Exception):
    """Base of what a person can mend; the message names the thing, what was expected and the remedy.

    Each error is a ValueError or a RuntimeError too, for callers to whom fedskew is a library like any other.
    """


class ExitCode(IntEnum):
    """Exit codes of the `fedskew` command."""

    OK = 0
    FAILED = 1  # the run failed, or a check found a fault
    USER = 2  # the command or its input has to be mended; nothing was done
    STOPPED = 3  # the run ended before its last round on purpose; `--resume` goes on
    LEFT = 75  # a sweep's time limit has passed and runs are left
    INTERRUPTED = 130  # Ctrl-C, SIGTERM, a closed terminal


def is_ours(error: BaseException | None) -> bool:
    """Whether an error says what a person can mend; any other is a fault, and its traceback is of use."""
    return isinstance(error, FedskewError)
