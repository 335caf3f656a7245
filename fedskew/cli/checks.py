"""What cannot work on this machine, said before a SuperLink is started for it."""

from __future__ import annotations

import os

from fedskew.cli.flower import SIMULATION, RunRequest
from fedskew.config import Config
from fedskew.errors import FedskewError
from fedskew.model.pretrained import check_pretrained
from fedskew.runs.start_checks import check_enough_nodes, check_place, check_settings, check_tables


class MachineError(FedskewError, RuntimeError):
    """A request that this machine cannot serve; names the option and the remedy."""


def check_simulated(config: Config, nodes: int) -> None:
    """Refuse what no simulation of so many nodes can do.

    Raises:
        MachineError: every node is to read data of its own, which simulated ones have not.
        ConfigError: more nodes are to take part than there are.
    """
    if config.data.clients == "own":
        raise MachineError(
            f"preset {config.preset} has data.clients=own: every node reads the data-dir of its own configuration, and "
            "simulated nodes have none. Let them share one data set, with --set data.clients=partition and --data-dir, "
            "or run on the SuperLink of your sites: fedskew run --connection NAME (docs/deployment.md)"
        )
    check_enough_nodes(config, nodes)


def check_start(config: Config) -> None:
    """Refuse in this process what the server would only refuse once a SuperLink was started for it: a minute later.

    Raises:
        ConfigError, TrainingError, DataError, RunFolderError: see `check_settings`, `check_place` and `check_tables`.
    """
    check_place(config, check_settings(config))
    check_pretrained(config.model)
    check_tables(config)


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
