"""What `fedskew` does with Flower's own commands: connection, run, stop."""

from __future__ import annotations

import json
import os
import shlex
import shutil
import subprocess
import sys
import sysconfig
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path

import psutil

from fedskew.config import load_config
from fedskew.ops.supervise import FlowerCommands, run_config_text, supervise
from fedskew.runs.folder import CONFIG, SUMMARY, summary_time
from fedskew.runs.report import summary_text
from fedskew.runs.resume import finished_message, is_finished, node_count, planned_folder, resume_config

SIMULATION = "local-simulation"
CONNECTION = '\n[superlink.local-simulation]\naddress = ":local:"\n'
SWITCH = "FLWR_DISABLE_RUNTIME_DEPENDENCY_INSTALLATION"


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
    from flwr.cli.flower_config import init_flwr_config, read_flower_config

    init_flwr_config()
    path = flower_home() / "config.toml"
    if "local-simulation" in read_flower_config()[0].get("superlink", {}):
        return f"connection local-simulation: already in {path}"
    with path.open("a", encoding="utf-8") as file:
        file.write(CONNECTION)
    return f"connection local-simulation: added to {path}"


def use_installed_packages() -> str:
    """Let a SuperLink started from this environment use its packages.

    Otherwise Flower installs all dependencies, torch too, into a fresh environment for every run. The switch is an
    environment variable; a .pth file sets its default for every process of this environment.
    """
    path = Path(sysconfig.get_paths()["purelib"]) / "fedskew_flower.pth"
    path.write_text(f'import os; os.environ.setdefault("{SWITCH}", "1")\n', encoding="utf-8")
    return f"Flower uses the packages of {sys.prefix} (set {SWITCH}=0 to install per run, or delete {path})"


def app_directory() -> Path:
    """The Flower app that this package belongs to.

    Raises:
        SystemExit: the package was not installed from a checkout.
    """
    path = Path(__file__).resolve().parents[2]
    if not (path / "clientapp.py").is_file():
        sys.exit(
            f"fedskew: {path} is no checkout of fedskew. `flwr run` bundles the app from one: "
            "clone the repository and `make install` there."
        )
    return path


def flower_command(request: RunRequest, run_name: str) -> list[str]:
    """The `flwr run` command of a request."""
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
    if values.get("resume"):
        return dict(values)
    return {**values, "set": f"{values['set']} run.name={shlex.quote(run_name)}".strip()}


def folder_of(values: Mapping[str, str]) -> Path:
    """The run folder that a request resumes, or that its new run will have.

    Raises:
        ConfigError: see `load_config`.
        RunFolderError: the name that was chosen is taken.
    """
    if values.get("resume"):
        return Path(values["resume"])
    config = load_config(values["preset"], file=values["config"], overrides=values["set"])
    return planned_folder(replace(config, run=replace(config.run, output_dir=values["output-dir"])))


def nodes_of(values: Mapping[str, str], asked: int | None, connection: str) -> int:
    """How many nodes to simulate; see `node_count`. Nodes that are real ones are not counted."""
    return node_count(values.get("resume", "") if connection == SIMULATION else "", asked)


def is_done(request: RunRequest) -> bool:
    """Whether a request resumes a run that has nothing left to do; says so.

    Raises:
        RunFolderError, ConfigError: see `resume_config`. Elsewhere than here the run folder need not be visible.
    """
    folder = Path(request.values.get("resume", ""))
    if not request.values.get("resume") or (request.connection != SIMULATION and not (folder / CONFIG).is_file()):
        return False
    config = resume_config(folder, file=request.values["config"], overrides=request.values["set"])
    if is_finished(folder, config):
        print(finished_message(folder, config))
        return True
    return False


def flwr_program() -> tuple[str, dict[str, str]]:
    """Path of the command `flwr` of this environment, and the environment variables to call it with."""
    flwr = Path(sys.executable).with_name("flwr")
    search = f"{flwr.parent}{os.pathsep}{os.environ.get('PATH', '')}"
    environment = {SWITCH: "1", "FLWR_TELEMETRY_ENABLED": "0", **os.environ, "PATH": search}
    return str(flwr) if flwr.is_file() else shutil.which("flwr") or "flwr", environment


def run_with_flower(request: RunRequest, *, dry_run: bool = False, supervised: bool = False) -> int:
    """Run the command and follow it; returns the exit code (Flower's own is 0 even if the run failed).

    Args:
        supervised: start the run again from its last finished round whenever it fails.
    """
    if is_done(request):
        return 0
    folder = folder_of(request.values)
    command = flower_command(request, folder.name)
    print(shlex.join(command), flush=True)
    if dry_run:
        return 0
    command[0], environment = flwr_program()
    if supervised:
        flower = FlowerCommands(
            app_directory(), request.connection, command[0], environment, federation_config(request)
        )
        return supervise(flower, named(request.values, folder.name), folder)
    before = summary_time(folder)  # a run that is resumed may have one
    code = subprocess.run(command, env=environment, check=False).returncode
    if summary_time(folder) == before:
        kept = f"what it saved is in {folder}" if folder.is_dir() else "it left nothing behind"
        print(f"fedskew: the run did not finish; its messages are above, {kept}", file=sys.stderr)
        return code or 1
    print(summary_text(json.loads((folder / SUMMARY).read_text(encoding="utf-8")), folder))
    return code


def stop_local_superlink() -> str:
    """End the SuperLink that `flwr run` started for this Flower home, and what it started."""
    marker = str(flower_home() / "local-superlink" / "superlink.log")
    found = [process for process in psutil.process_iter(["cmdline"]) if _is_superlink(process, marker)]
    if not found:
        return "no local SuperLink is running"
    family = [member for process in found for member in [*process.children(recursive=True), process]]
    for process in family:
        _quietly(process.terminate)
    _, alive = psutil.wait_procs(family, timeout=10)
    for process in alive:
        _quietly(process.kill)
    return f"stopped the local SuperLink (process {', '.join(str(process.pid) for process in found)})"


def _is_superlink(process: psutil.Process, marker: str) -> bool:
    command = process.info["cmdline"] or []
    return marker in command and any("flower-superlink" in word for word in command)


def _quietly(action) -> None:  # noqa: ANN001
    """Signal a process that may have ended by itself meanwhile."""
    try:
        action()
    except psutil.NoSuchProcess:
        return
