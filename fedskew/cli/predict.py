"""`fedskew predict` and `serve`: a model used on pictures. Heavy imports happen inside the commands."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from fedskew.cli.errors import clear_errors, refuse
from fedskew.cli.vocabulary import AsJson, Best, Manifest

if TYPE_CHECKING:
    from fedskew.data.samples import NamedVocabularies
    from fedskew.tools.cases import Case
    from fedskew.tools.metadata import Metadata

Model = Annotated[
    Path,
    typer.Argument(metavar="MODEL", help="A run folder, a model file, or an exported .onnx file.", show_default=False),
]
NOT_A_DEVICE = "research software, not a medical device"


def predict(
    model: Model,
    images: Annotated[
        list[Path],
        typer.Argument(metavar="IMAGE…", help="Images, folders, archives, or tables of images.", show_default=False),
    ],
    age: Annotated[str, typer.Option(metavar="YEARS", help="Age in years.", show_default=False)] = "",
    sex: Annotated[str, typer.Option(metavar="SEX", help="female or male.", show_default=False)] = "",
    site: Annotated[
        str, typer.Option(metavar="SITE", help="Body site, such as back or 'lower extremity'.", show_default=False)
    ] = "",
    set_metadata: Annotated[
        list[str] | None,
        typer.Option(metavar="NAME=VALUE", help="A column of the model's own; repeatable.", show_default=False),
    ] = None,
    manifest: Manifest = "",
    csv: Annotated[
        Path | None, typer.Option("--csv", metavar="FILE", help="Write a table, one row an image.", show_default=False)
    ] = None,
    best: Best = False,
    as_json: AsJson = False,
) -> None:
    """Say what a model takes images for: probabilities, the decision, and where an image is unlike its training's."""
    from fedskew.cli.terminal import Terminal, counted, shown
    from fedskew.errors import ExitCode
    from fedskew.tools import answers as answering
    from fedskew.tools.load import load
    from fedskew.tools.metadata import check_learned

    terminal = Terminal(as_json=as_json)
    with clear_errors():
        loaded = load(model, best=best)
        given = _typed({"age": age, "sex": sex, "site": site}, set_metadata or [], loaded.vocabularies)
        check_learned(loaded.vocabularies, given)
        cases, notes = _cases(images, loaded.vocabularies, manifest)
        found = list(counted(answering.answers(loaded, cases, given), len(cases), "images", terminal.status))
        if csv is not None:
            _write(csv, answering.to_csv(found, loaded.classes))
    failed = [answer for answer in found if answer.prediction is None]
    if as_json:
        said = {"model": str(model), "classes": list(loaded.classes), "notes": notes}
        terminal.data(said | {"images": answering.to_data(found), "failed": len(failed)})
    elif len(failed) < len(found):
        terminal.result(answering.to_text(found, loaded.classes))
    if loaded.reference is None:
        notes.append("the model does not say what pictures it was trained on, so none is called unlike them")
    for line in (*notes, *(f"{answer.image}: {answer.error}" for answer in failed)):
        terminal.message(f"fedskew: {line}")
    if failed:
        raise typer.Exit(ExitCode.FAILED if len(failed) < len(found) else ExitCode.USER)
    if not as_json:
        terminal.message(f"fedskew: {NOT_A_DEVICE}")
        terminal.next_step(f"fedskew serve {shown(model)}")


def _typed(values: dict[str, str], more: list[str], vocabularies: NamedVocabularies) -> dict[str, Metadata]:
    """The metadata of the command line by the names of the model's columns."""
    from fedskew.data.samples import DataError
    from fedskew.tools.metadata import named

    metadata: dict[str, Metadata] = {}
    for word in more:
        name, equals, value = word.partition("=")
        if not equals or name in metadata:
            raise DataError(f"--set-metadata {word!r}: expected NAME=VALUE, each name once")
        metadata[name] = value
    return named(vocabularies, metadata, {name: value for name, value in values.items() if value})


def _cases(places: list[Path], vocabularies: NamedVocabularies, manifest: str) -> tuple[list[Case], list[str]]:
    from fedskew.tools.cases import find_cases

    cases: list[Case] = []
    notes: list[str] = []
    for place in places:
        more, said = find_cases(place, vocabularies, Path(manifest) if manifest else None)
        cases, notes = cases + more, notes + said
    return cases, notes


def _write(path: Path, text: str) -> None:
    from fedskew.files import write_bytes

    try:
        write_bytes(path, text.encode())
    except OSError as error:
        refuse(f"--csv {path} cannot be written: {error.strerror or error}", error)
