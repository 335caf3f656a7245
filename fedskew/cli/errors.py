"""Errors of the command line: one message for what a person can mend."""

from __future__ import annotations

import sys

import typer


class clear_errors:
    """What a person can mend becomes one message and exit code 2, not a traceback."""

    def __enter__(self) -> None: ...

    def __exit__(self, _: object, error: BaseException | None, __: object) -> None:
        if isinstance(error, ValueError | RuntimeError) and type(error).__module__.startswith("fedskew."):
            print(f"fedskew: {error}", file=sys.stderr)
            raise typer.Exit(2) from error
