"""What cannot work on this machine, said before a SuperLink is started for it."""

from __future__ import annotations

import os
import sys
from pathlib import Path

from fedskew.cli.flower import SIMULATION, RunRequest, flower_home, local_superlinks
from fedskew.config import Config

PROBE_SECONDS = 1.0


class MachineError(RuntimeError):
    """A request that this machine cannot serve; names the option and the remedy."""


def check_simulated(config: Config) -> None:
    """Raise `MachineError` if every node is to read data of its own, which simulated ones have not."""
    if config.data.clients == "own":
        raise MachineError(
            f"preset {config.preset} has data.clients=own: every node reads the data-dir of its own configuration, and "
            "simulated nodes have none. Let them share one data set, with --set data.clients=partition and --data-dir, "
            "or run on the SuperLink of your sites: fedskew run --connection NAME (docs/deployment.md)"
        )


def check_machine(request: RunRequest) -> None:
    """Raise `MachineError` if a simulated node wants more than there is: Flower would wait for it without end."""
    if request.connection != SIMULATION:
        return
    cores = os.cpu_count() or 1
    if request.cpus > cores:
        raise MachineError(
            f"--cpus {request.cpus}, but this machine has {cores} CPU cores: give --cpus {cores} or less"
        )
    if request.gpus:
        _check_gpus(request.gpus)


def _check_gpus(share: float) -> None:
    import torch

    found = torch.cuda.device_count() if torch.cuda.is_available() else 0
    if not found:
        raise MachineError(
            f"--gpus {share:g}, but torch {torch.__version__} finds no GPU here: leave --gpus out to train on the CPU, "
            "or see `fedskew doctor coordinator` for what is missing"
        )
    if share > found:
        raise MachineError(
            f"--gpus {share:g}, but there are {found}: give {found} or less (0.25: four nodes share one)"
        )


def check_superlink() -> None:
    """Raise `MachineError` if another SuperLink than this installation's would take the run."""
    own = local_superlinks()
    for process in own:
        programs = Path(process.info["cmdline"][0]).parent.resolve()
        if programs != Path(sys.executable).parent.resolve():
            raise MachineError(
                f"the local SuperLink (process {process.pid}) was started by another installation, {programs}, and "
                "would run with its packages: `fedskew stop` ends it"
            )
    if not own and (port := _answering_port()):
        raise MachineError(
            f"a SuperLink that was not started from {flower_home()} answers on port {port} and would take the run: "
            "stop it, or choose other ports with FLWR_LOCAL_SUPERLINK_HTTP_API_PORT and FLWR_LOCAL_CONTROL_API_PORT"
        )


def _answering_port() -> str:
    """Flower's port for local SuperLinks if one answers there, whoever started it; else nothing."""
    import httpx
    from flwr.cli.constant import LOCAL_SUPERLINK_HTTP_API_PORT

    try:
        answered = httpx.get(f"http://127.0.0.1:{LOCAL_SUPERLINK_HTTP_API_PORT}/health", timeout=PROBE_SECONDS)
    except httpx.HTTPError:
        return ""
    return LOCAL_SUPERLINK_HTTP_API_PORT if answered.is_success else ""
