"""What runs leave on this machine, and `fedskew stop`: the SuperLink of a bare `flwr run`, and what was killed."""

from __future__ import annotations

import os
import shutil
from contextlib import suppress
from itertools import pairwise
from pathlib import Path

import psutil
from filelock import FileLock, Timeout

from fedskew.cli.flower import flower_home
from fedskew.cli.superlink import LOCK, LOG, PREFIX, homes_directory, is_healthy
from fedskew.ops.processes import end_processes, processes_of


def stop_leftovers() -> list[str]:
    """End what a bare `flwr run` of this account and Flower home left, and what a killed `fedskew run` left; in words.

    Everything else is left alone: runs of `fedskew run` that are going on, SuperLinks of other accounts and homes.
    """
    said = []
    for process in local_superlinks():
        family = [*process.children(recursive=True), process]
        busy = any(_is_program(member, "flwr-simulation") for member in family)
        left = end_processes(lambda family=family: family)
        said.append(f"stopped the local SuperLink of {flower_home()} (process {process.pid})" + ", and its run" * busy)
        said += [f"process {member.pid} does not end" for member in left]
    for home in abandoned_homes():
        count = len(processes_of(home))
        end_processes(lambda home=home: processes_of(home))
        shutil.rmtree(home, ignore_errors=True)
        said.append(f"cleared up after a `fedskew run` that was killed ({home}, {count} processes)")
    if not said:
        said.append(f"no local SuperLink of {flower_home()} is running")
    if port := _answering_port():
        said.append(f"port {port} is answered by a SuperLink that was not started from there: it is left alone")
    return said


def local_superlinks() -> list[psutil.Process]:
    """The SuperLink that `flwr run` started for this account and Flower home, if it is running."""
    own, log = psutil.Process().uids().effective, (flower_home() / "local-superlink" / LOG).resolve()
    found = []
    for process in psutil.process_iter():
        try:
            command = process.cmdline() if process.uids().effective == own else []
        except psutil.Error:  # it has ended, or belongs to somebody else
            continue
        logs = [Path(word) for option, word in pairwise(command) if option == "--log-file"]
        if any(Path(word).name == "flower-superlink" for word in command[:2]) and log in map(Path.resolve, logs):
            found.append(process)
    return found


def abandoned_homes() -> list[Path]:
    """Homes of `OwnSuperLink`s of this account whose command was killed: nobody holds their lock."""
    found = []
    for home in Path(homes_directory()).glob(f"{PREFIX}*"):
        with suppress(FileNotFoundError, Timeout):  # its command is just removing it, or is at work in it
            if home.stat().st_uid == os.geteuid() and (home / LOCK).is_file():
                with FileLock(home / LOCK, timeout=0):
                    found.append(home.resolve())
    return found


def _answering_port() -> str:
    """Flower's port for local SuperLinks if one answers there, whoever started it; else nothing."""
    from fedskew.flower import LOCAL_SUPERLINK_HTTP_API_PORT

    return LOCAL_SUPERLINK_HTTP_API_PORT if is_healthy(LOCAL_SUPERLINK_HTTP_API_PORT) else ""


def _is_program(process: psutil.Process, name: str) -> bool:
    try:
        return any(Path(word).name == name for word in process.cmdline()[:2])
    except psutil.Error:
        return False
