"""Whether weights are numbers: asked of a checkpoint, of a task at a node, and of a round's new model."""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor


def not_finite(tensors: Mapping[str, Tensor]) -> str:
    """The first tensor, in the order of names, that holds a value which is not finite; empty if there is none."""
    return next((name for name in sorted(tensors) if not bool(tensors[name].isfinite().all())), "")
