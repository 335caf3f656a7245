"""`fedskew setup`, `run`, `simulate` and `stop`. Heavy imports happen inside the commands."""

from __future__ import annotations

from typing import Annotated

import typer

from fedskew.cli.errors import clear_errors
from fedskew.cli.vocabulary import (
    AsJson,
    ConfigFile,
    DataDir,
    Manifest,
    Name,
    Nodes,
    OutputDir,
    Plugins,
    Preset,
    Resume,
    Settings,
    refuse_plugins,
    run_values,
    settings_text,
    use_plugins,
)


def setup() -> None:
    """Prepare Flower once; `make install` has done it.

    Registers the connection `local-simulation` and lets Flower use this environment's packages.
    """
    from fedskew.cli.flower import register_connection, use_installed_packages
    from fedskew.cli.terminal import Terminal

    terminal = Terminal()
    terminal.result(register_connection())
    terminal.result(use_installed_packages())
    terminal.next_step("fedskew run --preset demo")


def run(
    preset: Preset = "",
    data_dir: DataDir = "",
    manifest: Manifest = "",
    nodes: Nodes = None,
    set_: Settings = None,
    config: ConfigFile = "",
    output_dir: OutputDir = "",
    name: Name = "",
    resume: Resume = "",
    plugin: Plugins = None,
    cpus: Annotated[int, typer.Option(min=1, metavar="N", help="CPU cores of one simulated node.")] = 1,
    gpus: Annotated[float, typer.Option(min=0.0, metavar="SHARE", help="Share of a GPU for one simulated node.")] = 0.0,
    connection: Annotated[str, typer.Option(metavar="NAME", help="SuperLink connection.")] = "local-simulation",
    supervise: Annotated[bool, typer.Option("--supervise", help="Go on by itself whenever the run fails.")] = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Only print the flwr command.")] = False,
    verbose: Annotated[bool, typer.Option("--verbose", help="Show Flower's and Ray's own messages too.")] = False,
    as_json: AsJson = False,
) -> None:
    """Run a federation with Flower, and show its rounds.

    Prints the `flwr run` command, runs it, shows the rounds and the result.
    """
    from fedskew.cli.checks import check_simulated, check_start
    from fedskew.cli.flower import SIMULATION, RunRequest, config_of, nodes_of
    from fedskew.cli.follow import run_with_flower
    from fedskew.cli.terminal import Terminal

    with clear_errors():  # before a SuperLink is started for it
        refuse_plugins(plugin)
        use_plugins()
        settings = settings_text(set_, manifest=manifest, name=name)
        values = run_values(preset, config, settings, data_dir, output_dir, resume)
        request = RunRequest(values, nodes_of(values, nodes, connection), cpus, gpus, connection)
        if connection == SIMULATION:
            configured = config_of(values)
            check_simulated(configured, request.nodes)
            if not (dry_run or resume):
                check_start(configured)
        code = run_with_flower(
            request, Terminal(as_json=as_json), dry_run=dry_run, supervised=supervise, verbose=verbose, as_json=as_json
        )
    raise typer.Exit(code)


def simulate(
    preset: Preset = "",
    data_dir: DataDir = "",
    manifest: Manifest = "",
    nodes: Nodes = None,
    set_: Settings = None,
    config: ConfigFile = "",
    output_dir: OutputDir = "",
    name: Name = "",
    resume: Resume = "",
    plugin: Plugins = None,
    as_json: AsJson = False,
) -> None:
    """The same in one process: for debugging, or a single GPU.

    Without Ray or a SuperLink, with the same result.
    """
    from fedskew.cli.checks import check_simulated
    from fedskew.cli.flower import SIMULATION, config_of, nodes_of
    from fedskew.cli.here import simulate_here
    from fedskew.cli.terminal import Terminal

    with clear_errors():
        use_plugins(plugin)
        settings = settings_text(set_, manifest=manifest, name=name)
        values = run_values(preset, config, settings, data_dir, output_dir, resume)
        count = nodes_of(values, nodes, SIMULATION)
        check_simulated(config_of(values), count)
        code = simulate_here(values, count, Terminal(as_json=as_json), as_json=as_json)
    raise typer.Exit(code)


def stop() -> None:
    """Stop the SuperLink that a bare `flwr run` leaves behind.

    Yours alone; `fedskew run` needs no such thing.
    """
    from fedskew.cli.leftovers import stop_leftovers

    for line in stop_leftovers():
        typer.echo(line)
