"""The words that the commands share: each option is called, documented and read the same way everywhere."""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import Annotated

import typer

DEFAULT_PRESET = "demo"


def _preset_names(typed: str) -> list[str]:
    from fedskew.config.load import preset_names

    return [name for name in preset_names() if name.startswith(typed)]


Run = Annotated[Path, typer.Argument(metavar="RUN", help="Run folder.", show_default=False)]
Preset = Annotated[
    str,
    typer.Option(
        metavar="NAME|FILE",
        help="Name of a preset in conf/, or path of a YAML file.",
        show_default=DEFAULT_PRESET,
        autocompletion=_preset_names,
    ),  # empty, so that one that was given can be told from the default
]
ConfigFile = Annotated[
    str,
    typer.Option("--config", metavar="FILE", help="Your own YAML file; it wins over the preset.", show_default=False),
]
Settings = Annotated[
    list[str] | None,
    typer.Option(
        "--set", metavar="KEY=VALUE", help="section.key=value; repeatable, or several in quotes.", show_default=False
    ),
]
DataDir = Annotated[str, typer.Option(metavar="DIR", help="Folder or archive of the data set.", show_default=False)]
RunsData = Annotated[
    str,
    typer.Option(
        "--data-dir", metavar="DIR", help="Folder or archive of the data set (default: the run's).", show_default=False
    ),
]
Manifest = Annotated[
    str,
    typer.Option(metavar="FILE", help="YAML that maps the columns and labels of your own table.", show_default=False),
]
OutputDir = Annotated[
    str,
    typer.Option(metavar="DIR", help="Folder in which the run folder is made (default: ./runs).", show_default=False),
]
Name = Annotated[
    str,
    typer.Option(
        metavar="NAME", help="Name of the run folder (default: date, preset, method, seed).", show_default=False
    ),
]
Resume = Annotated[
    str, typer.Option(metavar="RUN", help="Run folder to go on with, from its last finished round.", show_default=False)
]
Nodes = Annotated[
    int | None,
    typer.Option(
        min=1, metavar="N", help="Simulated hospitals (default: 4; resuming: as many as before).", show_default=False
    ),
]
Plugins = Annotated[
    list[Path] | None,
    typer.Option(
        "--plugin", metavar="FILE", help="Python file with a criterion, method or preset of your own; repeatable.",
        show_default=False,
    ),
]  # fmt: skip
Best = Annotated[bool, typer.Option("--best", help="The best round by the run's metric, not the last.")]
AsJson = Annotated[bool, typer.Option("--json", help="JSON to standard output, for programs.")]


def absolute(path: str | Path) -> str:
    """A path that means the same in every directory, as Flower's apps run in another; empty if it is empty."""
    return str(Path(path).expanduser().resolve()) if str(path) else ""


def use_plugins(files: list[Path] | None = None) -> None:
    """Load plugins before a configuration is read: of installed packages, of this checkout's app, and those given.

    Raises:
        PluginError: one cannot be loaded.
    """
    from fedskew.plugins import load_plugins

    app = Path(__file__).resolve().parents[2]
    load_plugins(files or (), app=app if (app / "clientapp.py").is_file() else None)


def refuse_plugins(files: list[Path] | None) -> None:
    """Raise `PluginError` if a command whose run travels to other machines is given a plugin of this one."""
    from fedskew.plugins import PluginError

    if files:
        raise PluginError(
            f"--plugin {files[0]}: `fedskew run` starts what hospitals run, and the hash that they approve must cover "
            f"it. Put the file into plugins/ beside clientapp.py, from where it is shipped; `fedskew simulate` takes it"
        )


def settings_text(settings: list[str] | None, *, manifest: str = "", name: str = "") -> str:
    """All of a command's settings as one text, as `set` in Flower's run configuration takes it."""
    given = {"data.manifest": absolute(manifest) if manifest else "", "run.name": name}
    own = [shlex.quote(f"{key}={value}") for key, value in given.items() if value]
    return " ".join([*(settings or []), *own])


def run_values(preset: str, config: str, settings: str, data_dir: str, output_dir: str, resume: str) -> dict[str, str]:
    """The run configuration of `run` and `simulate`: Flower's declared keys, paths absolute.

    Args:
        preset: empty if none was given.
        settings: see `settings_text`.

    Raises:
        ConfigError: see `load_config`, or a preset is given to a run that is resumed.
    """
    from fedskew.config import ConfigError, load_config
    from fedskew.config.load import is_path

    values = {"config": absolute(config), "set": settings, "data-dir": absolute(data_dir)}
    if resume and preset:
        raise ConfigError(
            f"--preset {preset} with --resume {resume}: a resumed run goes on with its own configuration, which a "
            "preset cannot replace. Leave --preset out, or start a new run"
        )
    if resume:
        return {"resume": absolute(resume), **values}
    preset = absolute(preset) if is_path(preset) else preset or DEFAULT_PRESET
    configured = load_config(preset, file=values["config"], overrides=settings).run.output_dir
    return {"preset": preset, **values, "output-dir": absolute(output_dir or configured or "runs")}
