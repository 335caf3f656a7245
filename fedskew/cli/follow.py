"""`fedskew run`: start `flwr run`, show what the run says and nothing else, and tell how it ended."""

from __future__ import annotations

import re
import shlex
import shutil
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from fedskew.cli.checks import check_machine
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
from fedskew.cli.interrupts import Interrupts
from fedskew.cli.superlink import OwnCommands, OwnSuperLink
from fedskew.cli.terminal import Terminal, shown
from fedskew.cli.watch import Stream, Watch
from fedskew.errors import ExitCode
from fedskew.files import read_json
from fedskew.ops.supervise import COMPLETED, FlowerCommands, Unreachable, resumable, supervise
from fedskew.runs.folder import CONFIG, SUMMARY, RunFolder, summary_time
from fedskew.runs.reading import REPORT
from fedskew.runs.report import learned_nothing, summary_text

TRIES, RAY_TOO_SLOW = 3, "The current node timed out during startup"  # on a machine that does much else
RAY = re.compile(r"\bray\.|\bRay\b|raylet|RAY_|" + re.escape(RAY_TOO_SLOW))
FLOWER_LOG = "flower.log"  # in the folder of a run that failed: all that Flower said


@dataclass(frozen=True)
class Following:
    """A run that is to be started and followed.

    Attributes:
        folder: where the run folder is planned.
        command: of Flower, as a person would type it.
        supervised: start the run again from its last finished round whenever it fails.
        verbose: show Flower's and Ray's own lines too.
        as_json: write the summary as JSON.
    """

    request: RunRequest
    folder: Path
    command: tuple[str, ...]
    terminal: Terminal
    supervised: bool
    verbose: bool
    as_json: bool


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
        supervised, verbose, as_json: see `Following`.

    Raises:
        ConfigError, RunFolderError, MachineError, SuperLinkError: before a run is started.
    """
    if done := done_message(request):
        return _nothing_left(done, Path(request.values["resume"]), terminal, as_json=as_json)
    folder = folder_of(request.values)
    command = flower_command(request, folder.name)
    if dry_run:
        terminal.result(shlex.join(command))
        return ExitCode.OK
    check_machine(request)
    terminal.command(shlex.join(command))
    job = Following(request, folder, tuple(command), terminal, supervised, verbose, as_json)
    return _here(job) if request.connection == SIMULATION else _elsewhere(job)


def _here(job: Following) -> int:
    """A simulation: its SuperLink, and all that this starts, ends with the command, however that ends."""
    program, environment = flwr_program()
    stream, run_id = Stream(job.folder), ""
    with Interrupts() as interrupts:
        try:
            with OwnSuperLink(environment, job.terminal, interrupts) as link:
                federation = federation_config(job.request)
                flower = FlowerCommands(app_directory(), SIMULATION, program, link.environment, federation)
                commands = OwnCommands(flower, link)
                try:
                    return _followed_here(job, stream, commands, program)
                except KeyboardInterrupt:
                    run_id = stream.run_id or commands.run_id
                    _ask_to_stop(flower, run_id, job.terminal)
                    raise
        except KeyboardInterrupt:
            return _stopped(stream.folder, run_id, job.terminal)


def _followed_here(job: Following, stream: Stream, commands: OwnCommands, program: str) -> int:
    if job.supervised:
        return supervise(commands, named(job.request.values, job.folder.name), job.folder)
    before, link, command = summary_time(job.folder), commands.link, job.command
    for attempt in range(1, TRIES + 1):
        stream.exceptions.clear()
        stream.error = ""
        with (link.home / FLOWER_LOG).open("w", encoding="utf-8") as log:
            watch = Watch(stream, job.terminal, verbose=job.verbose, log=log, serves=lambda: link.is_running)
            watch.follow([program, *command[1:]], link.environment)
        too_slow = any(RAY_TOO_SLOW in line for line in stream.exceptions)
        if attempt == TRIES or stream.error or not too_slow:  # an error that the run told itself would come again
            break
        job.terminal.message("fedskew: Ray needs longer to start than the 30 s that it allows itself: trying again")
        command = _again(job, stream.folder)
    code = _ended(stream, before, commands.flower, job.terminal, as_json=job.as_json)
    if code not in (ExitCode.OK, ExitCode.STOPPED) and stream.run_id and stream.folder.is_dir():
        shutil.copyfile(link.home / FLOWER_LOG, stream.folder / FLOWER_LOG)
    return code


def _again(job: Following, folder: Path) -> tuple[str, ...]:
    """The command that goes on with a run that has begun its folder, or begins it anew."""
    if job.request.values.get("resume") or not (folder / CONFIG).is_file():
        return job.command
    values = {**resumable(job.request.values), "resume": str(folder), "set": ""}
    return tuple(flower_command(replace(job.request, values=values), folder.name))


def _elsewhere(job: Following) -> int:
    """A run on somebody's SuperLink: it goes on when nobody watches it any longer."""
    program, environment = flwr_program()
    connection, stream = job.request.connection, Stream(job.folder)
    flower = FlowerCommands(app_directory(), connection, program, environment)
    before = summary_time(job.folder)
    with Interrupts():
        try:
            if job.supervised:
                return supervise(flower, named(job.request.values, job.folder.name), job.folder)
            Watch(stream, job.terminal, verbose=job.verbose).follow([program, *job.command[1:]], environment)
        except KeyboardInterrupt:
            return _unwatched(stream, job)
    return _ended(stream, before, flower, job.terminal, as_json=job.as_json)


def _ended(stream: Stream, before: int, flower: FlowerCommands, terminal: Terminal, *, as_json: bool) -> int:
    """The summary of a run that has ended, or why there is none; the exit code."""
    if summary_time(stream.folder) != before:
        summary = read_json(stream.folder / SUMMARY)
        return finished(summary, stream.folder, terminal, as_json=as_json, command="run")
    if stream.run_id and not stream.folder.is_dir():  # perhaps on another machine
        try:
            status, details = flower.status(stream.run_id)
        except Unreachable as trouble:
            status, details = "", str(trouble)
        if status == COMPLETED:
            terminal.message(f"the run is complete; its folder {stream.folder} cannot be seen from here")
            return ExitCode.OK
        if not stream.error:  # which Flower would only repeat
            terminal.message(f"fedskew: {details}" if details else "fedskew: Flower does not say why")
    _failed(stream, terminal, flower.connection)
    return stream.code if stream.code > 0 else ExitCode.FAILED


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
    code = ExitCode.OK
    if summary.get("stopped"):
        terminal.next_step(f"fedskew {command} --resume {shown(folder)}")
        code = ExitCode.STOPPED
    elif learned_nothing(summary):
        terminal.message("fedskew: the run has failed: no round's training was taken")
        code = ExitCode.FAILED
    else:
        terminal.next_step(f"fedskew compare {shown(folder)} OTHER-RUN", f"fedskew evaluate {shown(folder)}")
    if not as_json:
        report = folder / REPORT
        terminal.message(f"look: {shown(report) if report.is_file() else f'fedskew report {shown(folder)}'}")
    return code


def _nothing_left(message: str, folder: Path, terminal: Terminal, *, as_json: bool) -> int:
    """Say that a run is finished, or show its summary to the program that asked; the exit code."""
    terminal.message(message)
    summary = read_json(folder / SUMMARY)
    return finished(summary, folder, terminal, as_json=as_json, command="run", silent=True)


def _failed(stream: Stream, terminal: Terminal, connection: str) -> None:
    if not stream.error:  # nobody has said why
        for line in list(stream.exceptions)[:2] or stream.withheld:
            terminal.message(line)
    kept, folder = stream.folder.is_dir(), shown(stream.folder)
    terminal.message(
        f"fedskew: the run {'failed' if stream.run_id else 'was not started'}; "
        + (f"what it saved is in {stream.folder}" if kept else "it left nothing behind")
    )
    again = [f"fedskew run --resume {folder}"] if kept else []
    if connection == SIMULATION and not stream.error and _ray_failed(stream):
        terminal.message(
            "fedskew: Ray, on which Flower simulates nodes, has failed; `fedskew simulate` runs the same federation "
            "in one process, without it"
        )
        again += [f"fedskew simulate --resume {folder}" if kept else "fedskew simulate, with the same options"]
    if connection != SIMULATION:
        look = [f"flwr log {stream.run_id} {connection} --show"] if stream.run_id else []
    else:
        look = [f"less {folder}/{FLOWER_LOG}"] if kept and stream.run_id else []
    terminal.next_step(*again, *look)


def _ray_failed(stream: Stream) -> bool:
    """Whether an exception in Flower's stream is Ray's; that others name it in passing says nothing."""
    return any(RAY.search(line) for line in stream.exceptions)


def _ask_to_stop(flower: FlowerCommands, run_id: str, terminal: Terminal) -> None:
    if not run_id:
        return
    terminal.message(f"fedskew: interrupted; Flower stops run {run_id} (once more: without waiting)")
    try:
        flower.stop(run_id)
    except Unreachable as trouble:
        terminal.message(f"fedskew: {trouble} (the run ends with its SuperLink)")


def _stopped(folder: Path, run_id: str, terminal: Terminal) -> int:
    """What is left of a simulation that was interrupted, when all of it has ended; the exit code."""
    if not run_id:
        terminal.message("fedskew: interrupted before the run was started; nothing of it is running")
    elif not folder.is_dir():
        terminal.message("fedskew: the run has ended before its first round; it left nothing behind")
    else:
        finished = [path.name.removeprefix("round-").lstrip("0") or "0" for path in RunFolder(folder).checkpoints()]
        after = f"after round {finished[-1]}" if finished else "before its first round was finished"
        terminal.message(f"fedskew: the run has ended {after}; what it saved is in {folder}")
        terminal.next_step(f"fedskew run --resume {shown(folder)}")
    return ExitCode.INTERRUPTED


def _unwatched(stream: Stream, job: Following) -> int:
    """Ctrl-C ends the watching; a run that was started goes on in its SuperLink."""
    connection, terminal = job.request.connection, job.terminal
    if job.supervised:
        terminal.message("fedskew: no longer watched; the run itself goes on")
        terminal.next_step(f"fedskew run --supervise --connection {connection} --resume {shown(job.folder)}")
    elif not stream.run_id:
        terminal.message("fedskew: interrupted before the run was started")
    else:
        terminal.message(f"fedskew: no longer watched; run {stream.run_id} goes on")
        terminal.next_step(f"flwr log {stream.run_id} {connection}", f"flwr stop {stream.run_id} {connection}")
    return ExitCode.INTERRUPTED
