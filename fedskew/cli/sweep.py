"""`fedskew sweep`, `fedskew table` and `fedskew records`. Heavy imports happen inside the commands."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated

import typer

from fedskew.cli.errors import clear_errors
from fedskew.cli.vocabulary import Plugins, use_plugins
from fedskew.text import printable_lines


def sweep(
    study: Annotated[Path, typer.Argument(metavar="STUDY", help="YAML file with cells, settings and seeds.")],
    out: Annotated[Path, typer.Option(metavar="DIR", help="Folder of the run folders; the same one again goes on.")],
    jobs: Annotated[int, typer.Option(min=1, metavar="N", help="Runs at a time.")] = 1,
    data_dir: Annotated[
        str,
        typer.Option(
            metavar="DIR", help="Folder or archive of the data set; wins over the study's.", show_default=False
        ),
    ] = "",
    nodes: Annotated[
        int | None,
        typer.Option(min=1, metavar="N", help="Simulated hospitals, unless a cell says otherwise.", show_default=False),
    ] = None,
    seeds: Annotated[str, typer.Option(metavar="0,1,2", help="Instead of the study's.", show_default=False)] = "",
    set_: Annotated[
        list[str] | None,
        typer.Option("--set", metavar="KEY=VALUE", help="For every cell; wins over the study.", show_default=False),
    ] = None,
    time_limit: Annotated[
        float,
        typer.Option(
            min=0.0, metavar="MINUTES", help="Stop after so many, with exit code 75 if runs are left; 0: never."
        ),
    ] = 0.0,
    pin: Annotated[bool, typer.Option(help="Give every run CPU cores of its own, where there are enough.")] = True,
    plugin: Plugins = None,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Only check everything and say what would be run.")
    ] = False,
) -> None:
    """Run a study of several settings and seeds.

    Most important first; the same command goes on after any interruption.
    """
    from fedskew.sweeps.study import Given, read_study
    from fedskew.sweeps.sweep import Place, Sweep, check_folder, plan_lines

    data = str(Path(data_dir).expanduser().resolve()) if data_dir else ""
    with clear_errors():
        use_plugins(plugin)
        given = Given(data, nodes or 0, _seeds(seeds), " ".join(set_ or []))
        planned = read_study(study.resolve(), out.resolve(), given)
        if dry_run:
            check_folder(planned, out.resolve())
            typer.echo("\n".join(plan_lines(planned, out.resolve())))
            return
        place = Place(jobs, 60 * time_limit, pin)
        raise typer.Exit(Sweep(planned, out.resolve(), place, lambda line: print(line, flush=True)).run())


def reproduce(
    what: Annotated[str, typer.Argument(metavar="table1", help="What of the paper: table1.")],
    scale: Annotated[
        str, typer.Option(metavar="SCALE", help="cpu (64 pixels), gpu (Swin-T at 224 pixels), or tiny (a minute).")
    ],
    out: Annotated[
        Path, typer.Option(metavar="DIR", help="Folder of the run folders and the table; the same one again goes on.")
    ],
    data_dir: Annotated[
        str, typer.Option(metavar="DIR", help="Folder or archive of HAM10000.", show_default=False)
    ] = "",
    seeds: Annotated[int, typer.Option(min=1, metavar="N", help="How many seeds, from 0 on.")] = 3,
    jobs: Annotated[int, typer.Option(min=1, metavar="N", help="Runs at a time.")] = 1,
    set_: Annotated[list[str] | None, typer.Option("--set", metavar="KEY=VALUE", help="For every column.")] = None,
    time_limit: Annotated[
        float,
        typer.Option(
            min=0.0, metavar="MINUTES", help="Stop after so many, with exit code 75 if runs are left; 0: never."
        ),
    ] = 0.0,
    pin: Annotated[bool, typer.Option(help="Give every run CPU cores of its own, where there are enough.")] = True,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Only check everything and say what would be run.")
    ] = False,
) -> None:
    """Run the paper's table anew, beside the paper's figures.

    The same command goes on after any interruption.
    """
    from fedskew.sweeps.study import Given, read_study
    from fedskew.sweeps.sweep import Place, Sweep, check_folder, plan_lines
    from fedskew.sweeps.table1 import study_file, write_table1

    if what != "table1":
        raise typer.BadParameter(f"{what!r} is no table of the paper that can be made anew; there is table1")
    data, out = str(Path(data_dir).expanduser().resolve()) if data_dir else "", out.resolve()
    with clear_errors():
        study = read_study(study_file(scale), out, Given(data, 0, tuple(range(seeds)), " ".join(set_ or [])))
        if dry_run:
            check_folder(study, out)
            typer.echo("\n".join(plan_lines(study, out)))
            return
        place = Place(jobs, 60 * time_limit, pin)
        code = Sweep(study, out, place, lambda line: print(line, file=sys.stderr, flush=True)).run()
        text, paths = write_table1(out)
    typer.echo(text.rstrip())
    print(f"written: {', '.join(map(str, paths))}", file=sys.stderr)
    raise typer.Exit(code)


def table(
    folders: Annotated[
        list[Path], typer.Argument(metavar="DIR…", help="Folders of sweeps, or of their committed records.")
    ],
    metrics: Annotated[
        str, typer.Option(metavar="A,B", help="Names from metrics.jsonl, by commas: accuracy,recall.mel,macs_share.")
    ] = "",
    classes: Annotated[
        str, typer.Option(metavar="A,B", help="Classes whose recall is shown, by commas.")
    ] = "mel,akiec,bcc",
    cells: Annotated[str, typer.Option(metavar="A,B", help="Some of the cells, by commas, in this order.")] = "",
    reference: Annotated[
        str, typer.Option(metavar="NAME", help="Cell that the others are compared with (default: the first).")
    ] = "",
    over_seeds: Annotated[
        bool,
        typer.Option(
            "--over-seeds", help="Intervals over lesions and seeds: for other training runs, not only for these."
        ),
    ] = False,
    by_cell: Annotated[bool, typer.Option("--by-cell", help="A row a cell instead of a row a metric.")] = False,
    each: Annotated[
        bool, typer.Option("--each", help="Every seed's value instead of mean ± standard deviation.")
    ] = False,
    markdown: Annotated[bool, typer.Option("--markdown", help="For documents.")] = False,
    csv: Annotated[bool, typer.Option("--csv", help="For programs: one line a cell and metric.")] = False,
) -> None:
    """Tables of studies: mean ± sd over seeds, intervals.

    Paired differences have 95 % intervals over lesions.
    """
    from fedskew.cli.terminal import Terminal, shown
    from fedskew.sweeps.results import read_cells, selected
    from fedskew.sweeps.table import cell_table, default_metrics
    from fedskew.sweeps.table_text import Layout, as_csv, as_markdown, as_text

    terminal = Terminal()
    with clear_errors():
        terminal.status.show("runs are read")
        wanted = selected(read_cells(folders), _words(cells))
        chosen = _words(metrics) or default_metrics(wanted, _words(classes))
        made = cell_table(wanted, chosen, reference=reference, over_seeds=over_seeds)
    layout = Layout(by_cell, each)
    text = as_csv(made).rstrip("\n") if csv else (as_markdown if markdown else as_text)(made, layout)
    terminal.result(printable_lines(text))
    if not (csv or markdown):
        terminal.next_step(f"fedskew records {shown(folders[0])} RECORDS")


def records(
    sweep: Annotated[Path, typer.Argument(help="Folder of a sweep.")],
    out: Annotated[Path, typer.Argument(help="Folder of the study's records, as docs/results/targets.")],
) -> None:
    """Copy what can be committed of a study.

    Of its finished runs, without models, images, names of images or patients, or paths of this machine.
    """
    from fedskew.cli.terminal import Terminal, shown
    from fedskew.sweeps.committed import export_records

    terminal = Terminal()
    with clear_errors():
        for path in export_records(sweep.resolve(), out.resolve()):
            size = sum(file.stat().st_size for file in path.iterdir())
            terminal.result(f"{path}  {size / 1e3:.0f} kB")
    terminal.next_step(f"fedskew table {shown(out)}")


def _words(text: str) -> tuple[str, ...]:
    return tuple(filter(None, (word.strip() for word in text.split(","))))


def _seeds(text: str) -> tuple[int, ...]:
    words = _words(text)
    seeds = [int(word) for word in words if word.isdecimal() and int(word) < 2**31]
    if len(set(seeds)) < len(words):
        raise typer.BadParameter(f"{text!r} is no list of different whole numbers: 0,1,2", param_hint="--seeds")
    return tuple(seeds)
