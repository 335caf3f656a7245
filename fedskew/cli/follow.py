"""`fedskew run`: start `flwr run`, show what the run says and nothing else, and tell how it ended."""

from __future__ import annotations

import json
import re
import shlex
import subprocess
import threading
import time
from collections import deque
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from queue import Empty, Queue
from shutil import get_terminal_size
from typing import Any

from fedskew.cli.checks import check_machine, check_superlink
from fedskew.cli.flower import (
    SIMULATION,
    RunRequest,
    app_directory,
    done_message,
    federation_config,
    flower_command,
    flwr_program,
    folder_of,
    named,
)
from fedskew.cli.terminal import Terminal, shown
from fedskew.config import load_config
from fedskew.console import MESSAGE_MARK, PROGRESS_FILE, RESULT_MARK, in_terminal
from fedskew.errors import ExitCode
from fedskew.ops.supervise import COMPLETED, FlowerCommands, Unreachable, supervise
from fedskew.runs.folder import CONFIG, SUMMARY, RunFolder, summary_time
from fedskew.runs.report import round_heading, round_line, summary_text

ANSI = re.compile(r"\x1b\[[0-9;?]*[A-Za-z]")
EXCEPTION = re.compile(r"([A-Za-z_]\w*\.)*[A-Za-z_]*(Error|Exception|Exit|Interrupt|Timeout)\b.*: \S")
STARTED, FOLDER = re.compile(r"Successfully started run (\d+)"), re.compile(r"run folder: (.+)")
ROW, HEADING = re.compile(r"\s*(\d+)/\d+ "), re.compile(r"\s*round +acc ")
SLOW_START = "Failed to start local SuperLink within"  # Flower waits 15 seconds, a busy machine may need more
TRIES = 3
WITHHELD = 20  # lines of Flower's that are shown after all if the run fails and nobody has said why
IDLE_SECONDS = 0.5
PREPARING = "data are read, and decoded when they are new"


@dataclass
class Stream:
    """What the output of one `flwr run` has told so far."""

    folder: Path  # of the run; where it was planned, until the run says
    run_id: str = ""
    error: str = ""  # the last one that the run told
    withheld: deque[str] = field(default_factory=lambda: deque(maxlen=WITHHELD))
    exceptions: dict[str, None] = field(default_factory=dict)  # last lines of tracebacks, each once, the first first
    code: int = 0  # of flwr


def run_with_flower(
    request: RunRequest,
    terminal: Terminal,
    *,
    dry_run: bool = False,
    supervised: bool = False,
    verbose: bool = False,
    as_json: bool = False,
) -> int:
    """Run the command and follow it; returns the exit code (Flower's own is 0 even if the run failed).

    Args:
        supervised: start the run again from its last finished round whenever it fails.
        verbose: show Flower's and Ray's own lines too.
        as_json: write the summary as JSON.

    Raises:
        ConfigError, RunFolderError, MachineError: before anything is started.
    """
    if done := done_message(request):
        return _nothing_left(done, Path(request.values["resume"]), terminal, as_json=as_json)
    folder = folder_of(request.values)
    command = flower_command(request, folder.name)
    if dry_run:
        terminal.result(shlex.join(command))
        return ExitCode.OK
    if request.connection == SIMULATION:
        check_machine(request)
        check_superlink()
    terminal.message(shlex.join(command))
    program, environment = flwr_program()
    flower = FlowerCommands(app_directory(), request.connection, program, environment, federation_config(request))
    if supervised:
        return supervise(flower, named(request.values, folder.name), folder)
    before = summary_time(folder)
    for attempt in range(1, TRIES + 1):
        watch = _Watch(Stream(folder), terminal, verbose=verbose)
        try:
            watch.follow([program, *command[1:]], environment)
        except KeyboardInterrupt:
            return _interrupted(watch.stream, request.connection, terminal)
        if watch.stream.run_id or attempt == TRIES or not any(SLOW_START in line for line in watch.stream.withheld):
            break
        terminal.message("the local SuperLink needs longer to start than Flower waits for it: trying again")
    return _ended(watch.stream, before, flower, terminal, as_json=as_json)


class _Watch:
    """Shows a run's lines from Flower's stream as they come."""

    def __init__(self, stream: Stream, terminal: Terminal, *, verbose: bool) -> None:
        self.stream, self._terminal, self._verbose = stream, terminal, verbose
        self._begun = time.time()

    def follow(self, command: list[str], environment: Mapping[str, str]) -> None:
        """Run a command to its end; a `KeyboardInterrupt` reaches it too, as it shares the terminal."""
        self._terminal.status.show(f"Flower starts; {PREPARING}")
        with subprocess.Popen(command, env=dict(environment), stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
                              text=True, encoding="utf-8", errors="replace") as process:  # fmt: skip
            for line in _lines(process):
                if line is None:
                    self._show_progress()
                else:
                    self._take(ANSI.sub("", line).rstrip("\n"))
        self._terminal.status.clear()
        self.stream.code = process.returncode

    def _take(self, line: str) -> None:
        if line.startswith(MESSAGE_MARK):
            self._message(line.removeprefix(MESSAGE_MARK))
        elif line.startswith(RESULT_MARK):
            self._result(line.removeprefix(RESULT_MARK))
        else:
            if found := STARTED.search(line):
                self.stream.run_id = found[1]
            self.stream.withheld.append(line)
            if EXCEPTION.match(line):
                self.stream.exceptions[line] = None
            if self._verbose:
                self._terminal.message(line)

    def _message(self, text: str) -> None:
        if found := FOLDER.fullmatch(text):
            self.stream.folder = Path(found[1])
        if text.startswith("error: "):
            self.stream.error = text
        self._terminal.message(text)

    def _result(self, text: str) -> None:
        """A line of the table as wide as the terminal; the summary comes when the run has ended."""
        folder = self.stream.folder
        if not (folder / CONFIG).is_file():  # on another machine
            self._terminal.result(text)
            return
        width, config = get_terminal_size().columns, load_config(file=folder / CONFIG)
        if HEADING.match(text):
            self._terminal.result(round_heading(config, width))
        elif found := ROW.match(text):
            records = {record["round"]: record for record in RunFolder(folder).records()}
            number = int(found[1])
            elapsed = sum(record["seconds"] for known, record in records.items() if known <= number)
            self._terminal.result(round_line(records[number], config, elapsed, width)[-1])

    def _show_progress(self) -> None:
        path = self.stream.folder / PROGRESS_FILE
        if self._terminal.status.enabled and path.is_file() and path.stat().st_mtime >= self._begun:
            self._terminal.status.show(path.read_text(encoding="utf-8"))


def _lines(process: subprocess.Popen[str]) -> Iterator[str | None]:
    """The lines of a process; None whenever there was none for a moment."""
    queue: Queue[str | None] = Queue()

    def read() -> None:
        assert process.stdout is not None
        for line in process.stdout:
            queue.put(line)
        queue.put(None)

    threading.Thread(target=read, daemon=True).start()
    while True:
        try:
            line = queue.get(timeout=IDLE_SECONDS)
        except Empty:
            yield None
            continue
        if line is None:
            return
        yield line


def _ended(stream: Stream, before: int, flower: FlowerCommands, terminal: Terminal, *, as_json: bool) -> int:
    """The summary of a run that has ended, or why there is none; the exit code."""
    if summary_time(stream.folder) != before:
        summary = json.loads((stream.folder / SUMMARY).read_text(encoding="utf-8"))
        return finished(summary, stream.folder, terminal, as_json=as_json, command="run")
    if stream.run_id and not stream.folder.is_dir():  # perhaps on another machine
        try:
            status, details = flower.status(stream.run_id)
        except Unreachable as trouble:
            status, details = "", str(trouble)
        if status == COMPLETED:
            terminal.message(f"the run is complete; its folder {stream.folder} cannot be seen from here")
            return ExitCode.OK
        terminal.message(f"fedskew: {details}" if details else "fedskew: Flower does not say why")
    _failed(stream, terminal, flower.connection)
    return stream.code or ExitCode.FAILED


def finished(
    summary: Mapping[str, Any], folder: Path, terminal: Terminal, *, as_json: bool, command: str, silent: bool = False
) -> int:
    """Show the summary of a run that came to its end, which may be an early one; the exit code.

    Args:
        command: that would go on with it.
        silent: it was shown already.
    """
    if not silent:
        terminal.result(summary_text(summary, folder))
    if as_json:
        terminal.data({"folder": str(folder), **summary})
    if summary.get("stopped"):
        terminal.next_step(f"fedskew {command} --resume {shown(folder)}")
        return ExitCode.STOPPED
    terminal.next_step(f"fedskew compare {shown(folder)} OTHER-RUN", f"fedskew evaluate {shown(folder)}")
    return ExitCode.OK


def _nothing_left(message: str, folder: Path, terminal: Terminal, *, as_json: bool) -> int:
    """Say that a run is finished, or show its summary to the program that asked; the exit code."""
    terminal.message(message)
    summary = json.loads((folder / SUMMARY).read_text(encoding="utf-8"))
    return finished(summary, folder, terminal, as_json=as_json, command="run", silent=True)


def simulate_here(values: Mapping[str, str], nodes: int, terminal: Terminal, *, as_json: bool) -> int:
    """Run a federation in this process; the exit code.

    Raises:
        ConfigError, DataError, RunFolderError, …: see `simulation.simulate`.
    """
    from fedskew.federation.simulation import simulate

    folder: list[Path] = []

    def message(text: str) -> None:
        if found := FOLDER.fullmatch(text):
            folder.append(Path(found[1]))
        terminal.message(text)

    terminal.status.show(PREPARING)
    try:
        with in_terminal(terminal.result, message, terminal.status):
            path = simulate(values, nodes).path
    except KeyboardInterrupt:
        terminal.message("fedskew: interrupted; finished rounds are kept")
        terminal.next_step(*(f"fedskew simulate --resume {shown(path)}" for path in folder if path.is_dir()))
        return ExitCode.INTERRUPTED
    summary = json.loads((path / SUMMARY).read_text(encoding="utf-8"))
    return finished(summary, path, terminal, as_json=as_json, command="simulate", silent=True)


def _failed(stream: Stream, terminal: Terminal, connection: str) -> None:
    if not stream.error:  # nobody has said why
        for line in list(stream.exceptions)[:2] or stream.withheld:
            terminal.message(line)
    kept = stream.folder.is_dir()
    terminal.message(
        f"fedskew: the run {'failed' if stream.run_id else 'was not started'}; "
        + (f"what it saved is in {stream.folder}" if kept else "it left nothing behind")
    )
    again = [f"fedskew run --resume {shown(stream.folder)}"] if kept else []
    look = [f"flwr log {stream.run_id} {connection} --show"] if stream.run_id else []
    terminal.next_step(*again, *look)


def _interrupted(stream: Stream, connection: str, terminal: Terminal) -> int:
    """Ctrl-C ends the watching; a run that was started goes on in its SuperLink."""
    if not stream.run_id:
        terminal.message("fedskew: interrupted before the run was started")
        return ExitCode.INTERRUPTED
    terminal.message(f"fedskew: no longer watched; run {stream.run_id} goes on")
    stop = f"flwr stop {stream.run_id} {connection}"
    everything = ["fedskew stop"] if connection == SIMULATION else []
    terminal.next_step(f"flwr log {stream.run_id} {connection}", stop, *everything)
    return ExitCode.INTERRUPTED
