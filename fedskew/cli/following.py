"""`fedskew watch`: a run's rounds as they end, in a terminal as a table that is drawn anew, else line by line."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from rich.console import Console, Group
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from fedskew.cli.terminal import Terminal, shown
from fedskew.errors import ExitCode
from fedskew.runs.presence import BROKEN, GOING, Presence, look_at
from fedskew.runs.round_table import figure, round_heading, round_line
from fedskew.text import duration

SECONDS = 1.0  # between two looks
PATIENCE = 3  # looks at a folder in which nobody is at work, before that counts: one may be about to begin
AROUND = 9  # lines of a terminal that the table's rows do not have


def follow_run(path: Path, terminal: Terminal, sleep: Callable[[float], None] = time.sleep) -> int:
    """Show a run until it ends; the exit code.

    Raises:
        RunFolderError, ConfigError: no run there, or it is damaged.
    """
    last = _live(path, sleep) if sys.stdout.isatty() else _lines(path, terminal, sleep)
    if last.state == BROKEN:
        after = f"after round {last.records[-1]['round']}" if last.records else "before its first round was finished"
        terminal.message(f"fedskew: no process is at work in {path}: the run has ended {after}")
        terminal.next_step(f"fedskew run --resume {shown(path)}")
        return ExitCode.STOPPED
    from fedskew.cli.follow import finished

    return finished(last.summary, path, terminal, as_json=False, command="run")


def _looks(path: Path, sleep: Callable[[float], None]) -> Any:
    """The run at one moment after the other, until it is at its end or has broken off."""
    idle = 0
    while True:
        found = look_at(path)
        idle = idle + 1 if found.state == BROKEN else 0
        yield found
        if found.state not in (GOING, BROKEN) or idle >= PATIENCE:
            return
        sleep(SECONDS)


def _lines(path: Path, terminal: Terminal, sleep: Callable[[float], None]) -> Presence:
    """For a pipe: every round once, when it has ended."""
    known, found = -1, None
    for found in _looks(path, sleep):
        elapsed = 0.0
        for record in found.records:
            elapsed += record["seconds"]
            if record["round"] > known:
                if known < 0 and record["round"] % 20:  # `round_line` has the heading of every twentieth round
                    terminal.result(round_heading(found.config))
                for line in round_line(record, found.config, elapsed):
                    terminal.result(line)
                known = record["round"]
    assert found is not None
    return found


def _live(path: Path, sleep: Callable[[float], None]) -> Presence:
    """For a terminal."""
    console, found = Console(), None
    with Live(console=console, auto_refresh=False, transient=False) as live:
        for found in _looks(path, sleep):
            live.update(picture(path, found, console.height), refresh=True)
    assert found is not None
    return found


def picture(path: Path, run: Presence, height: int) -> Group:
    """The run as a terminal shows it: rounds, as many as have room, how far it is, whose data is in the last round."""
    rounds, records = run.config.federation.rounds, run.records
    done = records[-1]["round"] if records else 0
    elapsed = sum(record["seconds"] for record in records)
    left = f"about {duration(elapsed / done * (rounds - done))} left" if 0 < done < rounds else ""
    bar = Table.grid(padding=(0, 1))
    bar.add_row(
        f"round {done} of {rounds}", ProgressBar(total=rounds, completed=done, width=30), left, duration(elapsed)
    )
    parts: list[Any] = [Text(path.resolve().name, style="bold"), bar, _table(records[-max(1, height - AROUND) :])]
    if records and done:
        parts.append(_sites(records[-1]))
    parts.append(Text(run.progress or ("" if run.state != GOING else "the next round is going on"), style="dim"))
    return Group(*parts)


def _table(records: Sequence[Mapping[str, Any]]) -> Table:
    table = Table(box=None, header_style="bold", pad_edge=False)
    for title in ("round", "bal.acc", "acc", "F1", "params", "MACs", "MB", "sites", "time", "judged"):
        table.add_column(title, justify="right")
    for record in records:
        judged = record.get("selection") or {}
        best = judged.get("best")
        table.add_row(
            str(record["round"]), *(figure(record[key]) for key in ("balanced_accuracy", "accuracy", "f1_macro")),
            f"{record['parameters'] / record['dense_parameters']:.0%}", f"{record['macs'] / record['dense_macs']:.0%}",
            f"{(record['bytes_down'] + record['bytes_up']) / 1e6:.1f}",
            f"{record['clients_ok']}/{record['clients_ok'] + record['clients_failed']}", duration(record["seconds"]),
            figure(judged.get("value")) + ("*" if best else " "), style="green" if best else "",
        )  # fmt: skip
    return table


def _sites(record: Mapping[str, Any]) -> Text:
    """Whose data is in the last round, or why it changed nothing."""
    told = record.get("participation", {})
    inside = sum(word == "in" for word in told.values())
    others = ", ".join(f"{site} {word}" for site, word in told.items() if word != "in")
    text = f"in round {record['round']}: {inside} of {len(told)} sites" + (f"; {others}" if others else "")
    return Text(text, style="green" if told and inside == len(told) else "yellow")
