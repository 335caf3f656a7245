"""`fedskew sweep`. Heavy imports happen inside the command."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from fedskew.cli.errors import clear_errors


def sweep(
    study: Annotated[Path, typer.Argument(help="YAML file with cells, settings and seeds.")],
    out: Annotated[Path, typer.Option(help="Folder of the run folders; the same one again goes on.")],
    jobs: Annotated[int, typer.Option(min=1, help="Runs at a time.")] = 1,
    data_dir: Annotated[str, typer.Option(help="Folder or archive of the data set; wins over the study's.")] = "",
    nodes: Annotated[int, typer.Option(min=0, help="Simulated hospitals, unless a cell says otherwise.")] = 0,
    seeds: Annotated[str, typer.Option(help="0,1,2: instead of the study's.")] = "",
    set_: Annotated[
        list[str] | None, typer.Option("--set", help="section.key=value for every cell; wins over the study.")
    ] = None,
    time_limit: Annotated[
        float, typer.Option(min=0.0, help="Stop after so many minutes, with exit code 75 if runs are left; 0: never.")
    ] = 0.0,
    pin: Annotated[bool, typer.Option(help="Give every run CPU cores of its own, where there are enough.")] = True,
    dry_run: Annotated[bool, typer.Option(help="Only check everything and say what would be run.")] = False,
) -> None:
    """Run a study: its cells and seeds, most important first; goes on after any interruption."""
    from fedskew.runs.study import Given, read_study
    from fedskew.runs.sweep import Place, Sweep, check_folder, plan_lines

    data = str(Path(data_dir).expanduser().resolve()) if data_dir else ""
    with clear_errors():
        given = Given(data, nodes, _seeds(seeds), " ".join(set_ or []))
        planned = read_study(study.resolve(), out.resolve(), given)
        if dry_run:
            check_folder(planned, out.resolve())
            typer.echo("\n".join(plan_lines(planned, out.resolve())))
            return
        place = Place(jobs, 60 * time_limit, pin)
        raise typer.Exit(Sweep(planned, out.resolve(), place, lambda line: print(line, flush=True)).run())


def _seeds(text: str) -> tuple[int, ...]:
    words = [word.strip() for word in text.split(",") if word.strip()]
    seeds = [int(word) for word in words if word.isdecimal() and int(word) < 2**31]
    if len(set(seeds)) < len(words):
        raise typer.BadParameter(f"{text!r} is no list of different whole numbers: 0,1,2", param_hint="--seeds")
    return tuple(seeds)
