"""The model of a run, a model file or an exported ONNX file; torch is imported only where it runs the model."""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fedskew.errors import FedskewError

if TYPE_CHECKING:
    from fedskew.runs.folder import RunFolder
    from fedskew.tools.torch_model import FedskewModel

ONNX = ".onnx"


class MissingRuntime(FedskewError, RuntimeError):
    """What runs a model is not installed; the message says how to install it."""


def load(path: str | Path | RunFolder, *, best: bool = False) -> FedskewModel | Any:
    """The model of a run, of a model file, or of an exported ONNX file.

    Args:
        path: a run folder, a `model.safetensors`, or a file that ends in `.onnx`.
        best: of a run folder, the model of its best round instead of that of its last.

    Returns:
        A `FedskewModel`; of an ONNX file an `OnnxModel`, which has the same `predict`, `preprocess` and `classes`, and
        no torch module.

    Raises:
        RunFolderError: there is none.
        ModelFileError: the file is damaged, says something that cannot be, or is no model of fedskew's.
        MissingRuntime: onnxruntime, or torch, is not installed.
    """
    place = Path(path if isinstance(path, str | Path) else path.path).expanduser()
    if place.suffix.lower() == ONNX and not place.is_dir():
        if find_spec("onnxruntime") is None:
            raise MissingRuntime(f"{place} needs onnxruntime: pip install onnxruntime")
        from fedskew.tools.onnx_model import load_onnx

        return load_onnx(place)
    if find_spec("torch") is None:
        raise MissingRuntime(f"{place} needs torch, which is not installed; a file that ends in .onnx needs none")
    from fedskew.tools.torch_model import load_torch

    return load_torch(place, best=best)
