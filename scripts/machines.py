"""Empty Debians as containers: systemd is their first process, and their administrator may use sudo.

Needs the standard library alone, a Docker engine (DOCKER_HOST) and, for the first, debootstrap as root.
"""

from __future__ import annotations

import os
import re
import shlex
import subprocess
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
BASE = "fedskew/empty-debian:bookworm"
# A Debian boots, its administrator may use sudo, and it trusts the authorities that this machine trusts.
EMPTY = "systemd-sysv,dbus,sudo,iproute2,ca-certificates"
# systemd wants its control groups writable, which they are for its own part of the tree alone
START = (
    "for group in /sys/fs/cgroup /sys/fs/cgroup/*; do mount -o remount,bind,rw $group; done; exec /lib/systemd/systemd"
)
SYS_RESOURCE = 24  # number of the capability, which virtual machines like to be without
RIGHTS = ("--security-opt=seccomp=unconfined", "--security-opt=apparmor=unconfined", "--cgroupns=private")


class WalkError(Exception):
    """The walk cannot go on; the message says where it stopped."""


class Machine:
    """A container that boots like a machine."""

    def __init__(self, name: str, container: str) -> None:
        self.name, self._container = name, container

    def root(self, *words: str) -> str:
        """What a command prints that no reader types."""
        return docker("exec", "--user", "root", self._container, *words)

    def type(self, code: str) -> None:
        """What the administrator types, in a fresh shell. Raises `WalkError`."""
        shell = ["bash", "--login", "-euo", "pipefail", "-c", code]
        command = ["docker", "exec", "--user", "admin", "--workdir", "/home/admin", self._container, *shell]
        started = time.monotonic()
        done = subprocess.run(command, stdin=subprocess.DEVNULL, stderr=subprocess.STDOUT, check=False)
        print(f"- {self.name}: {time.monotonic() - started:.0f} s", flush=True)
        if done.returncode:
            self.explain()
            raise WalkError(f"{self.name}: a command of this block failed (exit code {done.returncode})")

    def explain(self) -> None:
        """Say what the services had to say."""
        look = "systemctl --failed --no-pager; journalctl --no-pager --lines 40 --unit 'fedskew*' --unit 'nginx*'"
        subprocess.run(["docker", "exec", self._container, "sh", "-c", look], stdin=subprocess.DEVNULL, check=False)

    def bring(self, folder: str, names: list[str], out: Path) -> None:
        """Copy files and folders to this machine, which are its caller's then."""
        command = ["docker", "exec", self._container, "tar", "-C", folder, "-c", *names]
        packed = subprocess.run(command, capture_output=True, check=True).stdout
        out.mkdir(parents=True, exist_ok=True)
        subprocess.run(["tar", "-C", str(out), "--no-same-owner", "-x"], input=packed, check=True)

    def read(self, path: str) -> str:
        """A file of the machine."""
        return self.root("cat", path)

    def write(self, path: str, text: str) -> None:
        """A file in the administrator's home, as if it had come by mail."""
        command = ["docker", "exec", "--interactive", "--user", "admin", self._container, "tee", path]
        subprocess.run(command, input=text, text=True, stdout=subprocess.DEVNULL, check=True)

    def wait(self, seconds: float = 60.0) -> None:
        """Until it has booted. Raises `WalkError`."""
        deadline, state = time.monotonic() + seconds, ""
        while time.monotonic() < deadline:
            asked = ["docker", "exec", self._container, "systemctl", "is-system-running"]
            state = subprocess.run(asked, capture_output=True, text=True, check=False).stdout.strip()
            if state in ("running", "degraded"):
                return
            time.sleep(0.5)
        raise WalkError(f"{self.name} does not boot within {seconds:.0f} s: {state or 'systemd does not answer'}")


def boot(name: str, container: str, image: str, *options: str) -> Machine:
    """A machine that has booted. Raises `WalkError`."""
    memory = ("--tmpfs=/run", "--tmpfs=/run/lock", "--tmpfs=/tmp:exec")
    docker("run", "--detach", "--name", container, "--hostname", name, *_rights(), *memory, *options,
           "--stop-signal", "SIGRTMIN+3", "--env", "container=docker", image, "/bin/sh", "-c", START)  # fmt: skip
    machine = Machine(name, container)
    machine.wait()
    return machine


def docker(*words: str) -> str:
    """Output of a docker command. Raises `WalkError` with what it said."""
    done = subprocess.run(["docker", *words], capture_output=True, text=True, stdin=subprocess.DEVNULL, check=False)
    if done.returncode:
        raise WalkError(f"docker {shlex.join(words[:4])} …: {done.stderr.strip()[-2000:]}")
    return done.stdout.strip()


def _rights() -> list[str]:
    """As many as a container can be given here: systemd mounts, and limits what its services may do."""
    status = Path("/proc/self/status").read_text()
    held = int(re.search(r"^CapBnd:\s*(\w+)", status, re.MULTILINE)[1], 16)
    # an engine starts nothing to which it would have to give what it has not itself
    missing = [] if held >> SYS_RESOURCE & 1 else ["--cap-drop=SYS_RESOURCE"]
    return ["--cap-add=ALL", *missing, *RIGHTS]


def make_base() -> None:
    """An empty Debian, unless the engine has it. Raises `WalkError`, at once where there is no engine."""
    docker("info")
    if subprocess.run(["docker", "image", "inspect", BASE], capture_output=True, check=False).returncode:
        environment = os.environ | {"PACKAGES": EMPTY}
        done = subprocess.run(
            [ROOT / "docker" / "local-base.sh", BASE], env=environment, capture_output=True, text=True
        )
        if done.returncode:
            raise WalkError(f"no empty Debian can be made here: {(done.stdout + done.stderr).strip()[-1000:]}")
