"""Names, shapes and dtypes of a model's tensors, and parts of them."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from types import MappingProxyType

import torch

from fedskew.model.architecture import Architecture
from fedskew.model.fusion import MultimodalModel


@dataclass(frozen=True)
class TensorSpec:
    """Shape and dtype of one tensor."""

    shape: tuple[int, ...]
    dtype: str

    @property
    def size(self) -> int:
        """Number of values."""
        return math.prod(self.shape)


Layout = Mapping[str, TensorSpec]  # name → shape and dtype


@dataclass(frozen=True)
class Part:
    """Whole tensors of a model, by their names: those that begin with one of `prefixes`, and with none of `without`."""

    prefixes: tuple[str, ...] = ("",)
    without: tuple[str, ...] = ()

    def __contains__(self, name: str) -> bool:
        return name.startswith(self.prefixes) and not (self.without and name.startswith(self.without))

    def of(self, tensors: Layout) -> dict[str, TensorSpec]:
        """The part of a layout, in its order."""
        return {name: spec for name, spec in tensors.items() if name in self}


EVERYTHING = Part()


@lru_cache(maxsize=4)  # a run has one architecture a round; building a model to read its names takes 15 to 70 ms
def layout(arch: Architecture) -> Layout:
    """Every tensor in the state of an architecture's model."""
    with torch.random.fork_rng(devices=[]):
        return MappingProxyType(layout_of(MultimodalModel(arch, initialise=False).state_dict()))


def layout_of(state: Mapping[str, torch.Tensor]) -> dict[str, TensorSpec]:
    """The layout of given tensors."""
    return {
        name: TensorSpec(tuple(tensor.shape), str(tensor.dtype).removeprefix("torch."))
        for name, tensor in state.items()
    }
