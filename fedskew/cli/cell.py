"""One run of a sweep, in a process of its own: `fedskew sweep` starts `python -m fedskew.cli.cell`.

Standard input brings one line of JSON, `{"config": …, "nodes": 6, "cores": [0], "plugins": []}`, and stays open. When
it ends, the sweep is no more, and this process ends too: the next sweep would wait for its folder otherwise.
"""

from __future__ import annotations

import json
import os
import sys
import threading
from contextlib import suppress
from pathlib import Path
from typing import Any

from fedskew.errors import ExitCode, FedskewError
from fedskew.plugins import load_plugins

LOCK_SECONDS = 60.0  # a sweep that was killed leaves its runs a moment to notice
ORPHANED = 3  # exit code


def main() -> int:
    """Read the request, run it; the exit code is 0 if the run came to an end, which may be an early one."""
    request = json.loads(sys.stdin.readline())
    threading.Thread(target=end_with_input, args=(sys.stdin.fileno(),), daemon=True).start()
    if request["cores"]:
        os.sched_setaffinity(0, request["cores"])  # before torch counts them
    try:
        load_plugins(request.get("plugins", ()))
        start_or_resume(request["config"], request["nodes"])
    except FedskewError as error:
        print(f"fedskew: {error}", file=sys.stderr)
        return ExitCode.USER
    return 0


def end_with_input(descriptor: int) -> None:
    """End this process, wherever it is, when nothing more can come from a file descriptor."""
    while os.read(descriptor, 1024):  # not through sys.stdin, whose lock the interpreter wants when it ends
        pass
    os._exit(ORPHANED)


def start_or_resume(settings: dict[str, Any], nodes: int) -> None:
    """Run from the last finished round in the run's folder, or from the beginning if it has none.

    Args:
        settings: the resolved configuration, as `to_mapping` makes it; it names the folder.
    """
    from filelock import FileLock, Timeout

    from fedskew.apps import make_client_app
    from fedskew.config.load import from_mapping
    from fedskew.federation.grids import LocalGrid
    from fedskew.federation.server import FederatedRun
    from fedskew.report.observers import observers_of
    from fedskew.runs.folder import RunFolder

    config = from_mapping(settings, "the study")
    folder = RunFolder(Path(config.run.output_dir) / config.run.name)
    (folder.path / "checkpoints").mkdir(parents=True, exist_ok=True)
    with suppress(Timeout), FileLock(folder.path / ".lock", timeout=LOCK_SECONDS):
        pass  # if it stays taken, the run itself says so
    checkpoint = folder.latest() if folder.checkpoints() else None
    grid, observers = LocalGrid(make_client_app(), nodes), observers_of(config)
    FederatedRun(grid, config, folder, checkpoint, observers=observers).run()


if __name__ == "__main__":
    sys.exit(main())
