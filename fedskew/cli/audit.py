"""`fedskew audit-split`. Heavy imports happen inside the command."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from fedskew.cli.errors import clear_errors
from fedskew.cli.vocabulary import AsJson


def audit_split(
    metadata: Annotated[Path, typer.Option(metavar="CSV", help="Table with image_id and lesion_id, or patient_id.")],
    split: Annotated[
        Path, typer.Option(metavar="FILE", help="CSV of image and part, JSON (a run's split.json), or a folder a part.")
    ],
    images: Annotated[
        Path | None, typer.Option(metavar="DIR", help="Folder or archive: look for copies too.", show_default=False)
    ] = None,
    threshold: Annotated[
        int | None,
        typer.Option(min=0, max=255, metavar="BITS", help="Of 256, up to which two look alike.", show_default="30"),
    ] = None,
    part_column: Annotated[str, typer.Option(metavar="NAME", help="Column of the parts.", show_default=False)] = "",
    ignore_unknown: Annotated[
        bool, typer.Option("--ignore-unknown", help="Leave out images that the metadata do not tell of.")
    ] = False,
    as_json: AsJson = False,
) -> None:
    """Does a split leak: lesions, patients or copies in several parts? Exit code 0: no, 1: yes, 2: bad input."""
    from fedskew.cli.terminal import Terminal
    from fedskew.data.audit import audit, audit_data, audit_text, read_groups
    from fedskew.data.perceptual import THRESHOLD
    from fedskew.data.split_files import read_split_file

    terminal = Terminal(as_json=as_json)
    with clear_errors():
        groups = read_groups(metadata)
        pairs = read_split_file(split, groups, part_column=part_column, ignore_unknown=ignore_unknown)
        found = audit(groups, pairs, images, threshold=THRESHOLD if threshold is None else threshold)
    if as_json:
        terminal.data(audit_data(found, str(split)))
    else:
        terminal.result(audit_text(found, str(split)))
    raise typer.Exit(int(found.leaks))
