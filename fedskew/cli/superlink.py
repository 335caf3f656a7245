"""The SuperLink of a simulation that `fedskew run` starts: its own.

Flower's local SuperLink has one port for all accounts and homes, 15 seconds to start, and outlives every run. This one
has a free port, a Flower home that lasts as long as the command (Ray's folder too), the time that a busy machine needs,
and an end. See `leftovers` for the other.
"""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
import tempfile
import time
import tomllib
from collections.abc import Mapping
from pathlib import Path

import psutil
import tomli_w
from filelock import FileLock

from fedskew.cli.flower import SIMULATION, flower_home
from fedskew.cli.interrupts import Interrupts
from fedskew.cli.terminal import Terminal
from fedskew.cli.watch import ANSI
from fedskew.errors import FedskewError
from fedskew.ops.processes import end_processes, processes_of
from fedskew.ops.supervise import FlowerCommands

START_SECONDS, TELL_SECONDS, LOOK_SECONDS = 300.0, 15.0, 0.2
PORTS = 5  # tries: somebody else may take a free port before the SuperLink does
PROBE_SECONDS = 2.0
PREFIX, LOCK, LOG = "fedskew-run-", "lock", "superlink.log"
LOCAL = (":local:", ":local-in-memory:")  # addresses that stand for a SuperLink that `flwr` starts
SOCKET_ROOM = 30  # characters of a folder in which Ray can still make sockets (107 characters at most)
ENDED = "finished:failed"


class SuperLinkError(FedskewError, RuntimeError):
    """The SuperLink of a simulation does not start; the message names the reason, or the remedy."""


class OwnSuperLink:
    """A SuperLink for one command: starts on entering, ends with all that it started on leaving.

    Args:
        environment: to start it in.
        interrupts: of the command: once it is being ended, they only hurry it.

    Attributes:
        home: its Flower home.
        environment: to call `flwr` in, which then uses this SuperLink and no other.

    Raises:
        SuperLinkError: on entering: it does not start.
    """

    def __init__(self, environment: Mapping[str, str], terminal: Terminal, interrupts: Interrupts) -> None:
        self._given, self._terminal, self._interrupts = dict(environment), terminal, interrupts
        self._process: subprocess.Popen[bytes] | None = None

    def __enter__(self) -> OwnSuperLink:
        connections = _persons_connections()
        self.home = Path(tempfile.mkdtemp(prefix=PREFIX, dir=homes_directory())).resolve()
        self._lock = FileLock(self.home / LOCK, timeout=0)
        self._lock.acquire()
        self.environment = {
            **self._given, "FLWR_HOME": str(self.home), "RAY_TMPDIR": str(self.home), "FLWR_DISABLE_UPDATE_CHECK": "1",
        }  # fmt: skip
        try:
            self.start(connections)
        except BaseException:
            self.end()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        self.end()

    def start(self, connections: Mapping[str, Mapping[str, object]] | None = None) -> None:
        """Start it on a port of its own and wait until it answers. Raises `SuperLinkError`."""
        connections = _persons_connections() if connections is None else connections
        for _ in range(PORTS):
            port = _free_port()
            own = {SIMULATION: {"address": f"127.0.0.1:{port}", "insecure": True}}
            document = {"superlink": {**connections, "default": SIMULATION, **own}}
            (self.home / "config.toml").write_text(tomli_w.dumps(document), encoding="utf-8")
            self._process = self._launch(port)
            if self._answers(self._process, port):
                return
        raise SuperLinkError(
            f"the SuperLink of the simulation ended while it started (exit code {self._process.returncode}): "
            + (self._last_words() or "it said nothing")
        )

    @property
    def is_running(self) -> bool:
        """Whether it is there."""
        return self._process is not None and self._process.poll() is None

    def end(self) -> None:
        """End it and all that it started, and remove its home; what cannot be ended is said."""
        self._interrupts.shield()
        if self.home.exists():
            left = end_processes(lambda: processes_of(self.home), lambda: self._interrupts.hurried)
            if self._process is not None:
                self._process.poll()
            self._lock.release()
            shutil.rmtree(self.home, ignore_errors=True)
            for process in left:
                self._terminal.message(f"fedskew: process {process.pid} was started for this run and does not end")

    def _launch(self, port: int) -> subprocess.Popen[bytes]:
        program = shutil.which("flower-superlink", path=self.environment.get("PATH"))
        if program is None:
            raise SuperLinkError("flower-superlink is not installed beside this Python: `make install` completes it")
        command = [program, "--insecure", "--simulation", "--host", "127.0.0.1", "--port", str(port)]
        command += ["--database", str(self.home / "state.db")]
        with (self.home / LOG).open("wb") as log:
            # a session of its own: Ctrl-C is for the command, which then ends it in order
            return subprocess.Popen(command, env=self.environment, stdin=subprocess.DEVNULL, stdout=log,
                                    stderr=log, start_new_session=True)  # fmt: skip

    def _answers(self, process: subprocess.Popen[bytes], port: int) -> bool:
        """Wait until the SuperLink answers; False if it ended. Raises `SuperLinkError` when the time is up."""
        begun = told = time.monotonic()
        while (now := time.monotonic()) < begun + START_SECONDS:
            if process.poll() is not None:
                return False
            if _listens(process.pid, port) and is_healthy(port):
                return True
            self._terminal.status.show(f"Flower's SuperLink starts: {now - begun:.0f} s")
            if now >= told + TELL_SECONDS:
                told = now
                self._terminal.message(
                    f"fedskew: Flower's SuperLink is still starting after {now - begun:.0f} s; this machine is busy. "
                    f"It has {START_SECONDS:.0f} s"
                )
            time.sleep(LOOK_SECONDS)
        raise SuperLinkError(
            f"the SuperLink of the simulation did not answer within {START_SECONDS:.0f} s: try again when the machine "
            f"is less busy, or run it in one process with `fedskew simulate`. {self._last_words()}".rstrip()
        )

    def _last_words(self) -> str:
        text = ANSI.sub("", (self.home / LOG).read_text(encoding="utf-8", errors="replace"))
        lines = [line.strip() for line in text.splitlines() if line.strip()]
        return " ".join([line for line in lines if "ERROR" in line][-1:] or lines[-3:])


class OwnCommands:
    """Flower's commands for a run on an `OwnSuperLink`, which is started again where it has died.

    Attributes:
        run_id: the run that was submitted last.
    """

    def __init__(self, flower: FlowerCommands, link: OwnSuperLink) -> None:
        self.flower, self.link, self.run_id = flower, link, ""

    def submit(self, values: Mapping[str, str]) -> str:
        """See `Submitter`. Raises `Unreachable`, `SuperLinkError`."""
        if not self.link.is_running:
            self.link.start()
        self.run_id = self.flower.submit(values)
        return self.run_id

    def status(self, run_id: str) -> tuple[str, str]:
        """See `Submitter`. Raises `Unreachable`."""
        return self.flower.status(run_id) if self.link.is_running else (ENDED, "its SuperLink has ended")


def homes_directory() -> str:
    """Where homes are made: sockets must have room in them."""
    wanted = os.environ.get("RAY_TMPDIR") or tempfile.gettempdir()
    return wanted if len(wanted) + len(PREFIX) <= SOCKET_ROOM else "/tmp"


def _persons_connections() -> dict[str, dict[str, object]]:
    """The connections of the person's own Flower configuration.

    Raises:
        SuperLinkError: it cannot be read, or says that simulations run on a certain SuperLink.
    """
    path = flower_home() / "config.toml"
    try:
        found = tomllib.loads(path.read_text(encoding="utf-8")).get("superlink", {}) if path.is_file() else {}
    except (OSError, ValueError) as error:
        raise SuperLinkError(f"{path} cannot be read ({error}): mend or remove it, then `fedskew setup`") from None
    address = found.get(SIMULATION, {}).get("address", LOCAL[0])
    if address not in LOCAL:
        raise SuperLinkError(
            f"{path} gives the connection {SIMULATION} the address {address}, but `fedskew run` simulates on "
            f'a SuperLink of its own: write address = "{LOCAL[0]}", or rename that connection: --connection NAME'
        )
    return found


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def _listens(pid: int, port: int) -> bool:
    """Whether it is this process that answers on a port of this machine."""
    try:
        connections = psutil.Process(pid).net_connections("tcp")
    except psutil.Error:
        return False
    return any(found.status == psutil.CONN_LISTEN and found.laddr.port == port for found in connections)


def is_healthy(port: int | str) -> bool:
    """Whether a SuperLink answers on a port of this machine."""
    import httpx

    try:
        with httpx.Client(trust_env=False, timeout=PROBE_SECONDS) as client:  # no proxy between a machine and itself
            return client.get(f"http://127.0.0.1:{port}/health").is_success
    except httpx.HTTPError:
        return False
