"""Where the lines of a run go: its results, its messages, and how far the present round is.

Everything is logged under `flwr.fedskew`: the table of rounds and the summary by `flwr.fedskew.results`, how far the
round is by `flwr.fedskew.progress` (at level DEBUG, so that nobody sees it who did not ask), all else by the others.
Nothing here changes what is logged, only where it is written and how it looks.
"""

from __future__ import annotations

import logging
import os
import shutil
import sys
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import ClassVar, TextIO, TypeVar

from fedskew.errors import is_ours
from fedskew.text import duration, printable_lines

OURS, RESULTS, PROGRESS = "flwr.fedskew", "flwr.fedskew.results", "flwr.fedskew.progress"
RESULT_MARK, MESSAGE_MARK = "| ", "fedskew: "  # what the lines begin with in Flower's stream
PROGRESS_FILE = ".progress"  # in the run folder, while a round runs under Flower
PATIENCE, AGAIN = 2.0, 0.2  # seconds that a person waits without a word, and between two words
Item = TypeVar("Item")
_is_counting = False


class Lines(logging.Handler):
    """Gives each record to `write` as one text: `warning: …` and `error: …` say what they are, the rest does not."""

    def __init__(self, write: Callable[[str], None], level: int = logging.INFO) -> None:
        super().__init__(level)
        self._write = write

    def emit(self, record: logging.LogRecord) -> None:
        """See `logging.Handler`."""
        try:
            level = f"{record.levelname.lower()}: " if record.levelno > logging.INFO else ""
            self._write(printable_lines(level + self.format(record)))
        except Exception:  # noqa: BLE001 - logging's own rule: a line that cannot be written stops nothing
            self.handleError(record)


class StatusLine:
    """One line at the bottom of a terminal that is written over; nothing at all where there is no terminal."""

    _shown: ClassVar[int] = 0  # characters: a process has one terminal, whoever writes to it

    def __init__(self, stream: TextIO | None = None) -> None:
        self._stream = stream or sys.stderr
        self.enabled = self._stream.isatty() and os.environ.get("TERM") != "dumb"

    def show(self, text: str) -> None:
        """Replace what is shown; nothing by nothing."""
        self.clear()
        if self.enabled and text:
            text = text[: shutil.get_terminal_size().columns - 1]  # a line that wraps cannot be taken back
            self._stream.write(f"{text}\r")
            self._stream.flush()
            StatusLine._shown = len(text)

    def clear(self) -> None:
        """Take it away, before anything else is written."""
        if self.enabled and self._shown:
            self._stream.write(f"{' ' * self._shown}\r")
            self._stream.flush()
            StatusLine._shown = 0


def counted(items: Iterable[Item], total: int, what: str) -> Iterator[Item]:
    """The items; whoever shows progress is told how many are done, and after two seconds how long the rest will take.

    Of loops within each other the outer one tells, unless it has a single item.

    Args:
        what: the items in words, as in `12 of 400 images decoded, about 0m35s left`.
    """
    global _is_counting
    if _is_counting or total < 2:
        yield from items
        return
    log, start = logging.getLogger(PROGRESS), time.monotonic()
    told, _is_counting = start + PATIENCE - AGAIN, True
    log.debug("0 of %d %s", total, what)
    try:
        for number, item in enumerate(items, 1):
            yield item
            if (now := time.monotonic()) - told >= AGAIN:
                told, left = now, (now - start) / number * (total - number)
                log.debug("%d of %d %s, about %s left", number, total, what, duration(left))
    finally:
        _is_counting = False
        log.debug("")


@contextmanager
def in_command(messages: Callable[[str], None], status: StatusLine) -> Iterator[None]:
    """Give what is logged outside of a run to a writer, and progress to a status line.

    Flower's own writer has colours, in pipes too.
    """

    def write(text: str) -> None:
        status.clear()
        messages(text)

    try:
        with _handled_by({OURS: Lines(write), PROGRESS: Lines(status.show, logging.DEBUG)}):
            yield
    finally:
        status.clear()


@contextmanager
def in_terminal(results: Callable[[str], None], messages: Callable[[str], None], status: StatusLine) -> Iterator[None]:
    """Give the lines of a run in this process to two writers, and its progress to a status line."""
    _plain_where_no_terminal(sys.stderr)
    handlers = {OURS: Lines(messages), RESULTS: Lines(results), PROGRESS: Lines(status.show, logging.DEBUG)}
    try:
        with _handled_by(handlers):
            yield
    finally:
        status.clear()


@contextmanager
def in_flower() -> Iterator[None]:
    """Mark the lines of a run in a process of Flower's, whose output is streamed to whoever asked for it.

    Results begin with `| `, messages with `fedskew: `; Flower's own lines look as they always do. `fedskew run` tells
    them apart by that. Progress goes to a small file in the run folder.
    """
    _plain_where_no_terminal(sys.stdout)
    handlers = {
        OURS: Lines(lambda text: _write_marked(MESSAGE_MARK, text)),
        RESULTS: Lines(lambda text: _write_marked(RESULT_MARK, text)),
        PROGRESS: ProgressFile(),
    }
    with _handled_by(handlers):
        try:
            yield
        except Exception as error:
            if is_ours(error):  # in one line; Flower adds the traceback
                logging.getLogger(OURS).error("%s", error)
            raise


class ProgressFile(logging.Handler):
    """Writes the latest progress into the run folder that the record names as `folder`."""

    def emit(self, record: logging.LogRecord) -> None:
        """See `logging.Handler`."""
        folder: Path | None = getattr(record, "folder", None)
        if folder is not None:
            with suppress(OSError):  # a disk that is full is told by what matters more
                scratch = folder / f"{PROGRESS_FILE}.{os.getpid()}"
                scratch.write_text(self.format(record), encoding="utf-8")
                scratch.replace(folder / PROGRESS_FILE)


@contextmanager
def _handled_by(handlers: dict[str, logging.Handler]) -> Iterator[None]:
    """Let each logger write to its own handler alone, then put everything back."""
    loggers = {name: logging.getLogger(name) for name in handlers}
    before = {name: (logger.handlers, logger.propagate, logger.level) for name, logger in loggers.items()}
    for name, logger in loggers.items():
        logger.handlers, logger.propagate = [handlers[name]], False
    logging.getLogger(PROGRESS).setLevel(logging.DEBUG)
    try:
        yield
    finally:
        for name, logger in loggers.items():
            logger.handlers, logger.propagate, level = before[name]
            logger.setLevel(level)


def _write_marked(mark: str, text: str) -> None:
    sys.stdout.write("".join(f"{mark}{line}\n" for line in text.splitlines() or [""]))
    sys.stdout.flush()


def _plain_where_no_terminal(stream: TextIO) -> None:
    """Flower colours the names of levels wherever it writes; `NO_COLOR` is https://no-color.org."""
    if os.environ.get("NO_COLOR") or not stream.isatty():
        from fedskew.flower import update_console_handler  # noqa: PLC0415  # commands without a run start without Flower

        update_console_handler(colored=False)
