"""`fedskew sweep`, `fedskew table` and `fedskew records`. Heavy imports happen inside the commands."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from fedskew.cli.errors import clear_errors
from fedskew.cli.vocabulary import Plugins, use_plugins
from fedskew.text import printable_lines


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
    plugin: Plugins = None,
    dry_run: Annotated[bool, typer.Option(help="Only check everything and say what would be run.")] = False,
) -> None:
    """Run a study: its cells and seeds, most important first; goes on after any interruption."""
    from fedskew.sweeps.study import Given, read_study
    from fedskew.sweeps.sweep import Place, Sweep, check_folder, plan_lines

    data = str(Path(data_dir).expanduser().resolve()) if data_dir else ""
    with clear_errors():
        use_plugins(plugin)
        given = Given(data, nodes, _seeds(seeds), " ".join(set_ or []))
        planned = read_study(study.resolve(), out.resolve(), given)
        if dry_run:
            check_folder(planned, out.resolve())
            typer.echo("\n".join(plan_lines(planned, out.resolve())))
            return
        place = Place(jobs, 60 * time_limit, pin)
        raise typer.Exit(Sweep(planned, out.resolve(), place, lambda line: print(line, flush=True)).run())


def table(
    folders: Annotated[list[Path], typer.Argument(help="Folders of sweeps, or of their committed records.")],
    metrics: Annotated[
        str, typer.Option(help="Names from metrics.jsonl, by commas: accuracy,recall.mel,macs_share.")
    ] = "",
    classes: Annotated[str, typer.Option(help="Classes whose recall is shown, by commas.")] = "mel,akiec,bcc",
    cells: Annotated[str, typer.Option(help="Some of the cells, by commas, in this order.")] = "",
    reference: Annotated[str, typer.Option(help="Cell that the others are compared with (default: the first).")] = "",
    over_seeds: Annotated[
        bool, typer.Option(help="Intervals over lesions and seeds: for other training runs, not only for these.")
    ] = False,
    by_cell: Annotated[bool, typer.Option(help="A row a cell instead of a row a metric.")] = False,
    each: Annotated[bool, typer.Option(help="Every seed's value instead of mean ± standard deviation.")] = False,
    markdown: Annotated[bool, typer.Option(help="For documents.")] = False,
    csv: Annotated[bool, typer.Option(help="For programs: one line a cell and metric.")] = False,
) -> None:
    """Tables of sweeps: mean ± standard deviation over seeds, paired differences with 95 % intervals over lesions."""
    from fedskew.sweeps.results import read_cells, selected
    from fedskew.sweeps.table import cell_table, default_metrics
    from fedskew.sweeps.table_text import Layout, as_csv, as_markdown, as_text

    with clear_errors():
        shown = selected(read_cells(folders), _words(cells))
        chosen = _words(metrics) or default_metrics(shown, _words(classes))
        made = cell_table(shown, chosen, reference=reference, over_seeds=over_seeds)
    layout = Layout(by_cell, each)
    text = as_csv(made).rstrip("\n") if csv else (as_markdown if markdown else as_text)(made, layout)
    typer.echo(printable_lines(text))


def records(
    sweep: Annotated[Path, typer.Argument(help="Folder of a sweep.")],
    out: Annotated[Path, typer.Argument(help="Folder of the study's records, as docs/results/targets.")],
) -> None:
    """Copy what can be committed of a sweep's finished runs: no models, images, or paths of this machine."""
    from fedskew.sweeps.committed import export_records

    with clear_errors():
        for path in export_records(sweep.resolve(), out.resolve()):
            size = sum(file.stat().st_size for file in path.iterdir())
            typer.echo(f"{path}  {size / 1e3:.0f} kB")


def _words(text: str) -> tuple[str, ...]:
    return tuple(filter(None, (word.strip() for word in text.split(","))))


def _seeds(text: str) -> tuple[int, ...]:
    words = _words(text)
    seeds = [int(word) for word in words if word.isdecimal() and int(word) < 2**31]
    if len(set(seeds)) < len(words):
        raise typer.BadParameter(f"{text!r} is no list of different whole numbers: 0,1,2", param_hint="--seeds")
    return tuple(seeds)
