"""App processes that are forked from one which has Flower and torch imported: tenths of a second of CPU a task.

    cluster.environment["PATH"] = f"{warm_commands(folder)}{os.pathsep}{os.environ['PATH']}"
    cluster.spawn("warm", "coordinator", server_command(folder))

A SuperNode starts the process of each task by a name on PATH. The command of that name made here hands over what it
was started with (arguments, environment, working directory, network namespace, standard output) to one process that
forks another with all of these. Messages, tokens, heartbeats and the app, which is imported from the bundle, stay
Flower's own; only imports of libraries are not done again. For tests with hundreds of tasks: a cold start is three
seconds of CPU or more.
"""

from __future__ import annotations

import ctypes
import json
import os
import signal
import socket
import sys
from collections.abc import Mapping
from importlib import import_module
from pathlib import Path
from typing import Any

APP = "flwr-clientapp"
SOCKET = "apps.sock"
LIBRARIES = ("flwr.supernode.cli", "torch", "timm.models.swin_transformer", "PIL.Image", "scipy.optimize", "yaml",
             "cryptography.hazmat.primitives.serialization", "flwr.clientapp", "safetensors.torch")  # fmt: skip
COMMAND = """#!{python} -IS
import json, os, socket, sys
namespace = os.open("/proc/self/ns/net", os.O_RDONLY)
about = {{"words": sys.argv[1:], "environment": dict(os.environ), "folder": os.getcwd()}}
with socket.socket(socket.AF_UNIX) as line:
    line.connect({path!r})
    socket.send_fds(line, [b"-"], [1, 2, namespace])
    line.sendall(json.dumps(about).encode())
"""


def warm_commands(folder: Path) -> Path:
    """Make a folder for the front of PATH."""
    folder.mkdir(parents=True)
    command = folder / APP
    command.write_text(COMMAND.format(python=sys.executable, path=str(folder / SOCKET)), encoding="utf-8")
    command.chmod(0o755)
    return folder


def server_command(folder: Path) -> list[str]:
    """Starts the process that all others are forked from; it is ready when `folder/SOCKET` is there."""
    return [sys.executable, __file__, str(folder / SOCKET)]


def serve(path: str) -> None:
    """Fork a process for each task, until this one is ended."""
    for name in LIBRARIES:
        import_module(name)
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # nobody waits for a task's process
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(path)
        listener.listen(64)
        while True:
            line, _ = listener.accept()
            with line:
                _, descriptors, *_ = socket.recv_fds(line, 1, 3)
                with line.makefile("rb") as file:
                    about = json.loads(file.read())
            if not os.fork():
                listener.close()
                become(about, descriptors)
            for descriptor in descriptors:
                os.close(descriptor)


def become(about: Mapping[str, Any], descriptors: list[int]) -> None:
    """Be the process that Flower wanted to start; does not return."""
    code = 1
    try:
        out, error, namespace = descriptors
        os.dup2(out, 1)
        os.dup2(error, 2)
        if ctypes.CDLL(None, use_errno=True).setns(namespace, 0):
            raise OSError(ctypes.get_errno(), "setns")
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)
        Path("/proc/self/comm").write_text(APP, encoding="ascii")
        os.chdir(about["folder"])
        os.environ.clear()
        os.environ.update(about["environment"])
        sys.path[:0] = filter(None, os.environ.get("PYTHONPATH", "").split(os.pathsep))
        if os.environ.get("PYTHONPATH"):  # as Python does when it starts
            sys.modules.pop("sitecustomize", None)
            with_site_customisation()
        sys.argv = [APP, *about["words"]]
        import_module("flwr.supernode.cli").flwr_clientapp()
        code = 0
    except SystemExit as end:
        code = end.code if isinstance(end.code, int) else 1
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)


def with_site_customisation() -> None:
    """Import `sitecustomize` where there is one."""
    try:
        import_module("sitecustomize")
    except ModuleNotFoundError as error:
        if error.name != "sitecustomize":
            raise


if __name__ == "__main__":
    serve(sys.argv[1])
