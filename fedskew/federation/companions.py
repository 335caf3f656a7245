"""Tensors that accompany the model's from round to round and are cut with it: the optimisers' moments.

Each set has a prefix that ends in "/", before the names of the model's tensors. What has no prefix is never cut.
"""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor

from fedskew.federation.weights import Layout, TensorSpec
from fedskew.learning.optimiser import KEYS, STEPS
from fedskew.model.architecture import Architecture
from fedskew.pruning.decide import Plan
from fedskew.pruning.slicing import slice_model

Companions = Mapping[str, Tensor]


def moments_layout(trained: Layout) -> dict[str, TensorSpec]:
    """The moments of tensors that are trained, as they travel."""
    moments = {prefix + name: spec for prefix in KEYS for name, spec in trained.items()}
    return moments | {STEPS: TensorSpec((1,), "float32")}


def cut(companions: Companions, arch: Architecture, plan: Plan) -> dict[str, Tensor]:
    """The companions of the model that a plan leaves of `arch`."""
    sets: dict[str, dict[str, Tensor]] = {}
    for name, tensor in companions.items():
        prefix, slash, rest = name.partition("/")
        sets.setdefault(prefix + slash if slash else "", {})[rest if slash else name] = tensor
    smaller = dict(sets.pop("", {}))
    for prefix, tensors in sets.items():
        smaller |= {prefix + name: tensor for name, tensor in slice_model(tensors, arch, plan)[0].items()}
    return smaller
