"""`fedskew simulate` and its kin: a run in this process, shown as `fedskew run` shows one."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path

from fedskew.cli.errors import is_debugging
from fedskew.cli.follow import finished
from fedskew.cli.interrupts import Interrupts
from fedskew.cli.terminal import Terminal, shown
from fedskew.cli.watch import FOLDER, PREPARING
from fedskew.console import in_terminal
from fedskew.errors import ExitCode, FedskewError
from fedskew.files import read_json
from fedskew.runs.folder import SUMMARY, RunFolder


def simulate_here(values: Mapping[str, str], nodes: int, terminal: Terminal, *, as_json: bool) -> int:
    """Run a federation in this process; the exit code. Raises as `run_here`."""
    from fedskew.apps import simulate

    return run_here(partial(simulate, values, nodes), terminal, as_json=as_json, command="simulate")


def run_here(start: Callable[[], RunFolder], terminal: Terminal, *, as_json: bool, command: str) -> int:
    """Run something in this process that ends with a run folder; the exit code.

    Args:
        command: that would go on with it.

    Raises:
        ConfigError, DataError, RunFolderError, …: what `start` does; only where nothing of the run is kept.
    """
    folder: list[Path] = []

    def message(text: str) -> None:
        if found := FOLDER.fullmatch(text):
            folder.append(Path(found[1]))
        terminal.message(text)

    terminal.status.show(PREPARING)
    try:
        with Interrupts(), in_terminal(terminal.result, message, terminal.status):
            path = start().path
    except FedskewError as error:
        if is_debugging() or not any(path.is_dir() for path in folder):
            raise
        terminal.message(f"fedskew: {error}")  # it had begun: this is no fault of the command
        terminal.next_step(*(f"fedskew {command} --resume {shown(path)}" for path in folder))
        return ExitCode.FAILED
    except KeyboardInterrupt:
        terminal.message("fedskew: interrupted; finished rounds are kept")
        terminal.next_step(*(f"fedskew {command} --resume {shown(path)}" for path in folder if path.is_dir()))
        return ExitCode.INTERRUPTED
    summary = read_json(path / SUMMARY)
    return finished(summary, path, terminal, as_json=as_json, command=command, silent=True)
