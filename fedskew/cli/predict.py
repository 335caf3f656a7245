"""`fedskew predict` and `serve`: a model used on pictures. Heavy imports happen inside the commands."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from fedskew.cli.errors import clear_errors, refuse
from fedskew.cli.vocabulary import AsJson, Best, Manifest

if TYPE_CHECKING:
    from fedskew.data.samples import NamedVocabularies
    from fedskew.tools.cases import Case
    from fedskew.tools.metadata import Metadata
    from fedskew.tools.predict import Predictor
    from fedskew.tools.serve import Maps

Model = Annotated[
    Path,
    typer.Argument(metavar="MODEL", help="A run folder, a model file, or an exported .onnx file.", show_default=False),
]
LOADING = "the model is loaded"
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
    """Ask a model about pictures, a folder or a table.

    Probabilities, the decision, and a note where an image is unlike those of training.
    """
    from fedskew.cli.terminal import Terminal, shown
    from fedskew.console import counted
    from fedskew.errors import ExitCode
    from fedskew.tools import answers as answering
    from fedskew.tools.load import load
    from fedskew.tools.metadata import check_learned

    terminal = Terminal(as_json=as_json)
    with clear_errors():
        terminal.status.show(LOADING)
        loaded = load(model, best=best)
        given = _typed({"age": age, "sex": sex, "site": site}, set_metadata or [], loaded.vocabularies)
        check_learned(loaded.vocabularies, given)
        cases, notes = _cases(images, loaded.vocabularies, manifest)
        found = list(counted(answering.answers(loaded, cases, given), len(cases), "images"))
        if csv is not None:
            _write(csv, answering.to_csv(found, loaded.classes))
    failed = [answer for answer in found if answer.prediction is None]
    if loaded.reference is None:
        notes.append("the model does not say what pictures it was trained on, so none is called unlike them")
    if as_json:
        said = {"model": str(model), "classes": list(loaded.classes), "notes": notes}
        terminal.data(said | {"images": answering.to_data(found), "failed": len(failed)})
    elif len(failed) < len(found):
        terminal.result(answering.to_text(found, loaded.classes))
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


def serve(
    model: Model,
    port: Annotated[int, typer.Option(min=0, max=65535, help="0: any that is free.")] = 8808,
    host: Annotated[str, typer.Option(metavar="ADDRESS", help="Other than loopback only with --expose.")] = "127.0.0.1",
    expose: Annotated[
        bool, typer.Option("--expose", help="Let other machines ask: no password, no encryption.")
    ] = False,
    best: Best = False,
) -> None:
    """Ask a model on a page in the browser; nothing is stored.

    Probabilities, and where its most skewed heads look.
    """
    from fedskew.cli.terminal import Terminal
    from fedskew.tools.load import load
    from fedskew.tools.serve import Page, bind, is_loopback, make_app
    from fedskew.tools.serve import serve as answer

    terminal = Terminal()
    with clear_errors():
        if not (is_loopback(host) or expose):
            refuse(
                f"--host {host} lets every machine that reaches it send pictures, without a password and unencrypted. "
                "Add --expose if that is meant; to use the page from elsewhere, `ssh -L` is safer (docs/predict.md)"
            )
        listening = bind(host, port)
        terminal.status.show(LOADING)
        loaded = load(model, best=best)
    if expose and not is_loopback(host):
        terminal.message(f"fedskew: warning: {host} is reached by other machines, without a password and unencrypted")
    name = f"{model.resolve().parent.name}/{model.name}" if model.is_file() else model.resolve().name
    place = "the machine that serves this page, unencrypted" if expose else "this machine"
    page = Page(name, place, exposed=expose, maps=_maps(loaded))
    number = listening.getsockname()[1]
    terminal.result(f"http://{f'[{host}]' if ':' in host else host}:{number}")
    terminal.message(f"fedskew: {NOT_A_DEVICE}; Ctrl-C ends the page")
    answer(make_app(loaded, page), listening)


def _maps(loaded: Predictor) -> Maps | None:
    """Norm maps of a model that can be looked into; imports torch for those alone."""
    if not hasattr(loaded, "module"):
        return None
    from fedskew.tools.norm_maps import page_maps

    return partial(page_maps, loaded)
