"""Find the processes of a Flower home, and end processes for certain."""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import psutil

GRACE_SECONDS, KILLED_SECONDS = 20.0, 5.0  # between SIGTERM and SIGKILL, and from there to the end
LOOKS = 5  # a process that is about to end may have started another
LOOK_SECONDS = 0.1


def processes_of(home: Path) -> list[psutil.Process]:
    """This account's processes that were started with `FLWR_HOME=home`, and all that these started in turn.

    The environment finds what its parent has left behind too. Ray's workers write over theirs, so they are found as
    children only: they end with the raylet.
    """
    found: dict[int, psutil.Process] = {}
    for process in psutil.process_iter():
        with suppress(psutil.Error):
            if process.pid != os.getpid() and process.environ().get("FLWR_HOME") == str(home):
                found |= {member.pid: member for member in (*process.children(recursive=True), process)}
    return list(found.values())


def end_processes(
    find: Callable[[], list[psutil.Process]], hurried: Callable[[], bool] = lambda: False
) -> list[psutil.Process]:
    """Ask processes to end, and kill those that do not; returns those that are there even so.

    Args:
        find: the processes; looked for again until there are none.
        hurried: whether somebody does not want to wait for those that were asked.
    """
    for _ in range(LOOKS):
        alive = _alive(find())
        if not alive:
            return []
        for process in alive:
            _signal(process.terminate)
        alive = _wait(alive, GRACE_SECONDS, hurried)
        for process in alive:
            _signal(process.kill)
        _wait(alive, KILLED_SECONDS, lambda: False)
    return _alive(find())


def _wait(processes: list[psutil.Process], seconds: float, hurried: Callable[[], bool]) -> list[psutil.Process]:
    """Those that are still alive when the time is up, or nobody wants to wait any longer."""
    deadline = time.monotonic() + seconds
    while (alive := _alive(processes)) and time.monotonic() < deadline and not hurried():
        time.sleep(LOOK_SECONDS)
    return alive


def _alive(processes: list[psutil.Process]) -> list[psutil.Process]:
    return [process for process in processes if _is_alive(process)]


def _is_alive(process: psutil.Process) -> bool:
    """Whether it still runs: one that has ended and that its parent has not looked at does not."""
    try:
        return process.is_running() and process.status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


def _signal(action: Callable[[], None]) -> None:
    """Signal a process that may have ended by itself meanwhile; `psutil` sees to it that it is the same one."""
    with suppress(psutil.NoSuchProcess):
        action()
