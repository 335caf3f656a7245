"""Walk through docs/deployment.md on empty Debians: every command as it stands there, in order, on its machine.

    python3 scripts/walk_guide.py               # a Docker engine (DOCKER_HOST); as root, debootstrap
    python3 scripts/walk_guide.py --list        # only print what would be run
    python3 scripts/walk_guide.py --keep        # leave the machines there to look into

A block's place stands behind the word bash of its fence, which no reader sees: `every machine`, `coordinator`, `site`.
Machines are containers with systemd as their first process, so the units, timers and firewalls are the real ones; they
reach each other, and packages, by a bridge. Commands are typed by an administrator with sudo, each block in a shell of
its own, and the first that fails ends the walk. What is not as a reader has it is `SUBSTITUTIONS` and `HANDS`, told
where it is used; besides, what all machines do alike is done once, and the machine copied. Needs the standard library
alone.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

from install import CPU_INDEX, answers
from machines import BASE, Machine, WalkError, boot, docker, make_base
from run_readme import Block, blocks

ROOT = Path(__file__).resolve().parents[1]
GUIDE = ROOT / "docs" / "deployment.md"
SUBNET, COORDINATOR = "10.79.113.0/24", "coordinator"
ADDRESSES = {COORDINATOR: "10.79.113.7", "site-a": "10.79.113.21", "site-b": "10.79.113.22"}
SITES = ("site-a", "site-b")
PLACES = ("every machine", COORDINATOR, "site")
IMAGES = 240
OUTSIDE = ("deb.debian.org", "80")
KNOCK = """
import socket, sys
try: socket.create_connection((sys.argv[1], int(sys.argv[2])), 5).close(); print("open")
except OSError: print("closed")
"""
FLEET_LOG = "/var/log/nginx/fleet.jsonl"
GENERATE = (
    "import pathlib, sys; from fedskew.demo.generator import generate; "
    "generate(pathlib.Path(sys.argv[1]), images=int(sys.argv[2]), seed=int(sys.argv[3]), size=(64, 48))"
)


@dataclass(frozen=True)
class Substitution:
    """What is run in the place of a text of the guide, and why."""

    text: str
    instead: str
    reason: str


SUBSTITUTIONS = (
    Substitution("<the repository>", "file:///walk/fedskew.git", "the repository is this checkout"),
    Substitution("<the version agreed on>", "walk", "with what is not committed yet"),
    Substitution("203.0.113.7", ADDRESSES[COORDINATOR], "the guide's address is one for documents, nobody's"),
)
BUILD = "sudo make install LOCKED=1"


class Walk:
    """The machines, and what a person does between them."""

    def __init__(
        self, stack: ExitStack, prefix: str, mounts: list[str], substitutions: tuple[Substitution, ...]
    ) -> None:
        self._stack, self._prefix, self._mounts, self._substitutions = stack, prefix, mounts, substitutions
        self.machines: dict[str, Machine] = {}

    def install(self, found: list[Block]) -> str:
        """What every machine does, once, on an empty one; the image of it."""
        first = self._boot("every-machine", BASE)
        first.root("useradd", "--create-home", "--shell", "/bin/bash", "admin")
        first.root("sh", "-c", "echo 'admin ALL=(ALL) NOPASSWD: ALL' > /etc/sudoers.d/admin")
        for block in found:
            self._type(first, block.code)
        image = f"{self._prefix}-installed"
        docker("stop", "--time", "20", f"{self._prefix}-every-machine")
        docker("commit", f"{self._prefix}-every-machine", image)
        self._clear("rmi", "--force", image)
        return image

    def boot(self, image: str) -> None:
        """The machines, as copies of one, on a network."""
        network = f"{self._prefix}-network"
        docker("network", "create", "--subnet", SUBNET, network)
        self._clear("network", "rm", network)
        for name, address in ADDRESSES.items():
            self.machines[name] = self._boot(name, image, "--network", network, "--ip", address)
            self.machines[name].root("git", "-C", "/opt/fedskew", "pull", "--quiet", "--force")
        print(f"- by hand: {IMAGES} generated images for the coordinator and each site", flush=True)
        for seed, machine in enumerate(self.machines.values()):
            folder = "/srv/lesions" if machine.name in SITES else "/srv/public"
            python = "/opt/fedskew/.venv/bin/python"
            machine.root(python, "-c", GENERATE, folder, str(IMAGES), str(seed))

    def go(self, place: str, code: str) -> None:
        """A block of the coordinator, or of a site at all of them."""
        for name in SITES if place == "site" else (place,):
            self._type(self.machines[name], code.replace("site-a", name) if place == "site" else code)

    def carry(self, sender: str, path: str, receivers: tuple[str, ...]) -> None:
        """Send a file of an administrator to others."""
        print(f"- by hand: {sender} sends {path} to {', '.join(receivers)}", flush=True)
        text = self.machines[sender].read(f"/home/admin/{path}")
        for name in receivers:
            self.machines[name].write(f"/home/admin/{path}", text)

    def _type(self, machine: Machine, code: str) -> None:
        for one in self._substitutions:
            if one.text in code:
                print(f"- {one.text!r} is {one.instead!r}: {one.reason}")
                code = code.replace(one.text, one.instead)
        prompt = f"{machine.name}$ "
        print("\n" + "\n".join(prompt + line for line in code.splitlines()), flush=True)
        machine.type(code)

    def _boot(self, name: str, image: str, *more: str) -> Machine:
        container = f"{self._prefix}-{name}"
        self._clear("rm", "--force", "--volumes", container)
        return boot(name, container, image, *self._mounts, *more)

    def _clear(self, *words: str) -> None:
        """Take something away in the end, if it is there."""
        self._stack.callback(subprocess.run, ["docker", *words], capture_output=True, check=False)


# What people do between two blocks, by the block before which they have done it: its place and first command.
HANDS: dict[tuple[str, str], Callable[[Walk], None]] = {
    ("site", "sudo install -m 644 ~/ca.crt"): lambda walk: walk.carry(COORDINATOR, "ca.crt", SITES),
    (COORDINATOR, "sudo install -D -m 644 -t /etc/fedskew/sites"): lambda walk: [
        walk.carry(site, f"{site}.pub", (COORDINATOR,)) for site in SITES
    ],
}


def steps(text: str) -> list[Block]:
    """The guide's blocks that belong to a machine. Raises `WalkError` for a place that is none."""
    found = [block for block in blocks(text) if block.place]
    strange = {block.place for block in found} - set(PLACES)
    if strange:
        raise WalkError(f"a block is for {', '.join(sorted(strange))}; places are {', '.join(PLACES)}")
    return found


def hands(block: Block) -> list[Callable[[Walk], None]]:
    """What people have done before a block."""
    return [do for (place, start), do in HANDS.items() if block.place == place and block.code.startswith(start)]


def make_repository(folder: Path) -> None:
    """A repository with one branch, `walk`: this checkout as it is, with changes of files that git knows."""

    def git(*words: str) -> str:
        return subprocess.run(
            ["git", "-C", str(ROOT), *words], capture_output=True, text=True, check=True
        ).stdout.strip()

    commit = git("stash", "create") or git("rev-parse", "HEAD")
    subprocess.run(["git", "init", "--quiet", "--bare", "--initial-branch", "walk", str(folder)], check=True)
    git("push", "--quiet", str(folder), f"{commit}:refs/heads/walk")


def make_pip(folder: Path, wheels: Path | None) -> tuple[list[str], tuple[Substitution, ...]]:
    """pip's configuration in the machines and the wheels that it finds, and the build of torch that there is.

    Args:
        wheels: a folder with all wheels that the locks name; None: they are fetched.
    """
    found = wheels or folder / "wheels"
    found.mkdir(parents=True, exist_ok=True)
    settings = ["[global]", "find-links = /walk/wheels", "cert = /etc/ssl/certs/ca-certificates.crt"]
    (folder / "pip.conf").write_text("\n".join([*settings, *(["no-index = true"] if wheels else []), ""]))
    mounts = [f"{folder}/pip.conf:/etc/pip.conf:ro", f"{found.resolve()}:/walk/wheels:ro"]
    if answers(CPU_INDEX) and not wheels:
        return mounts, ()
    script, environment = ROOT / "tests" / "containers" / "torch-wheels.sh", os.environ | {"PYTHON": sys.executable}
    done = subprocess.run([script, found], env=environment, capture_output=True, text=True, check=False)
    if done.returncode:
        raise WalkError(f"{CPU_INDEX} does not answer, and {done.stderr.strip()[-500:]}")
    reason = "the machines have no way to an index" if wheels else f"{CPU_INDEX} does not answer"
    return mounts, (Substitution(BUILD, f"{BUILD} TORCH='{done.stdout.strip()}'", reason),)


@contextmanager
def laboratory(wheels: Path | None, keep: bool) -> Iterator[Walk]:
    """A walk that has not begun; everything of it is taken away in the end."""
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="walk-")))
        make_base()
        make_repository(folder / "fedskew.git")
        mounts, torch = make_pip(folder, wheels)
        mounts.append(f"{folder}/fedskew.git:/walk/fedskew.git:ro")
        walk = Walk(stack, f"walk-{os.getpid()}", [f"--volume={mount}" for mount in mounts], (*SUBSTITUTIONS, *torch))
        try:
            yield walk
        finally:
            if keep:
                print(f"the machines stay: docker exec -it walk-{os.getpid()}-{COORDINATOR} bash")
                stack.pop_all()


def walk_through(found: list[Block], walk: Walk, installed: str = "") -> None:
    """All steps, or those after the installation, on an image that a kept walk has left.

    Raises:
        WalkError: one of them fails.
    """
    walk.boot(installed or walk.install([block for block in found if block.place == PLACES[0]]))
    for block in found:
        if block.reason:
            print(f"\n- left out ({block.reason}):\n{block.code.rstrip()}")
        elif block.place != PLACES[0]:
            for do in hands(block):
                do(walk)
            walk.go(block.place, block.code)


def rotate(walk: Walk, seconds: float = 60.0) -> None:
    """A week later: the proxy's log is put aside, and it writes into a fresh one. Raises `WalkError`."""
    coordinator, started = walk.machines[COORDINATOR], time.monotonic()
    print("\n- not typed: a week has passed, and logrotate is due", flush=True)
    coordinator.root("logrotate", "--force", "/etc/logrotate.d/fedskew")
    while not coordinator.root("find", FLEET_LOG, "-size", "+0"):  # sites ask every three seconds
        if time.monotonic() > started + seconds:
            raise WalkError(f"nginx writes nothing to {FLEET_LOG} after it was rotated")
        time.sleep(1)
    if not coordinator.root("sh", "-c", f"ls {FLEET_LOG}-*"):
        raise WalkError(f"{FLEET_LOG} was not kept")


def knock(walk: Walk) -> None:
    """The firewalls of the sites hold, also after the upgrade, and let the one way through. Raises `WalkError`."""
    wanted = {(COORDINATOR, *OUTSIDE): True}  # else a closed door would say nothing
    for site in SITES:
        wanted |= {(site, *OUTSIDE): False, (site, ADDRESSES[COORDINATOR], "8443"): True}
    for (name, host, port), wants in wanted.items():
        python = "/opt/fedskew/.venv/bin/python"
        is_open = walk.machines[name].root(python, "-c", KNOCK, host, port) == "open"
        print(f"- not typed: {name} {'reaches' if is_open else 'does not reach'} {host}:{port}", flush=True)
        if is_open is not wants:
            raise WalkError(f"{name} should {'' if wants else 'not '}reach {host}:{port}")


def bring_back(walk: Walk, out: Path) -> None:
    """The run folder and the sites' audit logs, to be looked at here."""
    for name, machine in walk.machines.items():
        machine.bring("/var/lib/fedskew", ["runs"] if name == COORDINATOR else ["audit.jsonl"], out / name)


def main() -> int:
    """Walk or list; the exit code is 1 if a command of the guide fails."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--list", action="store_true", help="only print the commands")
    parser.add_argument("--keep", action="store_true", help="leave the machines")
    parser.add_argument("--installed", default="", help="an image that --keep has left: begin behind the installation")
    parser.add_argument("--out", type=Path, help="bring the run and the audit logs back into this folder")
    parser.add_argument("--wheels", type=Path, help="a folder with all wheels of locks/: no index is asked")
    given = parser.parse_args()
    started = time.monotonic()
    try:
        found = steps(GUIDE.read_text(encoding="utf-8"))
        if given.list:
            for block in found:
                print(
                    f"## {block.place}" + (f" (left out: {block.reason})" if block.reason else "") + f"\n{block.code}"
                )
            return 0
        with laboratory(given.wheels, given.keep) as walk:
            walk_through(found, walk, given.installed)
            rotate(walk)
            knock(walk)
            if given.out:
                bring_back(walk, given.out)
    except WalkError as error:
        print(f"docs/deployment.md: {error}", file=sys.stderr)
        return 1
    print(f"docs/deployment.md: every command works ({time.monotonic() - started:.0f} s)")
    return 0


if __name__ == "__main__":
    sys.exit(main())
