"""The machine: versions, CUDA, disk and memory."""

from __future__ import annotations

import importlib.metadata
import os
import platform
import re
import shutil
import sys
import tempfile
import tomllib
from pathlib import Path

import psutil

import fedskew
from fedskew.ops.findings import Finding, fail, ok, warn

STARTED_BY_NAME = ("flower-superexec", "flwr-serverapp", "flwr-clientapp")
CHECKED = ("flwr", "torch", "timm")
DISK_FAIL, DISK_WARN = 1.0, 10.0  # GB
MEMORY_FAIL, MEMORY_WARN = 1.0, 4.0  # GB; Swin-T at batch 64 trains in about 8 with attention maps, the small ones in 1
CGROUP_LIMITS = ("/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory/memory.limit_in_bytes")


def check_versions() -> list[Finding]:
    """Python and the packages that matter, against the floors that fedskew asks for."""
    python, requirements = _requirements()
    found = [_compared("python", platform.python_version(), _floor(python))]
    for name in CHECKED:
        requirement = next((text for text in requirements if re.match(rf"{name}\b", text)), "")
        try:
            found.append(_compared(name, importlib.metadata.version(name), _floor(requirement)))
        except importlib.metadata.PackageNotFoundError:
            found.append(fail(name, "is not installed", f"pip install '{requirement or name}'"))
    return [*found, ok("fedskew", f"{fedskew.__version__}; every site needs the same version")]


def _requirements() -> tuple[str, list[str]]:
    """What fedskew asks of Python and of packages: from its checkout (the container image has one), or as installed."""
    project = Path(fedskew.__file__).resolve().parents[1] / "pyproject.toml"
    stated = tomllib.loads(project.read_text(encoding="utf-8")).get("project", {}) if project.is_file() else {}
    if stated.get("name") == "fedskew":
        return stated["requires-python"], stated["dependencies"]
    return importlib.metadata.metadata("fedskew")["Requires-Python"], importlib.metadata.requires("fedskew") or []


def check_commands() -> list[Finding]:
    """Whether Flower's services will find the commands that they start by name."""
    lacking = [command for command in STARTED_BY_NAME if shutil.which(command) is None]
    if not lacking:
        return [ok("commands", f"{', '.join(STARTED_BY_NAME)} are on the PATH")]
    remedy = f"put {Path(sys.executable).parent} on the PATH of the service (systemd: Environment=PATH=…)"
    return [fail("commands", f"{', '.join(lacking)} not on the PATH: Flower's services start them by name", remedy)]


def check_cuda() -> list[Finding]:
    """Whether torch can use a GPU, and if one is there that it cannot use."""
    import torch

    if torch.cuda.is_available():
        cards = [torch.cuda.get_device_properties(index) for index in range(torch.cuda.device_count())]
        text = ", ".join(f"{card.name} with {card.total_memory / 1e9:.0f} GB" for card in cards)
        return [ok("CUDA", f"{text} (torch {torch.__version__})")]
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    if Path("/dev/nvidia0").exists() or shutil.which("nvidia-smi"):
        built = f"built for CUDA {torch.version.cuda}" if torch.version.cuda else "built for the CPU alone"
        text = f"there is an NVIDIA card or driver, but torch {torch.__version__} ({built}) cannot use it"
        remedy = "install the CUDA build of torch and a driver new enough for it (compare nvidia-smi); in a container "
        return [warn("CUDA", f"{text}: training runs on {cores} CPU cores", remedy + "give it the card (--gpus all)")]
    remedy = "nothing, if that is meant; a round of a small model takes minutes, of Swin-T hours"
    return [warn("CUDA", f"no GPU: training runs on {cores} CPU cores", remedy)]


def check_disk(folders: dict[str, Path]) -> list[Finding]:
    """Free space and the right to write, for each folder by what it is for."""
    return [finding for purpose, folder in folders.items() for finding in _disk(purpose, folder)]


def check_memory() -> list[Finding]:
    """Free memory, or what the container leaves of it."""
    free = psutil.virtual_memory().available
    limit, where = _container_limit(), "free"
    if limit is not None and limit < free:
        free, where = limit, "allowed by the container's limit"
    text = f"{free / 1e9:.1f} GB {where}"
    if free < MEMORY_FAIL * 1e9:
        return [fail("memory", f"only {text}", "end other programs, raise the container's limit, or add memory")]
    if free < MEMORY_WARN * 1e9:
        return [warn("memory", text, "enough for the small models; Swin-T at 224 pixels wants 4 to 8 GB")]
    return [ok("memory", text)]


def release(version: str) -> tuple[int, ...]:
    """The leading numbers of a version: 2.13.0+cpu → (2, 13, 0)."""
    match = re.match(r"\d+(\.\d+)*", version)
    return tuple(int(part) for part in match.group().split(".")) if match else ()


def _floor(requirement: str) -> str:
    match = re.search(r">=\s*([0-9][0-9.]*)", requirement)
    return match.group(1) if match else "0"


def _compared(name: str, version: str, floor: str) -> Finding:
    have, need = release(version), release(floor)
    length = max(len(have), len(need))
    if have + (0,) * (length - len(have)) >= need + (0,) * (length - len(need)):
        return ok(name, f"{version} (at least {floor})")
    remedy = "install a newer Python" if name == "python" else f"pip install --upgrade '{name}>={floor}'"
    return fail(name, f"{version} is older than {floor}", remedy)


def _disk(purpose: str, folder: Path) -> list[Finding]:
    place = next(path for path in (folder, *folder.parents) if path.exists())
    try:
        with tempfile.TemporaryFile(dir=place):
            pass
    except OSError as error:
        remedy = "let the account that runs fedskew write there, or name another folder (FEDSKEW_HOME, data.cache-dir, "
        return [fail(purpose, f"{folder} cannot be written: {error.strerror}", remedy + "run.output-dir, audit-log)")]
    free = shutil.disk_usage(place).free / 1e9
    text = f"{folder}: {free:.1f} GB free"
    if free < DISK_FAIL:
        return [fail(purpose, text, "free space there, or name a folder on another disk")]
    if free < DISK_WARN:
        return [warn(purpose, text, "enough for small data sets; decoded images of HAM10000 at 224 pixels take 2 GB")]
    return [ok(purpose, text)]


def _container_limit() -> int | None:
    """Bytes that the container may use, None outside of one or without a limit."""
    for path in map(Path, CGROUP_LIMITS):
        text = path.read_text().strip() if path.is_file() else ""
        if text.isdecimal() and int(text) < 2**60:
            return int(text)
    return None
