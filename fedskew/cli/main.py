"""`fedskew`: the command and what it has in common for all of its commands. Heavy imports happen inside them."""

from __future__ import annotations

import re
import sys
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Annotated, Any

import click
import typer
from typer.core import TyperGroup

import fedskew
from fedskew.cli import look, start
from fedskew.cli.audit import audit_split, make_split
from fedskew.cli.central import prune, train
from fedskew.cli.data import manifest
from fedskew.cli.errors import clear_errors, debug_option
from fedskew.cli.export import bench, export
from fedskew.cli.ops import credentials, doctor, review
from fedskew.cli.predict import predict, serve
from fedskew.cli.report import report, watch
from fedskew.cli.sweep import records, reproduce, sweep, table

HELP = "Federated training of a multimodal Swin whose global model really shrinks."
EPILOG = """Example: fedskew run --preset demo

Exit codes:

0 done

1 the run failed, or a check found a fault

2 the command or its input has to be mended

3 the run ended before its last round; --resume goes on

75 a sweep's time limit has passed and runs are left

130 interrupted (Ctrl-C, SIGTERM, a closed terminal)

Every command has --help and --debug. Documentation: README.md and docs/ of the checkout."""
RENAMED = {"--data": "--data-dir"}  # as it was called
RUNS, DATA, LOOK, SITES = "Runs", "Data", "Look at runs and settings", "Hospitals"
USE = "Use a model"


class Group(TyperGroup):
    """Gives every command `--debug`, and takes options by the names that they used to have."""

    def __init__(self, **settings: Any) -> None:
        super().__init__(**settings)
        for command in _all_commands(self):
            if not command.context_settings.get("ignore_unknown_options"):  # its arguments are another program's
                command.params.append(debug_option())

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        """See `click.Group`."""
        try:
            name, command, rest = super().resolve_command(ctx, args)
        except click.UsageError as error:  # click and typer both say what was meant
            if getattr(error, "possibilities", None):
                error.message = re.sub(r" Did you mean .*\?$", "", error.message)
            raise
        known = {option for parameter in (command.params if command else ()) for option in parameter.opts}
        return name, command, [_present_name(word, known) for word in rest]


def _all_commands(group: click.Group) -> list[click.Command]:
    found = []
    for command in group.commands.values():
        found += _all_commands(command) if isinstance(command, click.Group) else [command]
    return found


def _present_name(word: str, known: set[str]) -> str:
    option, equals, value = word.partition("=")
    new = RENAMED.get(option, option)
    return f"{new}{equals}{value}" if new in known else word


app = typer.Typer(
    cls=Group, no_args_is_help=True, pretty_exceptions_enable=False, help=HELP, epilog=EPILOG,
    context_settings={"help_option_names": ["-h", "--help"]},
)  # fmt: skip

COMMANDS = (
    (RUNS, start.setup, "setup"),
    (RUNS, start.run, "run --preset ham10000-small --data-dir ~/HAM10000 --nodes 6"),
    (RUNS, start.simulate, "simulate --nodes 2 --set federation.rounds=2"),
    (RUNS, train, "train --preset ham10000-small --data-dir ~/HAM10000"),
    (RUNS, prune, "prune runs/dense --data-dir ~/HAM10000"),
    (RUNS, sweep, "sweep benchmarks/studies/recipe.yaml --out runs/recipe --jobs 2"),
    (RUNS, reproduce, "reproduce table1 --scale cpu --data-dir ~/HAM10000 --out runs/table1"),
    (RUNS, start.stop, "stop"),
    (DATA, manifest, "manifest ~/clinic"),
    (DATA, audit_split, "audit-split --metadata HAM10000_metadata.csv --split runs/dense/split.json"),
    (DATA, make_split, "make-split --metadata HAM10000_metadata.csv --out sites.csv"),
    (LOOK, watch, "watch runs/pruned"),
    (LOOK, report, "report runs/pruned"),
    (LOOK, look.compare, "compare runs/dense runs/pruned --markdown"),
    (LOOK, look.participation, "participation runs/pruned --json"),
    (LOOK, table, "table runs/recipe --markdown"),
    (LOOK, records, "records runs/recipe docs/results/recipe"),
    (LOOK, look.plot, "plot runs/dense runs/pruned --out runs.png"),
    (LOOK, look.evaluate, "evaluate runs/pruned --best --json"),
    (LOOK, look.plan, "plan runs/pruned --set 'prune.criterion=l1-norm prune.rule=match'"),
    (LOOK, look.focus, "focus runs/pruned --masks ~/HAM10000_segmentations"),
    (LOOK, look.options, "options prune"),
    (USE, predict, "predict runs/pruned picture.jpg --age 60 --sex female --site back"),
    (USE, serve, "serve runs/pruned"),
    (USE, export, "export runs/pruned --int8"),
    (USE, bench, "bench runs/dense runs/pruned runs/pruned/export/model-int8.onnx"),
    (SITES, credentials, "credentials --out pki --host fl.example.org --site site-a"),
)
for panel, command, example in COMMANDS:
    app.command(rich_help_panel=panel, epilog=f"Example: fedskew {example}")(command)
app.add_typer(doctor, name="doctor", rich_help_panel=SITES)


def _show_version(wanted: bool) -> None:
    if wanted:
        typer.echo(versions())
        raise typer.Exit


@app.callback()
def common(
    _: Annotated[
        bool, typer.Option("--version", help="Show versions and end.", callback=_show_version, is_eager=True)
    ] = False,
) -> None:
    """Options before the command."""


def versions() -> str:
    """`fedskew 0.2.0 (flwr 1.41.0, torch 2.15.0, timm 1.0.31, Python 3.11.7)`."""
    parts = [f"{name} {_version(name)}" for name in ("flwr", "torch", "timm")]
    return f"fedskew {fedskew.__version__} ({', '.join(parts)}, Python {sys.version.split()[0]})"


def _version(name: str) -> str:
    try:
        return version(name)
    except PackageNotFoundError:
        return "is missing"


@app.command(
    rich_help_panel=SITES, context_settings={"allow_extra_args": True, "ignore_unknown_options": True},
    epilog="Example: fedskew site --superlink fl.example.org:8000 --root-certificates ca.crt",
)  # fmt: skip
def site(context: typer.Context) -> None:
    """Start a hospital's SuperNode: takes `flower-supernode`'s arguments, runs only bundles that the policy pins."""
    from fedskew.errors import ExitCode
    from fedskew.flower import FlowerError
    from fedskew.site.guard import GuardError, run_site
    from fedskew.site.policy import PolicyError

    try:
        run_site(context.args)
    except (GuardError, PolicyError, FlowerError) as error:
        print(f"fedskew site: {error}", file=sys.stderr)
        raise typer.Exit(ExitCode.USER) from error


app.command(rich_help_panel=SITES, epilog="Example: fedskew review fedskew.fedskew.0-2-0.1a2b3c4d.fab")(review)


@app.command(rich_help_panel=SITES, epilog="Example: fedskew bundle-hash")
def bundle_hash(
    app_folder: Annotated[
        Path | None, typer.Argument(help="Folder of a Flower app (default: this checkout).", show_default=False)
    ] = None,
) -> None:
    """Print the SHA-256 of the app bundle that `flwr run` sends: sites pin it as app-hashes in their policy."""
    from fedskew.cli.flower import app_directory
    from fedskew.ops.bundle import bundle_hash as hash_of

    with clear_errors():
        typer.echo(hash_of((app_folder or app_directory()).resolve()))
