"""What the server makes of the mean update: Flower's FedAvgM, FedAdam and FedYogi, through Flower's own code.

Flower's strategies keep their memory in attributes, by tensor. Here it is handed in and out, so that it can be
checkpointed and cut with the model.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import torch
from flwr.app import Array, ArrayRecord
from flwr.serverapp.strategy import FedAdam, FedAvgM, FedYogi
from torch import Tensor

from fedskew.config.schema import FederationConfig
from fedskew.federation.folding import as_message

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
        strategy.momentum_vector = [memory[MOMENTUM + name].numpy() for name in mean]
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
        strategy.m_t = {name: memory[FIRST + name].numpy() for name in mean}
        strategy.v_t = {name: memory[SECOND + name].numpy() for name in mean}
    after = _aggregate(strategy, number, mean)
    first = {FIRST + name: _tensor(value) for name, value in (strategy.m_t or {}).items()}
    return after, first | {SECOND + name: _tensor(value) for name, value in (strategy.v_t or {}).items()}


def _aggregate(strategy: FedAvgM | FedAdam | FedYogi, number: int, mean: Arrays) -> dict[str, np.ndarray]:
    """Flower's step, given our mean as the only reply."""
    record, _ = strategy.aggregate_train(number, [as_message(1, mean)])
    if record is None:
        raise RuntimeError(f"Flower's {type(strategy).__name__} gave no model in round {number}")
    return {name: array.numpy().astype(np.float32) for name, array in record.items()}


def _tensor(values: np.ndarray) -> Tensor:
    return torch.from_numpy(np.asarray(values, dtype=np.float32).copy())
