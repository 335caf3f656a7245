"""AdamW on a node: which parameters decay, how fast it learns, and moments that survive a round."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any, cast

import numpy as np
import torch
from torch import Tensor, nn

from fedskew.config.schema import TrainConfig
from fedskew.model.fusion import MultimodalModel
from fedskew.model.layout import Layout, TensorSpec

FIRST, SECOND, STEPS = "first-moment/", "second-moment/", "moment-steps"
ROUNDING = 1e-3  # of sums of float32 over many steps
KEYS = {FIRST: "exp_avg", SECOND: "exp_avg_sq"}  # of torch's AdamW

Moments = Mapping[str, Tensor]  # FIRST + name and SECOND + name of the trained tensors, and STEPS [1]


def learning_rate(config: TrainConfig, progress: float, step: int | None = None) -> float:
    """Linear warm-up, then cosine to the floor, times the ramp at the start of a round.

    Args:
        progress: from 0 to 1 over all rounds.
        step: of the round, counted from 0; None: no ramp.
    """
    ramp = min(1.0, (step + 1) / config.round_warmup) if config.round_warmup and step is not None else 1.0
    if progress < config.warmup:
        return ramp * config.lr * max(progress / config.warmup, 1e-3)
    phase = (progress - config.warmup) / max(1e-9, 1 - config.warmup)
    cosine = 0.5 * (1 + math.cos(math.pi * min(1.0, phase)))
    return ramp * config.lr * (config.lr_floor + (1 - config.lr_floor) * cosine)


def stretched(config: TrainConfig, finished: int, before: int, after: int) -> str:
    """What more rounds do to the curve of the learning rate from here on, for a person; empty if they are as many."""
    if before == after:
        return ""
    planned, now = (learning_rate(config, finished / rounds) for rounds in (before, after))
    return (
        f"the learning rate follows the curve of {after} rounds from round {finished + 1} on: it begins there at "
        f"{now:.3g}, with {before} rounds it was to be {planned:.3g}"
    )


def parameter_groups(model: MultimodalModel, weight_decay: float) -> list[dict[str, Any]]:
    """Weight decay for matrices only: not for biases, norms, embeddings' rows or position tables."""
    undecayed = model.architecture.spec.undecayed
    decay: list[nn.Parameter] = []
    plain: list[nn.Parameter] = []
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            skip = parameter.ndim < 2 or name.startswith("embeddings.") or any(part in name for part in undecayed)
            (plain if skip else decay).append(parameter)
    return [{"params": decay, "weight_decay": weight_decay}, {"params": plain, "weight_decay": 0.0}]


def no_moments(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The moments of an optimiser that has not stepped, for the tensors of a model's state."""
    zeros = {prefix + name: torch.zeros_like(tensor) for prefix in KEYS for name, tensor in state.items()}
    return zeros | {STEPS: torch.zeros(1)}


def moments_layout(trained: Layout) -> dict[str, TensorSpec]:
    """The moments of tensors that are trained, as they travel."""
    moments = {prefix + name: spec for prefix in KEYS for name, spec in trained.items()}
    return moments | {STEPS: TensorSpec((1,), "float32")}


def impossible_moments(arrays: Mapping[str, np.ndarray], clip_norm: float) -> str:
    """Why moments are none of an AdamW whose gradients were clipped; empty if they may be.

    A mean of gradients of norm at most C has at most that norm, and the mean of their squares sums up to at most C².
    Beyond that one node's moments would keep every node from learning in the next round, or make it diverge.

    Args:
        arrays: of an answer; those that are no moments are passed over.
        clip_norm: `train.clip-norm` C; 0: they were not clipped, and only the sign can be told.
    """
    first = math.sqrt(sum(float(np.vdot(value, value)) for name, value in arrays.items() if name.startswith(FIRST)))
    seconds = {name: value for name, value in arrays.items() if name.startswith(SECOND)}
    if any((value < 0).any() for value in seconds.values()):
        return "its second moments are below 0"
    second = sum(float(value.sum(dtype=np.float64)) for value in seconds.values())
    for what, found, most in (("norm of its first", first, clip_norm), ("sum of its second", second, clip_norm**2)):
        if clip_norm and not found <= most * (1 + ROUNDING):
            return f"the {what} moments is {found:.4g}, and with train.clip-norm={clip_norm:g} at most {most:.4g}"
    return ""


def set_moments(optimiser: torch.optim.Optimizer, model: nn.Module, moments: Moments) -> None:
    """Let an AdamW go on where these moments stand.

    A second moment cannot be negative; one that noise made so counts as 0.
    """
    steps = float(moments[STEPS].clamp_min(0))
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            first, second = moments[FIRST + name], moments[SECOND + name].clamp_min(0)
            optimiser.state[parameter] = {
                "step": torch.tensor(steps, device=parameter.device),
                KEYS[FIRST]: first.to(parameter.device, copy=True),
                KEYS[SECOND]: second.to(parameter.device, copy=True),
            }


def get_moments(optimiser: torch.optim.Optimizer, model: nn.Module) -> dict[str, Tensor]:
    """The moments of an AdamW that has stepped, by the names of the tensors it trains."""
    found: dict[str, Tensor] = {STEPS: torch.zeros(1)}
    for name, parameter in model.named_parameters():
        if parameter in optimiser.state:
            state = optimiser.state[parameter]
            found[STEPS] = state["step"].detach().cpu().reshape(1)
            found |= {prefix + name: state[key].detach().cpu() for prefix, key in KEYS.items()}
    return found


def clip_in_step(optimiser: torch.optim.AdamW, parameters: Sequence[nn.Parameter], limit: float) -> None:
    """Let the next step of a fused AdamW divide the gradients so that their norm is at most `limit` (0: no limit).

    What `clip_grad_norm_` does, without reading and writing every gradient once more: torch's fused step takes the
    divisor that gradient scaling uses.
    """
    if limit:
        norm = nn.utils.get_total_norm(_gradients(parameters))
        optimiser.grad_scale = ((norm + 1e-6) / limit).clamp_min(1.0)  # type: ignore[attr-defined]


def _gradients(parameters: Sequence[nn.Parameter]) -> list[Tensor]:
    """After a backward pass: then each has one."""
    return [cast(Tensor, parameter.grad) for parameter in parameters]


class Proximal:
    """FedProx: the gradient of μ/2 · ‖w − w₀‖², where w₀ is the model that the round began with (Li et al., 2020)."""

    def __init__(self, parameters: Sequence[nn.Parameter], strength: float) -> None:
        self._parameters, self._strength = list(parameters), strength
        self._start = [parameter.detach().clone() for parameter in self._parameters] if strength else []

    def add(self) -> None:
        """Add it to the gradients, after the backward pass."""
        if self._strength:
            away = torch._foreach_sub([p.detach() for p in self._parameters], self._start)
            torch._foreach_add_(_gradients(self._parameters), away, alpha=self._strength)
