"""`fedskew site`, `review` and `bundle-hash`: which app a hospital runs. Heavy imports happen inside the commands."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from fedskew.cli.errors import clear_errors, refuse
from fedskew.cli.vocabulary import AsJson


def site(context: typer.Context) -> None:
    """Start a hospital's SuperNode, which runs approved apps only.

    Takes `flower-supernode`'s arguments; runs only bundles that the policy pins.
    """
    from fedskew.flower import FlowerError
    from fedskew.site.guard import GuardError, run_site
    from fedskew.site.policy import PolicyError

    try:  # no `clear_errors`: what the SuperNode logs goes where Flower's lines go
        run_site(context.args)
    except (GuardError, PolicyError, FlowerError) as error:
        refuse(str(error), error)


def review(
    bundle: Annotated[Path, typer.Argument(help="The offered app: a .fab file (`flwr build` writes it) or a folder.")],
    approved: Annotated[
        Path | None,
        typer.Option(help="The approved one: a .fab file or a folder (default: this checkout).", show_default=False),
    ] = None,
    diff: Annotated[bool, typer.Option(help="Show the lines that differ.")] = True,
    as_json: AsJson = False,
) -> None:
    """Show how an offered app differs from the approved one.

    Exit code 1 if it does.
    """
    from json import dumps

    from fedskew.cli.flower import app_directory
    from fedskew.ops.review import read_bundle, to_data, to_lines
    from fedskew.ops.review import review as compare

    with clear_errors():
        ours = read_bundle((approved or app_directory()).resolve())
        found = compare(ours, read_bundle(bundle.resolve()))
    typer.echo(dumps(to_data(found), indent=2) if as_json else "\n".join(to_lines(found, diff=diff)))
    raise typer.Exit(int(not found.same))


def bundle_hash(
    app_folder: Annotated[
        Path | None, typer.Argument(help="Folder of a Flower app (default: this checkout).", show_default=False)
    ] = None,
) -> None:
    """Print the hash of the app, for the sites' policies.

    The SHA-256 of the bundle that `flwr run` sends: sites pin it as app-hashes.
    """
    from fedskew.cli.flower import app_directory
    from fedskew.ops.bundle import bundle_hash as hash_of

    with clear_errors():
        typer.echo(hash_of((app_folder or app_directory()).resolve()))
