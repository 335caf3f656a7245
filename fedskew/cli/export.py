"""`fedskew export` and `bench`: a model as a file for a device, and what it costs there."""

from __future__ import annotations

from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

from fedskew.cli.errors import clear_errors, refuse
from fedskew.cli.vocabulary import AsJson, Best, Manifest, RunsData, absolute


class Format(StrEnum):
    """What can be written."""

    onnx = "onnx"


def export(
    run: Annotated[Path, typer.Argument(metavar="RUN|FILE", help="A run folder, or a model file.", show_default=False)],
    format_: Annotated[Format, typer.Option("--format", help="Kind of file.")] = Format.onnx,
    int8: Annotated[bool, typer.Option("--int8", help="Weights in 8 bits: a quarter of the size.")] = False,
    fp16: Annotated[bool, typer.Option("--fp16", help="Numbers in 16 bits: half the size.")] = False,
    out: Annotated[
        Path | None, typer.Option(metavar="FILE", help="The file (default: in export/ beside the model).",
                                  show_default=False),
    ] = None,
    data_dir: RunsData = "",
    manifest: Manifest = "",
    best: Best = False,
    as_json: AsJson = False,
) -> None:  # fmt: skip
    """Write a model as one ONNX file, with a model card.

    Only if it says the same as the model on real images.
    """
    from fedskew.cli.terminal import Terminal, shown
    from fedskew.export import check_installed

    terminal = Terminal(as_json=as_json)
    if int8 and fp16:
        refuse("--int8 and --fp16 make different files: give one of them, then the other")
    with clear_errors():
        check_installed()
        from fedskew.export.export import export_model, export_text

        terminal.status.show("the model and its images are read")
        found = export_model(
            run, precision="int8" if int8 else "fp16" if fp16 else "fp32", out=out, best=best,
            data=Path(absolute(data_dir)) if data_dir else None, manifest=absolute(manifest), say=terminal.status.show,
        )  # fmt: skip
    if as_json:
        terminal.data(found.to_mapping())
        return
    terminal.result(export_text(found))
    terminal.next_step(f"fedskew bench {shown(found.model)} {shown(found.file)}")


def bench(
    models: Annotated[
        list[Path],
        typer.Argument(metavar="MODEL…", help="Run folders, model files, ONNX files; the first is the reference.",
                       show_default=False),
    ],
    rounds: Annotated[int, typer.Option(min=1, help="Turns of every model.")] = 20,
    best: Best = False,
    as_json: AsJson = False,
) -> None:  # fmt: skip
    """Measure what models cost on this machine.

    Latency, throughput, memory and start-up, each in a process of its own, taking turns.
    """
    from fedskew.cli.terminal import Terminal
    from fedskew.export import check_installed

    terminal = Terminal(as_json=as_json)
    with clear_errors():
        check_installed()
        from fedskew.export import bench as benching

        terminal.status.show("models are started")
        rows = benching.bench(benching.model_names(models, best=best), rounds=rounds, say=terminal.status.show)
    if as_json:
        terminal.data(rows)
    else:
        terminal.result(benching.bench_text(rows))
