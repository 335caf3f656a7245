"""What a finished round leaves behind to go on from, and how it is read back."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from fedskew.files import file_sha256, read_json
from fedskew.model.architecture import Architecture
from fedskew.model.modelfile import ModelFileError, read_model
from fedskew.runs.reading import MODEL, STATE

COMPANIONS = "companions.safetensors"
PROGRESS: Mapping[str, tuple[type, ...]] = {
    "bytes_down_total": (int,), "bytes_up_total": (int,), "missed": (int,), "seconds": (int, float),
    "best": (dict, type(None)), "class_counts": (dict,), "open_losses": (dict,), "audit": (dict,), "sites": (list,),
}  # fmt: skip


@dataclass(frozen=True)
class Checkpoint:
    """All that is needed to go on after a finished round."""

    round_number: int
    architecture: Architecture
    weights: dict[str, Tensor]
    progress: dict[str, Any]  # running sums, best metric, rounds below quorum
    companions: dict[str, Tensor] = field(default_factory=dict)  # optimisers' moments


def read_checkpoint(path: Path) -> Checkpoint:
    """Read a checkpoint folder and compare its hashes.

    Raises:
        ValueError, KeyError, OSError: it is damaged, or its model is not finite (versions that knew no rollback could
            save such): nothing can be trained from it.
    """
    state = read_json(path / STATE)
    if state.pop("sha256") != digest(state):
        raise ValueError(f"{STATE} does not match its hash")
    if type(state.get("round")) is not int or f"round-{state['round']:04d}" != path.name:
        raise ValueError(f"{STATE} is of round {state.get('round')!r:.40}, and this is the checkpoint {path.name}")
    hashes = _file_hashes(state)
    for name, expected in hashes.items():
        if file_sha256(path / name) != expected:
            raise ModelFileError(f"{name} does not match its hash")
    arch, weights = read_model(path / MODEL)
    progress = state["progress"]
    if (
        isinstance(progress, dict) and "best_round" in progress
    ):  # of a version that chose by the test set: what is best is found anew
        progress = {name: value for name, value in progress.items() if name != "best_round"} | {"best": None}
    progress = _checked(progress)
    try:
        companions = load_file(path / COMPANIONS) if COMPANIONS in hashes else {}
    except SafetensorError as error:
        raise ModelFileError(f"{COMPANIONS} cannot be read: {error}") from error
    return Checkpoint(state["round"], arch, weights, progress, companions)


def _checked(progress: Any) -> dict[str, Any]:
    """What a run goes on from, if every value is of the kind that it needs; versions differ in what there is."""
    if not isinstance(progress, dict):
        raise ValueError(f"{STATE} holds no progress: {progress!r:.40}")
    for name, kinds in PROGRESS.items():
        if name in progress and type(progress[name]) not in kinds:
            raise ValueError(f"{STATE} says that {name} is {progress[name]!r:.40}")
    numbers = [*progress.get("open_losses", {}).values(), (progress.get("best") or {}).get("value", 0)]
    if not all(type(number) in (int, float) for number in numbers):
        raise ValueError(f"{STATE} holds a loss or a best value that is no number")
    return progress


def _file_hashes(state: Mapping[str, Any]) -> dict[str, str]:
    """Hashes of a checkpoint's files by name; versions before predictions were kept noted the model's only."""
    hashes = state["files_sha256"] if "files_sha256" in state else {MODEL: state["model_sha256"]}
    if not isinstance(hashes, dict) or MODEL not in hashes:
        raise ValueError(f"{STATE} holds no hash of {MODEL}")
    return hashes


def digest(state: Mapping[str, Any]) -> str:
    """SHA-256 of a state in canonical JSON."""
    return hashlib.sha256(json.dumps(state, sort_keys=True).encode()).hexdigest()
