"""A model in one file, which alone suffices: safetensors whose metadata holds the architecture with its classes and
vocabularies, how pictures are prepared, and where the model comes from.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

from fedskew.data.preprocessing import Preprocessing
from fedskew.model.architecture import Architecture
from fedskew.model.bounds import ArchitectureError
from fedskew.model.codec import architecture_from_json
from fedskew.model.finite import not_finite
from fedskew.model.fusion import MultimodalModel, build
from fedskew.model.signature import ABOUT, ARCHITECTURE, ModelFileError, about_from_json, preprocessing_of

MODEL = "model.safetensors"  # in a run folder
_ALIGNMENT = 8  # of the tensors in a safetensors file


def model_path(place: Path) -> Path:
    """The model file of a run folder (that of its last round; of its best: `RUN/best`), or the file itself.

    Raises:
        ModelFileError: there is none.
    """
    path = place / MODEL if place.is_dir() else place
    if not path.is_file():
        raise ModelFileError(f"{place} is neither a model file nor a run folder with a {MODEL}")
    return path


def encode_model(arch: Architecture, state: Mapping[str, Tensor], about: Mapping[str, Any] | None = None) -> bytes:
    """The bytes of a model file: the same for the same model, in every process.

    Args:
        about: what the file says of itself (`lineage.about_model`); None leaves it out, as versions before did.
    """
    tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in state.items()}
    content = save(tensors, metadata={ARCHITECTURE: arch.to_json()})
    return content if about is None else _with_metadata(content, {ABOUT: json.dumps(about, sort_keys=True)})


def _with_metadata(content: bytes, more: Mapping[str, str]) -> bytes:
    """A safetensors file with more metadata. safetensors itself writes several entries in an order that changes."""
    length = int.from_bytes(content[:8], "little")
    header = json.loads(content[8 : 8 + length])
    header["__metadata__"] |= more
    text = json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode()
    text += b" " * (-len(text) % _ALIGNMENT)
    return len(text).to_bytes(8, "little") + text + content[8 + length :]


def read_model(path: Path) -> tuple[Architecture, dict[str, Tensor]]:
    """Architecture and weights of a model file.

    Raises:
        ModelFileError: the file is missing, damaged, or not one of fedskew's; or its weights are no finite numbers.
    """
    try:
        with safe_open(path, framework="pt") as file:
            metadata = file.metadata() or {}
            if ARCHITECTURE not in metadata:
                raise ModelFileError(f"{path} is not a fedskew model: its metadata holds no architecture")
            arch = architecture_from_json(metadata[ARCHITECTURE])
            state = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    except (OSError, SafetensorError, ArchitectureError) as error:
        raise ModelFileError(f"{path} cannot be read as a model: {error}") from error
    if kinds := sorted({str(tensor.dtype) for tensor in state.values()} - {str(torch.float32)}):
        raise ModelFileError(f"{path} cannot be read as a model: its weights are {', '.join(kinds)}, expected float32")
    if name := not_finite(state):
        raise ModelFileError(f"{path} cannot be read as a model: {name} is not finite")
    return arch, state


def read_about(path: Path) -> dict[str, Any]:
    """What a model file says of itself; empty for files of versions that said nothing.

    Raises:
        ModelFileError: the file is missing or damaged, or what it says cannot be read.
    """
    try:
        with safe_open(path, framework="pt") as file:
            text = (file.metadata() or {}).get(ABOUT, "{}")
    except (OSError, SafetensorError) as error:
        raise ModelFileError(f"{path} cannot be read as a model: {error}") from error
    return about_from_json(text, path)


def read_preprocessing(path: Path) -> Preprocessing | None:
    """How the pictures of a file's model are prepared; None if it does not say.

    Raises:
        ModelFileError: as `read_about`, or it says something that cannot be done.
    """
    return preprocessing_of(read_about(path), path)


def load_model(path: Path) -> MultimodalModel:
    """The model of a file, in evaluation mode.

    Raises:
        ModelFileError: as `read_model`, or the weights do not fit the architecture.
    """
    arch, state = read_model(path)
    try:
        return build(arch, state).eval()
    except (RuntimeError, KeyError) as error:
        raise ModelFileError(f"{path}: the weights do not fit the architecture: {str(error)[:500]}") from error
