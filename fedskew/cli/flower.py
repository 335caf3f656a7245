"""What `fedskew` does with Flower's own commands: connection, programs, the command of a run."""

from __future__ import annotations

import os
import shlex
import shutil
import sys
import sysconfig
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path

from fedskew.cli.errors import refuse
from fedskew.config import Config, load_config

SIMULATION = "local-simulation"
CONNECTION = '\n[superlink.local-simulation]\naddress = ":local:"\n'
SWITCH = "FLWR_DISABLE_RUNTIME_DEPENDENCY_INSTALLATION"
# What every Python process of this environment does first. Programs that Flower starts by name lie beside it.
PTH = (
    "import os, sys; "
    f'os.environ.setdefault("{SWITCH}", "1"); '
    "(lambda own, path: own in path.split(os.pathsep) or "
    'os.environ.__setitem__("PATH", os.pathsep.join(filter(None, [path, own]))))'
    '(os.path.dirname(sys.executable), os.environ.get("PATH", ""))\n'
)
WITHOUT_CHECKOUT = (
    "this installation of fedskew has no checkout, and `flwr run` bundles the app from one: `fedskew run` and "
    "`fedskew bundle-hash` need it (clone the repository, `make install` there). Everything else works here: "
    "`fedskew simulate` runs the same federation in one process; compare, plot, evaluate, plan, focus and options read "
    "run folders; `fedskew site` and `fedskew doctor` serve a hospital"
)


@dataclass(frozen=True)
class RunRequest:
    """What a person asked `fedskew run` for; `values` is the run configuration, its paths absolute."""

    values: Mapping[str, str]
    nodes: int
    cpus: int
    gpus: float
    connection: str


def flower_home() -> Path:
    """Flower's folder: `$FLWR_HOME`, by default `~/.flwr`."""
    return Path(os.environ.get("FLWR_HOME") or Path.home() / ".flwr").expanduser()


def register_connection() -> str:
    """Add `local-simulation` to Flower's configuration; everything that is there stays as it is."""
    from fedskew.flower import init_flwr_config, read_flower_config

    init_flwr_config()
    path = flower_home() / "config.toml"
    if SIMULATION in read_flower_config()[0].get("superlink", {}):
        return f"connection {SIMULATION}: already in {path}"
    with path.open("a", encoding="utf-8") as file:
        file.write(CONNECTION)
    return f"connection {SIMULATION}: added to {path}"


def use_installed_packages() -> str:
    """Let Flower's programs find each other, and let a SuperLink use the packages of this environment.

    Otherwise Flower installs all dependencies, torch too, into a fresh environment for every run, and `flwr` finds
    `flower-superlink` only where the environment is activated. Both are environment variables; a .pth file sets them
    for every process of this environment.
    """
    path = Path(sysconfig.get_paths()["purelib"]) / "fedskew_flower.pth"
    path.write_text(PTH, encoding="utf-8")
    return f"Flower uses the packages of {sys.prefix} (set {SWITCH}=0 to install per run, or delete {path})"


def app_directory() -> Path:
    """The Flower app that this package belongs to; ends the command if it was not installed from a checkout."""
    path = Path(__file__).resolve().parents[2]
    return path if (path / "clientapp.py").is_file() else refuse(WITHOUT_CHECKOUT)


def flower_command(request: RunRequest, run_name: str) -> list[str]:
    """The `flwr run` command of a request."""
    from fedskew.ops.supervise import run_config_text

    values = named(request.values, run_name)
    command = ["flwr", "run", str(app_directory()), request.connection, "--stream", "-c", run_config_text(values)]
    federation = federation_config(request)
    return [*command, "--federation-config", federation] if federation else command


def federation_config(request: RunRequest) -> str:
    """What Flower is to simulate; empty for a connection to real nodes."""
    if request.connection != SIMULATION:
        return ""
    federation = f"num-supernodes={request.nodes} client-resources-num-cpus={request.cpus}"
    return federation + (f" client-resources-num-gpus={request.gpus}" if request.gpus else "")


def named(values: Mapping[str, str], run_name: str) -> dict[str, str]:
    """The run configuration with the name of the run folder, unless it resumes one."""
    name = f"run.name={run_name}"
    if values.get("resume") or name in shlex.split(values["set"]):
        return dict(values)
    return {**values, "set": f"{values['set']} {shlex.quote(name)}".strip()}


def config_of(values: Mapping[str, str]) -> Config:
    """The configuration of a new run, or the one to resume a run with.

    Raises:
        ConfigError, RunFolderError: see `load_config` and `resume_config`.
    """
    if values.get("resume"):
        from fedskew.runs.resume import resume_config

        return resume_config(Path(values["resume"]), file=values["config"], overrides=values["set"])
    config = load_config(values["preset"], file=values["config"], overrides=values["set"])
    data = replace(config.data, dir=values["data-dir"], source="folder") if values.get("data-dir") else config.data
    return replace(config, data=data, run=replace(config.run, output_dir=values["output-dir"]))


def folder_of(values: Mapping[str, str]) -> Path:
    """The run folder that a request resumes, or that its new run will have.

    Raises:
        ConfigError: see `load_config`.
        RunFolderError: the name that was chosen is taken.
    """
    from fedskew.runs.resume import planned_folder

    return Path(values["resume"]) if values.get("resume") else planned_folder(config_of(values))


def nodes_of(values: Mapping[str, str], asked: int | None, connection: str) -> int:
    """How many nodes to simulate; see `node_count`. Nodes that are real ones are not counted."""
    from fedskew.runs.resume import node_count

    return node_count(values.get("resume", "") if connection == SIMULATION else "", asked)


def done_message(request: RunRequest) -> str:
    """What a person is told whose request resumes a run that has nothing left to do; empty if there is something.

    Raises:
        RunFolderError, ConfigError: see `resume_config`. Elsewhere than here the run folder need not be visible.
    """
    from fedskew.runs.folder import CONFIG
    from fedskew.runs.resume import finished_message, is_finished, resume_config

    folder = Path(request.values.get("resume", ""))
    if not request.values.get("resume") or (request.connection != SIMULATION and not (folder / CONFIG).is_file()):
        return ""
    config = resume_config(folder, file=request.values["config"], overrides=request.values["set"])
    return finished_message(folder, config) if is_finished(folder, config) else ""


def flwr_program() -> tuple[str, dict[str, str]]:
    """Path of the command `flwr` of this environment, and the environment variables to call it with."""
    flwr = Path(sys.executable).with_name("flwr")
    search = f"{flwr.parent}{os.pathsep}{os.environ.get('PATH', '')}"
    environment = {SWITCH: "1", "FLWR_TELEMETRY_ENABLED": "0", **os.environ, "PATH": search, "PYTHONUNBUFFERED": "1"}
    return str(flwr) if flwr.is_file() else shutil.which("flwr") or "flwr", environment
