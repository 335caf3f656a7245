"""Whether a round's model is taken: after the aggregation, before anything that cannot be undone."""

from __future__ import annotations

import math
from collections.abc import Mapping

import numpy as np


def not_finite(arrays: Mapping[str, np.ndarray]) -> str:
    """The first tensor, in the order of names, that holds a value which is not finite; empty if there is none."""
    return next((name for name in sorted(arrays) if not np.isfinite(arrays[name]).all()), "")


def objection(before: float, after: float, rise: float) -> str:
    """Why a round's model must not be taken, by its loss on open data; empty if it may.

    Args:
        before: loss of the model that the nodes got.
        after: loss of the model that their updates make.
        rise: by how much it may be larger.
    """
    if not math.isfinite(after):
        return "its outputs on held-back open data are not finite"
    if after > before + rise:
        return (f"its loss on held-back open data is {after:.4g}, that of the model before it {before:.4g}: more than "
                f"federation.rollback={rise:g} above")  # fmt: skip
    return ""


def largest(norms: Mapping[str, float], weights: Mapping[str, int]) -> str:
    """Whose update was the largest by far, for the person who looks for the cause; and who weighed the most."""
    if not norms:
        return ""
    node = max(sorted(norms), key=lambda name: norms[name])
    others = sorted(norm for name, norm in norms.items() if name != node)
    beside = f", the others' at most {others[-1]:.4g}" if others else ""
    heavy = max(sorted(weights), key=lambda name: weights[name]) if weights else ""
    share = f"; {heavy} has {weights[heavy] / sum(weights.values()):.0%} of the weight" if heavy else ""
    return f"the largest update is that of {node}, of norm {norms[node]:.4g}{beside}{share}"
