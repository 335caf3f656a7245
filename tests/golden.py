"""Hashes of final models that were recorded when the code was known to be right, by the kind of machine."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

import torch
from safetensors.torch import load_file

RECORD = Path(__file__).with_name("golden.json")


def machine() -> str:
    """What the bits of a product depend on: the kind of processor and torch's version."""
    words = Path("/proc/cpuinfo").read_text().splitlines() if Path("/proc/cpuinfo").exists() else []
    kind = [line.split(":", 1)[1].strip() for line in words if line.startswith(("cpu family", "model\t", "stepping"))]
    version, capability = torch.__version__.partition("+")[0], torch.backends.cpu.get_cpu_capability()
    return f"torch {version}, {capability}, {'/'.join(kind[:3])}"


def recorded() -> dict[str, str]:
    """Hash by run, of machines like this one; empty if none were recorded."""
    return json.loads(RECORD.read_text()).get(machine(), {})


def fingerprint(run: Path) -> str:
    """SHA-256 of the final model of a run: names, shapes and bytes of its tensors, in the order of names."""
    digest = hashlib.sha256()
    for key, tensor in sorted(load_file(run / "model.safetensors").items()):
        digest.update(f"{key} {tuple(tensor.shape)} {tensor.dtype}\n".encode() + tensor.numpy().tobytes())
    return digest.hexdigest()
