"""`fedskew train` and `fedskew prune`: training in one place. Heavy imports happen inside the commands."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from fedskew.cli.errors import clear_errors, refuse
from fedskew.cli.vocabulary import (
    DEFAULT_PRESET,
    AsJson,
    ConfigFile,
    DataDir,
    Manifest,
    Name,
    OutputDir,
    Plugins,
    Preset,
    Resume,
    Settings,
    absolute,
    use_plugins,
)

if TYPE_CHECKING:
    from fedskew.config import Config
    from fedskew.runs.central import Asked

ModelPreset = Annotated[
    str,
    typer.Option(
        "--preset", metavar="NAME|FILE", help="Recipe (default: that of the model's run).", show_default=False
    ),
]
ModelBest = Annotated[bool, typer.Option("--best", help="The run's best model, not its last.")]


def train(
    preset: Preset = "",
    data_dir: DataDir = "",
    manifest: Manifest = "",
    set_: Settings = None,
    config: ConfigFile = "",
    output_dir: OutputDir = "",
    name: Name = "",
    resume: Resume = "",
    plugin: Plugins = None,
    as_json: AsJson = False,
) -> None:
    """Train a dense model in one place.

    On all images but the test set's and the held-back ones: no federation.
    """
    from fedskew.runs.central import training_config

    with clear_errors():
        use_plugins(plugin)
        asked = _asked(
            preset if resume else preset or DEFAULT_PRESET, config, set_, data_dir, manifest, output_dir, name
        )
        code = _central(partial(training_config, asked), asked, resume, "train", as_json=as_json)
    raise typer.Exit(code)


def prune(
    model: Annotated[
        Path | None,
        typer.Argument(
            metavar="MODEL",
            help="Run folder, model file, or a timm checkpoint of --set model.name=…",
            show_default=False,
        ),
    ] = None,
    best: ModelBest = False,
    preset: ModelPreset = "",
    data_dir: DataDir = "",
    manifest: Manifest = "",
    set_: Settings = None,
    config: ConfigFile = "",
    output_dir: OutputDir = "",
    name: Name = "",
    resume: Resume = "",
    plugin: Plugins = None,
    as_json: AsJson = False,
) -> None:
    """Prune a trained model: a run's, or a timm checkpoint.

    In one place, as the paper's Algorithm 1: stage by stage, fine-tuning after each.
    """
    from fedskew.runs.central import pruning_config

    if (model is None) == (not resume):
        refuse("give a MODEL to prune, or --resume RUN to go on with a run, and not both")
    with clear_errors():
        use_plugins(plugin)
        asked = _asked(preset, config, set_, data_dir, manifest, output_dir, name)
        place = model / "best" if model and best and model.is_dir() else model
        code = _central(partial(pruning_config, place, asked), asked, resume, "prune", as_json=as_json)
    raise typer.Exit(code)


def _asked(
    preset: str, config: str, set_: list[str] | None, data_dir: str, manifest: str, output_dir: str, name: str
) -> Asked:
    """What the options say, paths absolute."""
    from fedskew.config.load import is_path
    from fedskew.runs.central import Asked

    preset = absolute(preset) if is_path(preset) else preset
    return Asked(preset, absolute(config), " ".join(set_ or []), absolute(data_dir), absolute(manifest),
                 absolute(output_dir or "runs"), name)  # fmt: skip


def _central(configure: Callable[[], Config], asked: Asked, resume: str, command: str, *, as_json: bool) -> int:
    """Start a training in one place, or go on with one; the exit code."""
    from fedskew.apps import simulate, simulate_config
    from fedskew.cli.here import run_here
    from fedskew.cli.terminal import Terminal
    from fedskew.cli.vocabulary import settings_text

    terminal = Terminal(as_json=as_json)
    if resume:
        settings = settings_text([asked.overrides], manifest=asked.manifest)
        values = {"resume": absolute(resume), "config": asked.file, "set": settings, "data-dir": asked.data_dir}
        return run_here(partial(simulate, values, 1), terminal, as_json=as_json, command=command)
    return run_here(lambda: simulate_config(configure(), 1), terminal, as_json=as_json, command=command)
