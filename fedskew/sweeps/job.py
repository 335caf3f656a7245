"""One run of a sweep in a process of its own, and what of the machine it gets."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import IO

import fedskew
from fedskew.config.load import to_mapping
from fedskew.plugins import loaded
from fedskew.sweeps.references import PlannedRun

COMMAND = (sys.executable, "-P", "-m", "fedskew.cli.cell")
PATIENCE = 10.0  # seconds that a process has to end before it is killed
LOG_TAIL = 16_384  # bytes at the end of a log in which its last lines are looked for
COLOUR = re.compile(r"\x1b\[[0-9;]*m")


class Job:
    """A process with a group of its own, so that a terminal's Ctrl-C is the sweep's to pass on.

    It gets its request as a line on standard input, which then stays open: when the sweep dies, however it dies, the
    input ends and with it the process.

    Args:
        log: file that its output is appended to.
        cores: CPU cores it is to use; empty: all.
        command: what runs a request, see `fedskew.cli.cell`.
    """

    def __init__(self, run: PlannedRun, log: Path, cores: Sequence[int] = (), command: Sequence[str] = COMMAND) -> None:
        self.run, self.log = run, log
        self.started = time.monotonic()
        with log.open("ab") as output:
            output.write(f"=== {run.name}, {time.strftime('%Y-%m-%d %H:%M:%S')}\n".encode())
            output.flush()
            self._process = subprocess.Popen(
                command, stdin=subprocess.PIPE, stdout=output, stderr=subprocess.STDOUT,
                env=_environment(run), process_group=0,
            )  # fmt: skip
        plugins = [str(plugin.file) for plugin in loaded() if plugin.file]
        request = {"config": to_mapping(run.config), "nodes": run.nodes, "cores": list(cores), "plugins": plugins}
        assert self._process.stdin is not None
        _send(self._process.stdin, json.dumps(request))

    def poll(self) -> int | None:
        """Its exit code; None while it runs."""
        return self._process.poll()

    def close(self) -> None:
        """Let go of its input after it has ended."""
        if self._process.stdin:
            self._process.stdin.close()

    def ask_to_end(self) -> None:
        """Send SIGTERM to its group. A run folder is whole at any moment, so it needs no time to tidy up."""
        if self.poll() is None:
            os.killpg(self._process.pid, signal.SIGTERM)

    def make_end(self) -> None:
        """Wait a while for its end, then kill its group."""
        try:
            self._process.wait(PATIENCE)
        except subprocess.TimeoutExpired:
            os.killpg(self._process.pid, signal.SIGKILL)
            self._process.wait()
        self.close()

    def last_lines(self, count: int = 12) -> list[str]:
        """The end of its log."""
        with self.log.open("rb") as file:
            file.seek(max(0, self.log.stat().st_size - LOG_TAIL))
            return COLOUR.sub("", file.read().decode(errors="replace")).splitlines()[-count:]


def _send(stream: IO[bytes], line: str) -> None:
    try:
        stream.write(f"{line}\n".encode())
        stream.flush()
    except BrokenPipeError:
        return  # it has ended already: its exit code and its log say why


def _environment(run: PlannedRun) -> dict[str, str]:
    """This process's environment: the same fedskew, and as many threads as the run is configured for."""
    package = str(Path(fedskew.__file__).resolve().parent.parent)
    path = os.pathsep.join(filter(None, (package, os.environ.get("PYTHONPATH", ""))))
    threads = max(run.config.run.threads, run.config.train.threads)
    return {**os.environ, "PYTHONPATH": path, "PYTHONUNBUFFERED": "1", "OMP_NUM_THREADS": str(threads)}


def shared_cores(jobs: int) -> list[tuple[int, ...]]:
    """The cores of each of `jobs` places; empty where they cannot be chosen or are too few for one each."""
    if jobs == 1 or not hasattr(os, "sched_getaffinity"):
        return [()] * jobs
    cores = sorted(os.sched_getaffinity(0))
    share = len(cores) // jobs
    return [tuple(cores[i * share : (i + 1) * share]) for i in range(jobs)]
