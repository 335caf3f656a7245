"""Errors of the command line: one message for what a person can mend, a traceback for whoever asks with `--debug`."""

from __future__ import annotations

import os
import sys
import traceback
from typing import NoReturn

import click
import typer

from fedskew.console import StatusLine, in_command
from fedskew.errors import ExitCode, is_ours
from fedskew.text import printable_lines

DEBUG = "fedskew.debug"  # key in the command's context


class clear_errors:
    """What a person can mend becomes one message and exit code 2, not a traceback; warnings look like messages."""

    def __enter__(self) -> None:
        self._log = in_command(lambda text: print(f"fedskew: {text}", file=sys.stderr, flush=True), StatusLine())
        self._log.__enter__()

    def __exit__(self, _: object, error: BaseException | None, __: object) -> None:
        self._log.__exit__(None, None, None)
        if is_ours(error):
            refuse(str(error), error)


def refuse(message: str, cause: BaseException | None = None) -> NoReturn:
    """End the command: a person has to mend something. With `--debug`, the traceback of the cause comes first.

    Raises:
        typer.Exit: always, with the exit code of a user's error.
    """
    if is_debugging():
        traceback.print_exception(cause) if cause else traceback.print_stack()
    print(f"fedskew: {printable_lines(message)}", file=sys.stderr)  # it may quote a file that somebody else wrote
    raise typer.Exit(ExitCode.USER) from cause


def is_debugging() -> bool:
    """Whether `--debug` was given, or `FEDSKEW_DEBUG` is set."""
    context = click.get_current_context(silent=True)
    return bool(os.environ.get("FEDSKEW_DEBUG") or (context and context.meta.get(DEBUG)))


def debug_option() -> click.Option:
    """`--debug`, which every command gets."""

    def note(context: click.Context, _: click.Parameter, value: bool) -> None:
        if value:
            context.meta[DEBUG] = True

    return typer.core.TyperOption(
        param_decls=["--debug"], is_flag=True, expose_value=False, callback=note,
        help="Show the traceback of an error.",
    )  # fmt: skip
