"""A model in one file: safetensors whose metadata holds the architecture, so that the file alone suffices."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

from fedskew.architecture import Architecture, ArchitectureError
from fedskew.model.swin import MultimodalSwin, build

ARCHITECTURE = "fedskew-architecture"


class ModelFileError(ValueError):
    """A model file that cannot be used; the message names the file and what is wrong."""


def encode_model(arch: Architecture, state: Mapping[str, Tensor]) -> bytes:
    """The bytes of a model file."""
    tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in state.items()}
    return save(tensors, metadata={ARCHITECTURE: arch.to_json()})


def read_model(path: Path) -> tuple[Architecture, dict[str, Tensor]]:
    """Architecture and weights of a model file.

    Raises:
        ModelFileError: the file is missing, damaged, or not one of fedskew's.
    """
    try:
        with safe_open(path, framework="pt") as file:
            metadata = file.metadata() or {}
            if ARCHITECTURE not in metadata:
                raise ModelFileError(f"{path} is not a fedskew model: its metadata holds no architecture")
            arch = Architecture.from_json(metadata[ARCHITECTURE])
            return arch, {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    except (OSError, SafetensorError, ArchitectureError) as error:
        raise ModelFileError(f"{path} cannot be read as a model: {error}") from error


def load_model(path: Path) -> MultimodalSwin:
    """The model of a file, in evaluation mode.

    Raises:
        ModelFileError: as `read_model`, or the weights do not fit the architecture.
    """
    arch, state = read_model(path)
    try:
        return build(arch, state).eval()
    except (RuntimeError, KeyError) as error:
        raise ModelFileError(f"{path}: the weights do not fit the architecture: {str(error)[:500]}") from error
