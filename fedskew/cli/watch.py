"""Shows the lines of a run from Flower's stream: what the run says, and nothing else."""

from __future__ import annotations

import re
import subprocess
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from queue import Empty, Queue
from shutil import get_terminal_size
from typing import TextIO

from fedskew.cli.terminal import Terminal
from fedskew.config.load import load_saved
from fedskew.console import MESSAGE_MARK, PROGRESS_FILE, RESULT_MARK
from fedskew.runs.folder import CONFIG, RunFolder
from fedskew.runs.round_table import round_heading, round_line

ANSI = re.compile(r"\x1b\[[0-9;?]*[A-Za-z]")
EXCEPTION = re.compile(r"([A-Za-z_]\w*\.)*[A-Za-z_]*(Error|Exception|Exit|Interrupt|Timeout)\b.*: \S")
STARTED, FOLDER = re.compile(r"Successfully started run (\d+)"), re.compile(r"run folder: (.+)")
ROW, HEADING = re.compile(r"\s*(\d+)/\d+ "), re.compile(r"\s*round +acc ")
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


class Watch:
    """Shows a run's lines from Flower's stream as they come.

    Args:
        verbose: show Flower's and Ray's own lines too.
        log: keeps every line of the stream.
        serves: whether the SuperLink is still there; without it the stream never ends.
    """

    def __init__(
        self,
        stream: Stream,
        terminal: Terminal,
        *,
        verbose: bool,
        log: TextIO | None = None,
        serves: Callable[[], bool] = lambda: True,
    ) -> None:
        self.stream, self._terminal, self._verbose = stream, terminal, verbose
        self._log, self._serves = log, serves
        self._begun, self._has_begun = time.time(), False

    def follow(self, command: list[str], environment: Mapping[str, str]) -> None:
        """Run a command to its end, or to that of the SuperLink; whatever ends the watching ends the command too."""
        self._show_progress()
        with subprocess.Popen(command, env=dict(environment), stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
                              text=True, encoding="utf-8", errors="replace") as process:  # fmt: skip
            try:
                self._follow(process)
            except BaseException:  # also Ctrl-C, and SIGTERM, which only this process has got
                process.terminate()
                raise
        self._terminal.status.clear()
        self.stream.code = process.returncode

    def _follow(self, process: subprocess.Popen[str]) -> None:
        for line in _lines(process):
            if line is not None:
                self._take(ANSI.sub("", line).rstrip("\n"))
                continue
            self._show_progress()
            if not self._serves():
                self.stream.error = "error: the SuperLink of the run has ended"
                self._terminal.message(self.stream.error)
                process.terminate()
                return

    def _take(self, line: str) -> None:
        if self._log:
            print(line, file=self._log, flush=True)
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
            self.stream.folder, self._has_begun = Path(found[1]), True
        if text.startswith("error: "):
            self.stream.error = text
        self._terminal.message(text)

    def _result(self, text: str) -> None:
        """A line of the table as wide as the terminal; the summary comes when the run has ended."""
        folder = self.stream.folder
        if not (folder / CONFIG).is_file():  # on another machine
            self._terminal.result(text)
            return
        width, config = get_terminal_size().columns, load_saved(folder / CONFIG)
        if HEADING.match(text):
            self._terminal.result(round_heading(config, width))
        elif found := ROW.match(text):
            records = {record["round"]: record for record in RunFolder(folder).records()}
            number = int(found[1])
            elapsed = sum(record["seconds"] for known, record in records.items() if known <= number)
            self._terminal.result(round_line(records[number], config, elapsed, width)[-1])

    def _show_progress(self) -> None:
        path = self.stream.folder / PROGRESS_FILE
        if not self._terminal.status.enabled:
            return
        if path.is_file() and path.stat().st_mtime >= self._begun:
            self._terminal.status.show(path.read_text(encoding="utf-8"))
        elif not self._has_begun:
            self._terminal.status.show(f"Flower starts: {time.time() - self._begun:.0f} s; {PREPARING}")


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
