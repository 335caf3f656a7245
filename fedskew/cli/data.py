"""`fedskew manifest`: draft the file that says what the columns of one's own table mean."""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import Annotated

import typer

from fedskew.cli.errors import clear_errors, refuse
from fedskew.text import printable_lines


def manifest(
    directory: Annotated[Path, typer.Argument(help="Folder (or archive) with the table and the images.")],
    out: Annotated[Path | None, typer.Option(help="File to write (default: manifest.yaml in the folder).")] = None,
) -> None:
    """Draft the manifest.yaml of a folder of your own images.

    From its tables and images, for you to check; never overwrites a file.
    """
    from fedskew.cli.terminal import Terminal
    from fedskew.data.draft import draft_manifest
    from fedskew.data.manifest import MANIFEST_NAME, load_manifest
    from fedskew.data.samples import DataError
    from fedskew.data.sources import open_source

    directory = directory.expanduser().resolve()
    target = (out or (directory if directory.is_dir() else directory.parent) / MANIFEST_NAME).expanduser().resolve()
    with clear_errors():
        if target.exists():
            raise DataError(f"{target} is there already and stays as it is; name another file with --out, or remove it")
        text = draft_manifest(directory)
    try:
        with target.open("x", encoding="utf-8") as file:
            file.write(text)
    except OSError as error:
        refuse(f"{target} cannot be written: {error.strerror or error}; name another file with --out", error)
    typer.echo(f"drafted {target}: check every line")
    try:
        source = open_source(directory, manifest=load_manifest(target))
        typer.echo(f"read with it: {len(source.samples)} images, {len(source.missing)} of them without a file")
        for note in source.notes:
            typer.echo(printable_lines(f"note: {note}"))
        for line in source.warnings:
            typer.echo(printable_lines(f"warning: {line}"))
    except DataError as error:
        typer.echo(printable_lines(f"still to be settled: {error}"))
    elsewhere = f" --manifest {shlex.quote(str(target))}" if target != directory / MANIFEST_NAME else ""
    Terminal().next_step(f"fedskew doctor data --data-dir {shlex.quote(str(directory))}{elsewhere}")
