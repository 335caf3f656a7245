"""Processes that a test starts, and what it takes to start and to wait for them."""

from __future__ import annotations

import contextlib
import os
import pwd
import random
import signal
import socket
import subprocess
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import psutil


@dataclass
class Job:
    """A process that the cluster started; its output goes to a file."""

    name: str
    process: subprocess.Popen[bytes]
    log: Path

    def wait(self, seconds: float) -> int:
        """Its exit status; fails with the end of its output if it takes longer."""
        try:
            return self.process.wait(seconds)
        except subprocess.TimeoutExpired:
            raise AssertionError(f"{self.name} still runs after {seconds} s:\n{self.tail()}") from None

    def kill(self, *, children: bool = False) -> None:
        """SIGKILL, with all that it started if asked for."""
        family = [self.process.pid]
        if children:
            family += [child.pid for child in psutil.Process(self.process.pid).children(recursive=True)]
        for pid in family:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        self.process.wait(10)

    def text(self) -> str:
        """What it has printed so far."""
        return self.log.read_text(encoding="utf-8", errors="replace")

    def tail(self) -> str:
        """The end of what it has printed."""
        return self.text()[-3000:]


def wait_until(true: Callable[[], object], seconds: float, *, every: float = 0.1) -> None:
    """Wait for a condition; AssertionError when the time is over."""
    deadline = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < deadline, f"not within {seconds} s"
        time.sleep(every)


def default_signals() -> None:
    """Flower ends its processes with SIGINT, which the children of a shell's background job would ignore."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)


def free_port() -> int:
    """A port below those that the system gives to outgoing connections: it is bound only later."""
    while True:
        port = random.SystemRandom().randrange(12_000, 32_000)
        with socket.socket() as probe, contextlib.suppress(OSError):
            probe.bind(("127.0.0.1", port))
            return port


def user_name() -> str:
    return pwd.getpwuid(os.geteuid()).pw_name
