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
from fedskew.pruning.annotations import NOTHING, Annotations
from fedskew.pruning.gradients import unit_gradients
from fedskew.pruning.norms import unit_norms, valid_positions
from fedskew.pruning.slicing import by_units
from fedskew.pruning.units import Bundles, Table


@dataclass(frozen=True)
class Observation:
    """What a criterion may look at to score the units of one sublayer.

    Attributes:
        key: of the sublayer.
        norms: [images, windows, window positions, units]: 2-norms over a unit's channels.
        valid: [windows, window positions] bool: False where a window reaches past the picture.
        weights: each [units, values]: the parameters that go when the unit goes.
        probe: how the norms lie (`norms.to_picture`).
        gradients: by these weights, of the cross entropy summed over the images; None unless the criterion asks.
        masks: of the lesions [images, S, S], 1 inside; None unless they are given.
    """

    key: SublayerKey
    norms: Tensor
    valid: Tensor
    weights: Sequence[Tensor]
    probe: Probe | None = None
    gradients: Sequence[Tensor] | None = None
    masks: Tensor | None = None

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
    model: MultimodalModel,
    images: Tensor,
    observer: Observer,
    table: Table,
    *,
    activation: str = "before-gelu",
    known: Annotations = NOTHING,
    gradients: bool = False,
) -> None:
    """Run images [B, 3, S, S] through the encoder once, up to the last of the sublayers, and show each to `observer`.

    The model is run in evaluation mode and left as it was: mode, gradients, weights and hooks.

    Args:
        gradients: whether observations have them, for which `known` needs labels: one pass more, forward and backward.
    """
    last = max(table, default=None)
    with evaluating(model), ExitStack() as hooks:
        segments = list(model.architecture.spec.segments(model.encoder)) if table else []
        slopes = unit_gradients(model, segments, images, known, table) if gradients and table else {}
        for key, units in table.items():
            hooks.enter_context(observed(model.encoder, units, observer, activation,
                                         masks=known.masks, gradients=slopes.get(key)))  # fmt: skip
        tokens = images
        for segment in segments:
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
def observed(
    encoder: nn.Module,
    units: Bundles,
    observer: Observer,
    activation: str,
    *,
    masks: Tensor | None = None,
    gradients: Sequence[Tensor] | None = None,
) -> Iterator[None]:
    """While this lasts, a sublayer of an encoder is shown to `observer` whenever it runs.

    Args:
        masks, gradients: what the observation has beside activations and weights.
    """
    probe = probe_of(units, activation)
    module = encoder.get_submodule(probe.module)
    device = next((parameter.device for parameter in encoder.parameters()), torch.device("cpu"))
    valid = valid_positions(probe).to(device)
    weights = partial(unit_weights, encoder, units)

    def look(values: Tensor) -> None:
        norms = unit_norms(values, probe, units.count)
        observer(Observation(units.group.key, norms, valid, LazyWeights(weights), probe, gradients, masks))

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
    return by_units([encoder.get_parameter(cut.name) for cut in units.group.cuts], units)
