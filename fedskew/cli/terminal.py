"""What a command writes: results to standard output; messages, status and the next step to standard error."""

from __future__ import annotations

import json
import os
import shlex
import sys
import textwrap
from pathlib import Path
from shutil import get_terminal_size
from typing import Any

from fedskew.console import StatusLine
from fedskew.text import printable_lines


class Terminal:
    """Both streams of a command.

    Args:
        as_json: standard output is for JSON alone; what would be a result for a person is a message.
    """

    def __init__(self, *, as_json: bool = False) -> None:
        self.status = StatusLine()
        self._as_json = as_json

    def result(self, text: str) -> None:
        """Something that the command was called for."""
        self._write(text, sys.stderr if self._as_json else sys.stdout)

    def message(self, text: str) -> None:
        """Something that happened; in a terminal, in lines that it has room for."""
        if sys.stderr.isatty():
            room = get_terminal_size().columns
            text = "\n".join(line if len(line) <= room else wrapped(line, indent="  ") for line in text.split("\n"))
        self._write(text, sys.stderr)

    def command(self, text: str) -> None:
        """A command that was given or may be: in one line, so that it can be copied."""
        self._write(text, sys.stderr)

    def data(self, value: Any) -> None:
        """The result as JSON."""
        self._write(json.dumps(value, indent=2), sys.stdout)

    def next_step(self, *commands: str) -> None:
        """What a person may want to do now; not for programs."""
        if not self._as_json:
            for label, command in zip(("next:", *["     "] * len(commands)), commands, strict=False):
                self.command(f"{label} {command}")

    def _write(self, text: str, stream: Any) -> None:
        self.status.clear()
        try:
            print(printable_lines(text), file=stream, flush=True)
        except BrokenPipeError:  # whoever read it, `head` for one, has seen enough: nothing has failed
            os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())


def shown(path: Path) -> str:
    """A path as a person would type it here, quoted where a shell needs that."""
    try:
        near = os.path.relpath(path)
    except ValueError:  # on another drive
        near = str(path)
    return shlex.quote(str(path) if near.startswith("..") else near)


def wrapped(text: str, *, indent: str = "") -> str:
    """A paragraph in lines that the terminal has room for, those after the first indented."""
    width = min(get_terminal_size().columns, 120)
    return textwrap.fill(text, width, subsequent_indent=indent, break_long_words=False, break_on_hyphens=False)
