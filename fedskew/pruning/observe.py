"""A forward pass over open data: what every prunable sublayer computes, and its weights, unit by unit.

A criterion sees an `Observation` of one sublayer at a time, inside the forward pass, so that the activations of
only one sublayer are alive at once (paper, section 3.1; Eq. 1 and 5).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import cached_property, partial

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from fedskew.model.fusion import MultimodalModel
from fedskew.model.groups import Probe, SublayerKey
from fedskew.pruning.norms import unit_norms, valid_positions
from fedskew.pruning.slicing import by_unit
from fedskew.pruning.units import Bundles, Table


@dataclass(frozen=True)
class Observation:
    """What a criterion may look at to score the units of one sublayer."""

    key: SublayerKey
    norms: Tensor  # [images, windows, window positions, units]: 2-norms over a unit's channels
    valid: Tensor  # [windows, window positions] bool: False where a window reaches past the picture
    weights: Sequence[Tensor]  # each [units, values]: the parameters that go when the unit goes

    @property
    def units(self) -> int:
        """How many units there are to score."""
        return self.norms.shape[-1]


class LazyWeights(Sequence[Tensor]):
    """Weights unit by unit, copied when a criterion first asks: most look at activations alone."""

    def __init__(self, make: Callable[[], tuple[Tensor, ...]]) -> None:
        self._make = make

    @cached_property
    def _made(self) -> tuple[Tensor, ...]:
        return self._make()

    def __getitem__(self, index: int) -> Tensor:  # type: ignore[override]
        return self._made[index]

    def __len__(self) -> int:
        return len(self._made)

    def __iter__(self) -> Iterator[Tensor]:
        return iter(self._made)


Observer = Callable[[Observation], None]


@torch.no_grad()
def observe(
    model: MultimodalModel, images: Tensor, observer: Observer, table: Table, *, activation: str = "before-gelu"
) -> None:
    """Run images [B, 3, S, S] through the encoder once, up to the last of the sublayers, and show each to `observer`.

    The model is run in evaluation mode and left as it was: mode, gradients, weights and hooks.
    """
    last = max(table, default=None)
    with evaluating(model), ExitStack() as hooks:
        for units in table.values():
            hooks.enter_context(observed(model.encoder, units, observer, activation))
        tokens = images
        for segment in model.architecture.spec.segments(model.encoder) if table else ():
            tokens = segment.run(tokens)
            if segment.key == last:
                break


@contextmanager
def evaluating(model: nn.Module) -> Iterator[None]:
    """Evaluation mode; afterwards every part of the model is in the mode that it was in."""
    with ExitStack() as restore:
        for module in model.modules():
            restore.callback(setattr, module, "training", module.training)
        model.eval()
        yield


def probe_of(units: Bundles, activation: str) -> Probe:
    """Where a sublayer is looked at: `prune.mlp-activation` decides where it has two places."""
    after = units.group.after
    return after if after and activation == "after-gelu" else units.group.probe


@contextmanager
def observed(encoder: nn.Module, units: Bundles, observer: Observer, activation: str) -> Iterator[None]:
    """While this lasts, a sublayer of an encoder is shown to `observer` whenever it runs."""
    probe = probe_of(units, activation)
    module = encoder.get_submodule(probe.module)
    device = next((parameter.device for parameter in encoder.parameters()), torch.device("cpu"))
    valid = valid_positions(probe).to(device)
    weights = partial(unit_weights, encoder, units)

    def look(values: Tensor) -> None:
        norms = unit_norms(values, probe, units.count)
        observer(Observation(units.group.key, norms, valid, LazyWeights(weights)))

    handle: RemovableHandle
    if probe.output:
        handle = module.register_forward_hook(lambda _, __, output: look(output))
    else:
        handle = module.register_forward_pre_hook(lambda _, inputs: look(inputs[0]))
    try:
        yield
    finally:
        handle.remove()


def unit_weights(encoder: nn.Module, units: Bundles) -> tuple[Tensor, ...]:
    """The parameters that go with each unit of a sublayer, each [units, values]."""
    return tuple(
        by_unit(encoder.get_parameter(cut.name), cut, units.count).movedim(cut.axis + 1, 0).flatten(1)
        for cut in units.group.cuts
    )
