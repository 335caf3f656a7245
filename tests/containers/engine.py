"""A Docker engine, the images under test, and compose projects on them."""

from __future__ import annotations

import functools
import json
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
BUILD_SECONDS = 1800
REACH = """
import json, socket, ssl, sys, urllib.error, urllib.request
coordinator, addresses, paths = json.loads(sys.argv[1])
def tcp(host, port):
    try: socket.create_connection((host, port), 4).close(); return "open"
    except OSError: return "closed"
def post(path):
    request = urllib.request.Request(f"https://{coordinator}:8443{path}", method="POST", data=b"")
    context = ssl.create_default_context(cafile="/site/ca.crt")
    try: return urllib.request.urlopen(request, timeout=9, context=context).status
    except urllib.error.HTTPError as error: return error.code
print(json.dumps([tcp(*address) for address in addresses] + [post(path) for path in paths]))
"""


def docker(*words: str) -> str:
    """Output of a docker command."""
    return subprocess.run(["docker", *words], capture_output=True, text=True, check=True, timeout=600).stdout.strip()


@functools.cache
def image_tag() -> str:
    """Tag of the images under test, built unless FEDSKEW_IMAGE_TAG names some; skips where no engine answers."""
    if why := no_engine():
        pytest.skip(why)
    if tag := os.environ.get("FEDSKEW_IMAGE_TAG", ""):
        return tag
    script = Path(__file__).with_name("build-images.sh")
    built = subprocess.run([script, "test"], env=os.environ | {"PYTHON": sys.executable}, capture_output=True,
                           text=True, timeout=BUILD_SECONDS, check=False)  # fmt: skip
    if built.returncode == 3:
        pytest.skip(built.stderr.strip().splitlines()[-1])
    assert built.returncode == 0, built.stdout[-2000:] + built.stderr[-2000:]
    return "test"


def no_engine() -> str:
    """Empty if an engine answers, else why the tests cannot run."""
    if not shutil.which("docker"):
        return "no docker command"
    done = subprocess.run(["docker", "info"], capture_output=True, text=True, timeout=60, check=False)
    return "" if done.returncode == 0 else f"no Docker engine: {(done.stderr or done.stdout).strip()[-200:]}"


def compose_command() -> list[str]:
    """The plug-in, or docker-compose."""
    plugin = subprocess.run(["docker", "compose", "version"], capture_output=True, check=False)
    return ["docker", "compose"] if plugin.returncode == 0 else ["docker-compose"]


class Project:
    """One compose file under a project name and settings of its own; call it with compose's words."""

    def __init__(self, file: str, name: str, **settings: str) -> None:
        self._environment = os.environ | {"TAG": image_tag()} | settings
        path = ROOT / "docker" / file
        self._base = [*compose_command(), "--file", str(path), "--project-name", f"fs{os.getpid()}{name}"]

    def __call__(self, *words: str, check: bool = True, seconds: float = 600) -> str:
        done = subprocess.run([*self._base, *words], env=self._environment, capture_output=True, text=True,
                              stdin=subprocess.DEVNULL, timeout=seconds, check=False)  # fmt: skip
        assert done.returncode == 0 or not check, done.stdout[-2000:] + done.stderr[-3000:]
        return done.stdout

    def container(self, service: str) -> str:
        """Its id."""
        return self("ps", "-q", service).split()[-1]

    def inside(self, service: str, code: str, *words: str) -> str:
        """What Python code prints in a running container."""
        return docker("exec", self.container(service), "python", "-c", code, *words)

    def reach(self, service: str, coordinator: str, addresses: list[tuple[str, int]], paths: list[str]) -> list:
        """From a site: `open` or `closed` for addresses, the status of POST for paths at the coordinator."""
        return json.loads(self.inside(service, REACH, json.dumps([coordinator, addresses, paths])))

    def wait_healthy(self, service: str, seconds: float) -> None:
        """Wait until a service's health check passes."""
        deadline = time.monotonic() + seconds
        state = ["inspect", "--format", "{{.State.Health.Status}}", self.container(service)]
        while docker(*state) != "healthy":
            assert time.monotonic() < deadline, self("logs", "--no-color", "--tail", "30")
            time.sleep(1)

    def down(self) -> None:
        """Take everything away."""
        self("down", "--volumes", "--timeout", "5", check=False)
