"""What `make lock` does: pin everything that the image and sites install, with the hash of every file of it.

    python scripts/lock.py              keeps the versions that are pinned where they still fit pyproject.toml
    python scripts/lock.py --upgrade    takes the newest

    locks/torch.txt          torch, torchvision and NVIDIA's libraries, as PyPI has them
    locks/requirements.txt   all the rest of what runs, less Ray, which simulations alone need
    locks/build.txt          what builds the package

Needs `uv` (Flower brings it) and an index of packages; installs nothing. PyTorch's CPU builds lie in an index of their
own, and are pinned by version (the same as in locks/torch.txt) and by the build arguments of docker/Dockerfile.
"""

from __future__ import annotations

import argparse
import re
import subprocess
import sys
import tempfile
import tomllib
from collections.abc import Iterable, Sequence
from pathlib import Path

from packaging.requirements import Requirement

ROOT = Path(__file__).resolve().parents[1]
LOCKS = ROOT / "locks"
RUNTIME, TORCH, BUILD = "requirements.txt", "torch.txt", "build.txt"
SIMULATION = "simulation"  # the extra of flwr that brings Ray
OF_TORCH = re.compile(r"(torch|torchvision|triton|nvidia-.+|cuda-.+)")
EDITABLE = "editables"  # what hatchling asks for only while it builds an editable package
HEAD = "# Made by `make lock` from pyproject.toml; do not edit. What it is for: scripts/lock.py.\n"


def main() -> None:
    """Write the three files."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--upgrade", action="store_true", help="take the newest versions")
    given = parser.parse_args()
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    oldest = project["project"]["requires-python"].removeprefix(">=")
    known = [] if given.upgrade else pinned()
    entries = compile_lock(asked(project), known, oldest)
    torch = [entry for entry in entries if OF_TORCH.fullmatch(name_of(entry))]
    build = [*project["build-system"]["requires"], EDITABLE]
    built = compile_lock(build, entries if given.upgrade else [*known, *entries], oldest)
    LOCKS.mkdir(exist_ok=True)
    write(TORCH, torch)
    write(RUNTIME, [entry for entry in entries if entry not in torch])
    write(BUILD, built)


def asked(project: dict) -> list[str]:
    """What the project needs where no simulation runs: its dependencies without Ray, and timm's torchvision by name."""
    found = [Requirement(text) for text in project["project"]["dependencies"]]
    for requirement in found:
        requirement.extras.discard(SIMULATION)
    return [*map(str, found), "torchvision"]


def compile_lock(requirements: Iterable[str], known: Iterable[str], oldest: str) -> list[str]:
    """Entries (`name==version`, marker, hashes) of all that the requirements need.

    Args:
        known: entries whose versions are kept where they fit.
        oldest: version of Python; the entries hold from there on.
    """
    with tempfile.TemporaryDirectory() as scratch:
        out = Path(scratch) / "lock.txt"
        out.write_text("".join({name_of(entry): entry for entry in known}.values()), encoding="utf-8")
        command = ["uv", "pip", "compile", "-", "--quiet", "--generate-hashes", "--universal", "--python-version",
                   oldest, "--no-header", "--no-annotate", "--output-file", str(out)]  # fmt: skip
        subprocess.run(command, input="\n".join(requirements), text=True, check=True, stdout=subprocess.DEVNULL)
        return split(out.read_text(encoding="utf-8"))


def split(text: str) -> list[str]:
    """The entries of a file of requirements: a line that begins with a name, and the indented ones that go on."""
    return re.findall(r"^[A-Za-z0-9].*\n(?:[ \t]+.*\n)*", text, flags=re.MULTILINE)


def name_of(entry: str) -> str:
    """The package of an entry."""
    return entry.split("==")[0]


def pinned() -> list[str]:
    """The entries of all files that are there."""
    files = [LOCKS / name for name in (RUNTIME, TORCH, BUILD)]
    return [entry for file in files if file.is_file() for entry in split(file.read_text(encoding="utf-8"))]


def write(name: str, entries: Sequence[str]) -> None:
    """Write one file."""
    (LOCKS / name).write_text(HEAD + "".join(entries), encoding="utf-8")
    print(f"locks/{name}: {len(entries)} packages")


if __name__ == "__main__":
    sys.exit(main())
