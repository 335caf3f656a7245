"""`fedskew report` and `fedskew watch`. Heavy imports happen inside the commands."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from fedskew.cli.errors import clear_errors
from fedskew.cli.vocabulary import Best, Run


def report(
    runs: Annotated[
        list[Path], typer.Argument(metavar="RUN [RUN…]", help="Run folders; several are compared.", show_default=False)
    ],
    out: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE", help="The file (default: report.html in the run; of several, here).", show_default=False
        ),
    ] = None,
    best: Best = False,
) -> None:
    """A run as a page for the browser; several runs: compared.

    One HTML file that fetches nothing.
    """
    from fedskew.cli.terminal import Terminal, shown
    from fedskew.report.comparison import write_comparison
    from fedskew.report.page import write_report
    from fedskew.runs.reading import REPORT

    terminal = Terminal()
    with clear_errors():
        terminal.status.show("the report is made")
        if len(runs) == 1:
            written = write_report(runs[0], out, best=best)
        else:
            written = write_comparison(runs, out or Path(REPORT), best=best)
    terminal.result(str(written.resolve()))
    terminal.next_step(f"xdg-open {shown(written.resolve())}")


def watch(run: Run) -> None:
    """Follow a run that is going on, from another terminal.

    A table that grows until the run ends, wherever it was started from.
    """
    from fedskew.cli.following import follow_run
    from fedskew.cli.terminal import Terminal

    with clear_errors():
        code = follow_run(run, Terminal())
    raise typer.Exit(code)
