"""App processes that are forked from one which has Flower and torch imported: tenths of a second of CPU a task.

    cluster.environment["PATH"] = f"{warm_commands(folder)}{os.pathsep}{os.environ['PATH']}"

A SuperNode starts the process of each task by a name on PATH. The command of that name made here hands its arguments to
a process of the same site, which the first task becomes, and which forks one process for each further task. Processes,
their names, messages, tokens and the app that they import from the bundle stay Flower's own; only imports of libraries
are not done again. For tests with hundreds of tasks: a cold start is some five seconds of CPU.
"""

from __future__ import annotations

import json
import os
import signal
import socket
import sys
from collections.abc import Sequence
from contextlib import suppress
from importlib import import_module
from pathlib import Path

APP = "flwr-clientapp"
LIBRARIES = ("flwr.supernode.cli", "torch", "timm.models.swin_transformer", "PIL.Image", "scipy.optimize", "yaml",
             "cryptography.hazmat.primitives.serialization", "flwr.clientapp", "safetensors.torch")  # fmt: skip
COMMAND = """#!{python} -IS
import json, os, socket, sys
path = os.path.join(os.environ["TMPDIR"], "apps.sock")
try:
    with socket.socket(socket.AF_UNIX) as line:
        line.connect(path)
        line.sendall(json.dumps(sys.argv[1:]).encode())
except OSError:  # nobody is there (any more)
    os.execv({python!r}, [{python!r}, {server!r}, path, *sys.argv[1:]])
"""


def warm_commands(folder: Path) -> Path:
    """Make a folder for the front of PATH."""
    folder.mkdir(parents=True)
    command = folder / APP
    command.write_text(COMMAND.format(python=sys.executable, server=__file__), encoding="utf-8")
    command.chmod(0o755)
    return folder


def serve(path: str, first: Sequence[str]) -> None:
    """Do the first task, and those that come through the socket, until the parent is gone."""
    parent = os.getppid()
    for name in LIBRARIES:
        import_module(name)
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # nobody waits for a task's process
    with suppress(FileNotFoundError):
        os.unlink(path)
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(path)
        listener.listen()
        listener.settimeout(1)
        fork(first, listener)
        while os.getppid() == parent:
            with suppress(TimeoutError):
                line, _ = listener.accept()
                with line, line.makefile("rb") as file:
                    line.settimeout(10)
                    fork(json.loads(file.read()), listener)


def fork(words: Sequence[str], listener: socket.socket) -> None:
    """Become a task's process, in a child."""
    if os.fork():
        return
    listener.close()
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    Path("/proc/self/comm").write_text(APP, encoding="ascii")
    sys.argv = [APP, *words]
    code = 1
    try:
        import_module("flwr.supernode.cli").flwr_clientapp()
        code = 0
    except SystemExit as end:
        code = end.code if isinstance(end.code, int) else 1
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)


if __name__ == "__main__":
    serve(sys.argv[1], sys.argv[2:])
