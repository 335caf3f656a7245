"""The gradients of the loss by the weights of prunable units, without touching the model."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from typing import cast

import torch
from torch import Tensor, nn

from fedskew.model.fusion import MultimodalModel
from fedskew.model.groups import Segment, SublayerKey
from fedskew.pruning.annotations import Annotations
from fedskew.pruning.slicing import by_units
from fedskew.pruning.units import Table

PIXELS_AT_ONCE = 2**17  # of images that go through the model together: all that they leave is kept for the way back


def unit_gradients(
    model: MultimodalModel, segments: Sequence[Segment], tokens: Tensor, known: Annotations, table: Table
) -> dict[SublayerKey, tuple[Tensor, ...]]:
    """Gradients of the cross entropy, summed over images, by what goes with each unit: each [units, values].

    They are summed over a few images at a time, so memory does not grow with their number.

    Args:
        segments: the rest of the forward pass.
        tokens: what goes into the first of them, of all images.
        known: labels are needed; metadata count as unknown where they are not given.
    """
    names = {key: [cut.name for cut in units.group.cuts] for key, units in table.items()}
    parameters = [model.encoder.get_parameter(name) for each in names.values() for name in each]
    total = [torch.zeros_like(parameter) for parameter in parameters]
    size = max(1, PIXELS_AT_ONCE // model.architecture.image_size**2)
    with _differentiable(parameters):
        for start in range(0, len(tokens), size):
            part = slice(start, start + size)
            loss = _loss(model, segments, tokens[part], known[part])
            for sums, gradient in zip(total, torch.autograd.grad(loss, parameters), strict=True):
                sums += gradient
    found = iter(total)
    return {key: by_units([next(found) for _ in names[key]], units) for key, units in table.items()}


def _loss(model: MultimodalModel, segments: Sequence[Segment], tokens: Tensor, known: Annotations) -> Tensor:
    for segment in segments:
        tokens = segment.run(tokens)
    metadata = known.metadata
    if metadata is None:
        metadata = tokens.new_zeros(len(tokens), len(model.architecture.vocabularies), dtype=torch.long)
    logits = model.classify(tokens, metadata)
    return nn.functional.cross_entropy(logits.float(), cast(Tensor, known.labels), reduction="sum")


@contextmanager
def _differentiable(parameters: Sequence[nn.Parameter]) -> Iterator[None]:
    """Gradients are followed, through frozen parameters too."""
    with torch.enable_grad(), ExitStack() as restore:
        for parameter in parameters:
            restore.callback(parameter.requires_grad_, parameter.requires_grad)
            parameter.requires_grad_(True)
        yield
