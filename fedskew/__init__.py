"""fedskew: federated training of a multimodal Swin Transformer that really shrinks while it learns.

`load`, `prune` and `simulate` are for programs (docs/api.md); they are imported when they are first asked for, so that
the command line starts without torch, and `load` of an ONNX file works where there is none.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from fedskew.api import FedskewModel, Prediction, load, prune, simulate

__version__ = "0.2.0"
__all__ = ["FedskewModel", "Prediction", "load", "prune", "simulate"]
_PLACES = {"load": "fedskew.tools.load", "Prediction": "fedskew.tools.predict"}  # without torch; the others: `api`


def __getattr__(name: str) -> Any:
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(_PLACES.get(name, "fedskew.api")), name)


def __dir__() -> list[str]:
    return sorted([*globals(), *__all__])
