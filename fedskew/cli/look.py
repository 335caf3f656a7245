"""`fedskew compare`, `participation`, `plot`, `evaluate`, `plan`, `focus` and `options`.

Heavy imports happen inside the commands.
"""

from __future__ import annotations

import sys
from functools import partial
from pathlib import Path
from shutil import get_terminal_size
from typing import Annotated

import typer

from fedskew.cli.errors import clear_errors
from fedskew.cli.vocabulary import AsJson, Best, Manifest, Plugins, Run, RunsData, Settings, absolute, use_plugins

Runs = Annotated[list[Path], typer.Argument(help="Run folders; the first is what the others are compared with.",
                                            show_default=False)]  # fmt: skip

DATA = "data are read, and decoded when they are new"


def compare(
    runs: Runs,
    best: Best = False,
    markdown: Annotated[bool, typer.Option("--markdown", help="A table for documents.")] = False,
    as_json: AsJson = False,
) -> None:
    """The paper's table of several runs, with paired intervals.

    And paired differences to the first run with 95 % intervals over lesions.
    """
    from fedskew.cli.terminal import Terminal, shown, wrapped
    from fedskew.tools import compare as comparing
    from fedskew.tools import fairness, pairing

    terminal = Terminal(as_json=as_json)
    with clear_errors():
        terminal.status.show("runs are read")
        found = comparing.read_runs(runs, best=best)
        differences, reasons = pairing.paired(found)
        warnings = [*fairness.warnings_of(found), *reasons]
        if as_json:
            terminal.data(comparing.to_data(found) | {
                "differences": pairing.to_data(differences), "different_settings": fairness.different_settings(found),
                "notes": warnings,
            })  # fmt: skip
            return
        table, paired = comparing.comparison(found), pairing.comparison_of(found, differences)
    limit = get_terminal_size().columns if sys.stdout.isatty() else None
    render = comparing.to_markdown if markdown else partial(comparing.to_console, limit=limit)
    explain = str if markdown else wrapped
    parts = [render(table), explain(comparing.LEGEND)]
    parts += [render(paired), explain(pairing.LEGEND)] if paired else []
    terminal.result("\n\n".join(part.strip("\n") for part in parts))
    for line in warnings:
        terminal.message(wrapped(line if line.startswith("  ") else f"fedskew: {line}", indent="    "))
    if not markdown:
        terminal.next_step(f"fedskew plot {' '.join(shown(run) for run in runs)} --out runs.png")


def participation(run: Run, as_json: AsJson = False) -> None:
    """Whose data is in which round, and why others' are not.

    Of every site, whether its update is in the model, and if not why.
    """
    from fedskew.cli.terminal import Terminal, shown
    from fedskew.tools.participation import participation_data, participation_text, read_participation

    terminal = Terminal(as_json=as_json)
    with clear_errors():
        rounds = read_participation(run.resolve())
    if as_json:
        terminal.data(participation_data(run.resolve(), rounds))
    else:
        terminal.result(participation_text(rounds, min(get_terminal_size().columns, 120)))
        terminal.next_step(f"fedskew evaluate {shown(run)}", f"fedskew compare {shown(run)} OTHER-RUN")


def plot(
    runs: Runs,
    out: Annotated[Path, typer.Option(help="Image file; its suffix names the format.")] = Path("runs.png"),
) -> None:
    """Draw how good and how large the model is, round by round."""
    from fedskew.cli.terminal import Terminal, shown
    from fedskew.tools.plot import plot_runs

    terminal = Terminal()
    with clear_errors():
        terminal.status.show("the figure is drawn")
        plot_runs(runs, out)
    terminal.result(str(out.resolve()))
    terminal.next_step(f"fedskew compare {' '.join(shown(run) for run in runs)}")


def evaluate(
    run: Annotated[Path, typer.Argument(help="A run folder, or a model file.", show_default=False)],
    data_dir: RunsData = "",
    manifest: Manifest = "",
    all_: Annotated[bool, typer.Option("--all", help="Every image, no split.")] = False,
    best: Best = False,
    predictions: Annotated[
        Path | None, typer.Option(help="Save what it says of each image: an .npz file.", show_default=False)
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Test a model on its own or another labelled data set."""
    from fedskew.cli.terminal import Terminal, shown
    from fedskew.runs.report import evaluation_text
    from fedskew.tools.evaluate import evaluate_run

    terminal = Terminal(as_json=as_json)
    with clear_errors():
        data = Path(absolute(data_dir)) if data_dir else None
        terminal.status.show(DATA)
        found = evaluate_run(
            run, data, everything=all_, best=best, manifest=absolute(manifest), predictions=predictions
        )
    if as_json:
        terminal.data(found)
        return
    terminal.result(evaluation_text(found))
    if run.is_dir():
        terminal.next_step(f"fedskew plan {shown(run)}", f"fedskew compare {shown(run)} OTHER-RUN")


def plan(
    run: Run,
    data_dir: RunsData = "",
    manifest: Manifest = "",
    set_: Settings = None,
    best: Best = False,
    plugin: Plugins = None,
    as_json: AsJson = False,
) -> None:
    """Show what a pruning step would remove, without removing it."""
    from fedskew.cli.inspect import plan_data, plan_report, plan_text, run_config
    from fedskew.cli.terminal import Terminal, shown

    terminal = Terminal(as_json=as_json)
    with clear_errors():
        use_plugins(plugin)
        terminal.status.show(DATA)
        place = run.resolve()
        config = run_config(place, " ".join(set_ or []), data=absolute(data_dir), manifest=absolute(manifest))
        report = plan_report(place, config, best=best)
    if as_json:
        terminal.data(plan_data(report))
        return
    terminal.result(plan_text(report))
    other = "sign" if config.prune.rule == "share" else "share"
    terminal.next_step(f"fedskew plan {shown(run)} --set prune.rule={other}", "fedskew options prune")


def focus(
    run: Run,
    masks: Annotated[Path, typer.Option(help="Folder or archive of the lesion masks.", show_default=False)],
    data_dir: RunsData = "",
    manifest: Manifest = "",
    images: Annotated[int, typer.Option(min=1, help="Open images to look at.")] = 400,
    best: Best = False,
    as_json: AsJson = False,
) -> None:
    """Test the paper's claim that kept units look at the lesion.

    Do units with skewness > 0 look at it more than the others?
    """
    from fedskew.cli.inspect import focus_report, focus_text, run_config
    from fedskew.cli.terminal import Terminal, shown

    terminal = Terminal(as_json=as_json)
    with clear_errors():
        terminal.status.show(DATA)
        config = run_config(run.resolve(), data=absolute(data_dir), manifest=absolute(manifest))
        found = focus_report(run.resolve(), config, masks.resolve(), images, best=best)
    if as_json:
        terminal.data(found)
    else:
        terminal.result(focus_text(found))
        terminal.next_step(f"fedskew plan {shown(run)}")


def options(
    pattern: Annotated[str, typer.Argument(help="Part of a name or of what it is for.", show_default=False)] = "",
    as_json: AsJson = False,
) -> None:
    """Find a setting: its default, choices, and what it is for."""
    from dataclasses import asdict

    from fedskew.cli.settings import matching, settings_text
    from fedskew.cli.terminal import Terminal

    terminal = Terminal(as_json=as_json)
    with clear_errors():
        found = matching(pattern)
    if as_json:
        terminal.data([asdict(one) for one in found])
        return
    terminal.result(settings_text(found, min(get_terminal_size().columns, 120)))
    terminal.next_step(f"fedskew run --set {found[0].name}=VALUE")
