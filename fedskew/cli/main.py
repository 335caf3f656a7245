"""`fedskew`: run, simulate, compare and evaluate. Heavy imports happen inside the commands that need them."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Annotated

import typer

from fedskew.cli.data import manifest as draft_manifest
from fedskew.cli.errors import clear_errors as _clear_errors
from fedskew.cli.ops import credentials, doctor
from fedskew.cli.sweep import records, sweep, table

app = typer.Typer(no_args_is_help=True, add_completion=False, pretty_exceptions_enable=False,
                  help="Federated training of a multimodal Swin whose global model really shrinks.")  # fmt: skip

app.command()(credentials)
app.command()(sweep)
app.command()(table)
app.command()(records)
app.command("manifest")(draft_manifest)
app.add_typer(doctor, name="doctor")

Preset = Annotated[str, typer.Option(help="A preset in conf/.")]
ConfigFile = Annotated[str, typer.Option("--config", help="Your own YAML file; it wins over the preset.")]
Settings = Annotated[list[str] | None, typer.Option("--set", help="section.key=value; may be given several times.")]
DataDir = Annotated[str, typer.Option(help="Folder or archive of the data set.")]
OutputDir = Annotated[str, typer.Option(help="Where the run folder is made (default: ./runs).")]
Resume = Annotated[str, typer.Option(help="Run folder to go on with, from its last finished round.")]
Nodes = Annotated[
    int | None, typer.Option(min=1, help="Simulated hospitals (default: 4; resuming: as many as before).")
]


@app.command()
def setup() -> None:
    """Register the connection `local-simulation` and let Flower use this environment's packages."""
    from fedskew.cli.flower import register_connection, use_installed_packages

    typer.echo(register_connection())
    typer.echo(use_installed_packages())


@app.command()
def run(
    preset: Preset = "demo",
    data_dir: DataDir = "",
    nodes: Nodes = None,
    set_: Settings = None,
    config: ConfigFile = "",
    output_dir: OutputDir = "",
    resume: Resume = "",
    cpus: Annotated[int, typer.Option(min=1, help="CPU cores of one simulated node.")] = 1,
    gpus: Annotated[float, typer.Option(min=0.0, help="Share of a GPU for one simulated node.")] = 0.0,
    connection: Annotated[str, typer.Option(help="SuperLink connection.")] = "local-simulation",
    supervise: Annotated[bool, typer.Option(help="Go on from the last finished round whenever the run fails.")] = False,
    dry_run: Annotated[bool, typer.Option(help="Only print the flwr command.")] = False,
) -> None:
    """Run a federation with Flower: builds the `flwr run` command, prints it, runs it, shows the result."""
    from fedskew.cli.flower import RunRequest, nodes_of, run_with_flower

    with _clear_errors():  # before a SuperLink is started for it
        values = _values(preset, config, set_, data_dir, output_dir, resume)
        request = RunRequest(values, nodes_of(values, nodes, connection), cpus, gpus, connection)
        code = run_with_flower(request, dry_run=dry_run, supervised=supervise)
    raise typer.Exit(code)


@app.command()
def simulate(
    preset: Preset = "demo",
    data_dir: DataDir = "",
    nodes: Nodes = None,
    set_: Settings = None,
    config: ConfigFile = "",
    output_dir: OutputDir = "",
    resume: Resume = "",
) -> None:
    """The same run in one process, without Ray or a SuperLink: for debugging, tests and a single GPU."""
    from fedskew.federation.simulation import simulate as simulate_run

    with _clear_errors():
        simulate_run(_values(preset, config, set_, data_dir, output_dir, resume), nodes)


@app.command()
def compare(
    runs: Annotated[list[Path], typer.Argument(help="Run folders; the first is what the others are compared with.")],
    best: Annotated[bool, typer.Option(help="The best round by the run's metric, not the last.")] = False,
    markdown: Annotated[bool, typer.Option(help="A table for documents.")] = False,
) -> None:
    """The paper's table from run folders, and paired differences to the first with 95 % intervals over lesions."""
    from fedskew.runs import compare, pairing

    with _clear_errors():
        found = compare.read_runs(runs, best=best)
        table, (paired, reasons) = compare.comparison(found), pairing.paired_comparison(found)
    render = compare.to_markdown if markdown else compare.to_console
    parts = [render(table), compare.LEGEND] + ([render(paired), pairing.LEGEND] if paired else [])
    typer.echo("\n\n".join(part.strip("\n") for part in parts))
    for line in [*pairing.warnings_of(found), *reasons]:
        typer.echo(f"fedskew: {line}", err=True)


@app.command()
def plot(
    runs: Annotated[list[Path], typer.Argument(help="Run folders.")],
    out: Annotated[Path, typer.Option(help="Image file; its suffix names the format.")] = Path("runs.png"),
) -> None:
    """Draw how good and how large the global model is after each round."""
    from fedskew.runs.plot import plot_runs

    with _clear_errors():
        plot_runs(runs, out)
    typer.echo(out.resolve())


@app.command()
def evaluate(
    run: Annotated[Path, typer.Argument(help="A run folder, or a model file.")],
    data: Annotated[Path, typer.Option(help="Folder or archive of a data set.")],
    all_: Annotated[bool, typer.Option("--all", help="Every image, no split.")] = False,
    best: Annotated[bool, typer.Option(help="The run's best model instead of its last.")] = False,
    manifest: Annotated[str, typer.Option(help="YAML with the columns and labels of your own CSV.")] = "",
    predictions: Annotated[Path | None, typer.Option(help="Save what it says of each image: an .npz file.")] = None,
) -> None:
    """Evaluate a run's model on a data set and print the metrics as JSON."""
    from fedskew.runs.evaluation import evaluate_run

    with _clear_errors():
        found = evaluate_run(
            run, data.resolve(), everything=all_, best=best, manifest=_absolute(manifest), predictions=predictions
        )
    typer.echo(json.dumps(found, indent=2))


@app.command(context_settings={"allow_extra_args": True, "ignore_unknown_options": True})
def site(context: typer.Context) -> None:
    """Start a hospital's SuperNode: takes `flower-supernode`'s arguments, runs only bundles that the policy pins."""
    from fedskew.site.guard import GuardError, run_site
    from fedskew.site.policy import PolicyError

    try:
        run_site(context.args)
    except (GuardError, PolicyError) as error:
        print(f"fedskew site: {error}", file=sys.stderr)
        raise typer.Exit(2) from error


@app.command()
def bundle_hash(
    app_folder: Annotated[Path | None, typer.Argument(help="Folder of a Flower app (default: this checkout).")] = None,
) -> None:
    """Print the SHA-256 of the app bundle that `flwr run` sends: sites pin it as app-hashes in their policy."""
    from fedskew.cli.flower import app_directory
    from fedskew.ops.bundle import bundle_hash as hash_of

    with _clear_errors():
        typer.echo(hash_of((app_folder or app_directory()).resolve()))


@app.command()
def plan(
    run: Annotated[Path, typer.Argument(help="A run folder.")],
    data: Annotated[Path, typer.Option(help="The data set that the run used.")],
    set_: Settings = None,
) -> None:
    """Show what a pruning step would remove from a run's model, without removing it."""
    from fedskew.cli.inspect import plan_report

    with _clear_errors():
        typer.echo(plan_report(run.resolve(), data.resolve(), " ".join(set_ or [])))


@app.command()
def focus(
    run: Annotated[Path, typer.Argument(help="A run folder.")],
    data: Annotated[Path, typer.Option(help="The data set that the run used.")],
    masks: Annotated[Path, typer.Option(help="Folder or archive of its lesion masks.")],
    images: Annotated[int, typer.Option(min=1, help="Open images to look at.")] = 400,
    best: Annotated[bool, typer.Option(help="The run's best model instead of its last.")] = False,
) -> None:
    """Test the paper's claim: do units with skewness > 0 look at the lesion more than the others?

    As JSON, for heads and MLP groups, over all units and within sublayers, with the image's own mask and two controls:
    another image's mask and a central disc. `verdict` says whether the own mask gives more than both.
    """
    from fedskew.cli.inspect import focus_report

    with _clear_errors():
        found = focus_report(run.resolve(), data.resolve(), masks.resolve(), images, best=best)
    typer.echo(json.dumps(found, indent=2))


@app.command()
def options() -> None:
    """Every setting: default, choices, what it is for."""
    from fedskew.cli.inspect import option_table

    typer.echo(option_table())


@app.command()
def stop() -> None:
    """Stop the local SuperLink that `flwr run` leaves behind."""
    from fedskew.cli.flower import stop_local_superlink

    typer.echo(stop_local_superlink())


def _values(
    preset: str, config: str, set_: list[str] | None, data_dir: str, output_dir: str, resume: str
) -> dict[str, str]:
    """The run configuration, with paths that are absolute: the apps run in another directory."""
    from fedskew.config import load_config

    values = {"config": _absolute(config), "set": " ".join(set_ or []), "data-dir": _absolute(data_dir)}
    if resume:
        return {"resume": _absolute(resume), **values}
    configured = load_config(preset, file=values["config"], overrides=values["set"]).run.output_dir
    return {"preset": preset, **values, "output-dir": _absolute(output_dir or configured or "runs")}


def _absolute(path: str) -> str:
    return str(Path(path).expanduser().resolve()) if path else ""
