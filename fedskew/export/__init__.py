"""From a trained model to a file for a device: ONNX in float, half and int8, checked on real images; its model card.

The rest of the room imports onnx and onnxruntime, which are an extra: `check_installed` comes first.
"""

from __future__ import annotations

from importlib.util import find_spec

from fedskew.errors import FedskewError

NEEDED = ("onnx", "onnxscript", "onnxruntime")


class MissingExtra(FedskewError, RuntimeError):
    """A library that is not installed; the message says how to install it."""


def check_installed() -> None:
    """Raise `MissingExtra` where something that exports need is not installed."""
    if missing := [name for name in NEEDED if find_spec(name) is None]:
        raise MissingExtra(f"exports need {', '.join(missing)}: pip install 'fedskew[export]'")
