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
        typer.Option(min=0, max=255, metavar="BITS", help="Of 256, up to which two look alike.", show_default="28"),
    ] = None,
    part_column: Annotated[str, typer.Option(metavar="NAME", help="Column of the parts.", show_default=False)] = "",
    ignore_unknown: Annotated[
        bool, typer.Option("--ignore-unknown", help="Leave out images that the metadata do not tell of.")
    ] = False,
    as_json: AsJson = False,
) -> None:
    """Does a split leak lesions, patients or copies?

    Whether any is in several parts. Exit code 0: no, 1: yes, 2: bad input.
    """
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


def make_split(
    metadata: Annotated[Path, typer.Option(metavar="CSV", help="Table with image_id, lesion_id and dataset.")],
    out: Annotated[Path, typer.Option(metavar="FILE", help="CSV of image and part to write.")],
    test: Annotated[float, typer.Option(min=0.01, max=0.99, help="Share of the lesions that test.")] = 0.2,
    images: Annotated[
        Path | None,
        typer.Option(metavar="DIR", help="Keep lesions together whose images look alike.", show_default=False),
    ] = None,
    together: Annotated[
        list[str] | None,
        typer.Option(metavar="A=B", help="Two images that show one lesion; repeatable.", show_default=False),
    ] = None,
) -> None:
    """Write a split by institution that does not leak.

    Train and test of each; no lesion or patient is in two parts.
    """
    import hashlib

    from fedskew.cli.terminal import Terminal, shown
    from fedskew.data.audit import look_alikes
    from fedskew.data.perceptual import THRESHOLD
    from fedskew.data.site_split import class_table, image_pairs, read_rows, site_split, split_csv
    from fedskew.files import write_bytes

    terminal = Terminal()
    with clear_errors():
        rows = read_rows(metadata)
        given = image_pairs(together or [], rows)
        alone = [(row.image, row.group) for row in rows]  # every lesion a part: what looks alike across lesions
        pairs = [pair.images for pair in look_alikes(images, alone, THRESHOLD)[0]] if images else []
        split = site_split(rows, test=test, together=[*given, *pairs])
        content = split_csv(split).encode()
        write_bytes(out, content)
    for a, b in pairs:
        terminal.message(f"kept together, as they look alike: {a} and {b}")
    for part, counts in class_table(rows, split).items():
        terminal.result(f"{part}: {counts.total()} ({', '.join(f'{name} {n}' for name, n in sorted(counts.items()))})")
    terminal.result(f"{shown(out)}: {len(split)} images, SHA-256 {hashlib.sha256(content).hexdigest()}")
    terminal.next_step(f"fedskew audit-split --metadata {shown(metadata)} --split {shown(out)}")
