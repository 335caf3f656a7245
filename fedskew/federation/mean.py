"""What becomes of the mean before the method sees it: the server's optimiser, and whether the round is taken at all.

FedAvgM, FedAdam and FedYogi are Flower's own code. Flower's strategies keep their memory in attributes, by tensor. Here
it is handed in and out, so that it can be checkpointed and cut with the model.
"""

from __future__ import annotations

import math
from collections.abc import Mapping

import numpy as np
import torch
from flwr.app import Array, ArrayRecord
from flwr.serverapp.strategy import FedAdam, FedAvgM, FedYogi
from torch import Tensor

from fedskew.config.schema import FederationConfig
from fedskew.federation.folding import as_message
from fedskew.federation.messages import VALIDATION_METRICS

MOMENTUM, FIRST, SECOND = "server-momentum/", "server-first/", "server-second/"

Arrays = Mapping[str, np.ndarray]
Memory = Mapping[str, Tensor]


def server_step(
    config: FederationConfig, number: int, before: Arrays, mean: Arrays, memory: Memory
) -> tuple[dict[str, np.ndarray], dict[str, Tensor]]:
    """The new global arrays and the optimiser's memory after round `number`.

    Args:
        before: the global model that the nodes started from.
        mean: the mean of their models, of the same tensors or fewer (frozen ones do not travel).
        memory: what this returned in the round before, cut with the model; empty at the start.
    """
    if config.server_optimiser == "none" or not mean:
        return dict(mean), {}
    names = sorted(mean)
    step = _momentum if config.server_optimiser == "avgm" else _adaptive
    return step(config, number, {name: before[name] for name in names}, {name: mean[name] for name in names}, memory)


def _momentum(
    config: FederationConfig, number: int, before: Arrays, mean: Arrays, memory: Memory
) -> tuple[dict[str, np.ndarray], dict[str, Tensor]]:
    strategy = FedAvgM(server_learning_rate=config.server_lr, server_momentum=config.server_momentum)
    strategy.current_arrays = ArrayRecord({name: Array(array) for name, array in before.items()})
    if memory:
        strategy.momentum_vector = list(_remembered(memory, MOMENTUM, mean).values())
    after = _aggregate(strategy, number, mean)
    vectors = zip(mean, strategy.momentum_vector or [], strict=False)
    return after, {MOMENTUM + name: _tensor(vector) for name, vector in vectors}


def _adaptive(
    config: FederationConfig, number: int, before: Arrays, mean: Arrays, memory: Memory
) -> tuple[dict[str, np.ndarray], dict[str, Tensor]]:
    kind = FedAdam if config.server_optimiser == "adam" else FedYogi
    strategy = kind(eta=config.server_lr, beta_1=config.server_momentum, tau=config.server_tau)
    strategy.current_arrays = dict(before)
    if memory:
        strategy.m_t, strategy.v_t = _remembered(memory, FIRST, mean), _remembered(memory, SECOND, mean)
    after = _aggregate(strategy, number, mean)
    first = {FIRST + name: _tensor(value) for name, value in (strategy.m_t or {}).items()}
    return after, first | {SECOND + name: _tensor(value) for name, value in (strategy.v_t or {}).items()}


def _remembered(memory: Memory, prefix: str, mean: Arrays) -> dict[str, np.ndarray]:
    """What is remembered of the tensors of a mean; zeros of one that comes back (`prune.thaw`), as of a new one."""
    return {
        name: memory[prefix + name].numpy() if prefix + name in memory else np.zeros_like(array)
        for name, array in mean.items()
    }


def _aggregate(strategy: FedAvgM | FedAdam | FedYogi, number: int, mean: Arrays) -> dict[str, np.ndarray]:
    """Flower's step, given our mean as the only reply."""
    record, _ = strategy.aggregate_train(number, [as_message(1, mean)])
    if record is None:
        raise RuntimeError(f"Flower's {type(strategy).__name__} gave no model in round {number}")
    return {name: array.numpy().astype(np.float32) for name, array in record.items()}


def _tensor(values: np.ndarray) -> Tensor:
    return torch.from_numpy(np.asarray(values, dtype=np.float32).copy())


def noted(losses: dict[str, float], loss: float) -> None:
    """Note the loss of a global model that nodes get or that was taken: the best of all is what others are judged by.

    Args:
        losses: of a run so far, on open data; changed in place and kept in the checkpoint. `best` is the smallest one.
            What pruning costs is not added to it: a site can make its update such that pruning costs as much as it
            likes, and would have that much more room ever after.
    """
    loss = loss if math.isfinite(loss) else math.inf  # beside NaN nothing is ever found worse
    losses["best"] = min(losses.get("best", math.inf), loss)


def objection(best: float, loss: float, rise: float) -> str:
    """Why a model must not be taken, by its loss on open data; empty if it may.

    It is measured against the best so far and not against the model before it: otherwise a site could lead the model
    astray by a little less than the bound in every round.

    Args:
        best: see `noted`.
        loss: of the model that the nodes' updates make, or of that which pruning leaves of it.
        rise: by how much it may be larger.
    """
    if not math.isfinite(loss):
        return "its outputs on held-back open data are not finite"
    if loss > best + rise:
        return (f"its loss on held-back open data is {loss:.4g}, the best so far is {best:.4g}: more than "
                f"federation.rollback={rise:g} above")  # fmt: skip
    return ""


def largest(norms: Mapping[str, float], weights: Mapping[str, int]) -> str:
    """Whose update of those that weigh was the largest by far, for the person who looks for the cause; and who weighed
    the most.
    """
    norms = {name: norm for name, norm in norms.items() if name in weights}
    if not norms:
        return ""
    node = max(sorted(norms), key=lambda name: norms[name])
    others = sorted(norm for name, norm in norms.items() if name != node)
    beside = f", the others' at most {others[-1]:.4g}" if others else ""
    heavy = max(sorted(weights), key=lambda name: weights[name]) if weights else ""
    share = f"; {heavy} has {weights[heavy] / sum(weights.values()):.0%} of the weight" if heavy else ""
    return f"the largest update is that of {node}, of norm {norms[node]:.4g}{beside}{share}"


def mean_loss(losses: Mapping[str, tuple[int, float]]) -> float | None:
    """Mean over nodes by examples, summed in the order of names so that arrival does not matter.

    A site's policy may keep its loss to itself; None if all do.
    """
    told = [losses[name] for name in sorted(losses) if not math.isnan(losses[name][1])]
    return sum(count * loss for count, loss in told) / sum(count for count, _ in told) if told else None


def mean_metrics(told: Mapping[str, Mapping[str, float]], weights: Mapping[str, int]) -> dict[str, float]:
    """Mean of the nodes' validation metrics by weight, summed in the order of the nodes.

    Each metric is averaged over the nodes that tell it: one whose images are all of one class has no AUROC.
    """
    return {
        key: sum(told[name][key] * weights[name] for name in telling) / sum(weights[name] for name in telling)
        for key in VALIDATION_METRICS
        if (telling := [name for name in told if key in told[name]])
    }
