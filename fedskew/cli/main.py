"""`fedskew`: the command and what it has in common for all of its commands. Heavy imports happen inside them."""

from __future__ import annotations

import re
import sys
from collections.abc import Callable
from importlib.metadata import PackageNotFoundError, version
from typing import Annotated, Any

import click
import typer
from typer.core import TyperGroup

import fedskew
from fedskew.cli import look, start
from fedskew.cli.audit import audit_split, make_split
from fedskew.cli.central import prune, train
from fedskew.cli.data import manifest
from fedskew.cli.errors import debug_option
from fedskew.cli.export import bench, export
from fedskew.cli.ops import credentials, doctor
from fedskew.cli.predict import predict, serve
from fedskew.cli.report import report, watch
from fedskew.cli.site import bundle_hash, review, site
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


class Group(TyperGroup):
    """Gives every command `--debug`, and takes options by the names that they used to have."""

    def __init__(self, **settings: Any) -> None:
        super().__init__(**settings)
        for command in _all_commands(self):
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

# by task, in the order in which somebody new needs them
FEDERATION, LOOK, USE = "Run a federation", "Look at a run", "Use a model"
CENTRAL, DATA = "Train or prune without a federation", "Prepare data"
SITES, STUDIES = "Work with hospitals", "Run studies"
COMMANDS: tuple[tuple[str, Callable[..., None], str], ...] = (
    (FEDERATION, start.run, "run --preset ham10000-small --data-dir ~/HAM10000 --nodes 6"),
    (FEDERATION, start.simulate, "simulate --nodes 2 --set federation.rounds=2"),
    (FEDERATION, look.options, "options prune"),
    (FEDERATION, start.setup, "setup"),
    (FEDERATION, start.stop, "stop"),
    (LOOK, watch, "watch runs/pruned"),
    (LOOK, report, "report runs/pruned"),
    (LOOK, look.compare, "compare runs/dense runs/pruned --markdown"),
    (LOOK, look.plot, "plot runs/dense runs/pruned --out runs.png"),
    (LOOK, look.participation, "participation runs/pruned --json"),
    (LOOK, look.plan, "plan runs/pruned --set 'prune.criterion=l1-norm prune.rule=match'"),
    (LOOK, look.focus, "focus runs/pruned --masks ~/HAM10000_segmentations"),
    (USE, predict, "predict runs/pruned picture.jpg --age 60 --sex female --site back"),
    (USE, serve, "serve runs/pruned"),
    (USE, look.evaluate, "evaluate runs/pruned --best --json"),
    (USE, export, "export runs/pruned --int8"),
    (USE, bench, "bench runs/dense runs/pruned runs/pruned/export/model-int8.onnx"),
    (CENTRAL, train, "train --preset ham10000-small --data-dir ~/HAM10000"),
    (CENTRAL, prune, "prune runs/dense --data-dir ~/HAM10000"),
    (DATA, manifest, "manifest ~/clinic"),
    (DATA, audit_split, "audit-split --metadata HAM10000_metadata.csv --split runs/dense/split.json"),
    (DATA, make_split, "make-split --metadata HAM10000_metadata.csv --out sites.csv"),
    (SITES, credentials, "credentials --out pki --host fl.example.org --site site-a"),
    (SITES, review, "review fedskew.fedskew.0-2-0.1a2b3c4d.fab"),
    (SITES, bundle_hash, "bundle-hash"),
    (STUDIES, sweep, "sweep benchmarks/studies/recipe.yaml --out runs/recipe --jobs 2"),
    (STUDIES, reproduce, "reproduce table1 --scale cpu --data-dir ~/HAM10000 --out runs/table1"),
    (STUDIES, table, "table runs/recipe --markdown"),
    (STUDIES, records, "records runs/recipe docs/results/recipe"),
)
for panel, command, example in COMMANDS:
    app.command(rich_help_panel=panel, epilog=f"Example: fedskew {example}")(command)
app.command(
    rich_help_panel=SITES, epilog="Example: fedskew site --superlink fl.example.org:8000 --root-certificates ca.crt",
    context_settings={"allow_extra_args": True, "ignore_unknown_options": True},  # they are another program's
)(site)  # fmt: skip
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
