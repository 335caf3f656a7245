"""Whether a round's model is taken: after the aggregation, before anything that cannot be undone."""

from __future__ import annotations

import math
from collections.abc import Mapping


def sent(losses: dict[str, float], loss: float) -> None:
    """Note the loss of the model that the nodes get: what it is worse than the average before it is pruning's doing.

    Args:
        losses: of a run so far, on open data; changed in place and kept in the checkpoint. `best` is the smallest one,
            with what pruning itself has cost since; `taken` that of the last average, before it was pruned.
        loss: of the model as it is sent.
    """
    loss = loss if math.isfinite(loss) else math.inf  # beside NaN nothing is ever found worse
    if "taken" in losses and math.isfinite(loss):
        losses["best"] += max(0.0, loss - losses["taken"])
        losses["taken"] = loss
    losses["best"] = min(losses.get("best", loss), loss)


def taken(losses: dict[str, float], loss: float) -> None:
    """Note the loss of an average that was taken."""
    losses["taken"], losses["best"] = loss, min(losses["best"], loss)


def objection(best: float, loss: float, rise: float) -> str:
    """Why a round's model must not be taken, by its loss on open data; empty if it may.

    It is measured against the best so far and not against the model before it: otherwise a site could lead the model
    astray by a little less than the bound in every round.

    Args:
        best: see `sent`.
        loss: of the model that the nodes' updates make.
        rise: by how much it may be larger.
    """
    if not math.isfinite(loss):
        return "its outputs on held-back open data are not finite"
    if loss > best + rise:
        return (f"its loss on held-back open data is {loss:.4g}, the best so far with what pruning has cost since is "
                f"{best:.4g}: more than federation.rollback={rise:g} above")  # fmt: skip
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
