"""A forward pass over open data: what every prunable sublayer computes, and its weights, unit by unit.

A criterion sees an `Observation` of one sublayer at a time, inside the forward pass, so that the activations of
only one sublayer are alive at once (paper, section 3.1; Eq. 1 and 5).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import cached_property, partial

import torch
from torch import Tensor, nn

from fedskew.architecture import Architecture
from fedskew.model.swin import MultimodalSwin, PrunedBlock
from fedskew.pruning.units import ATTENTION, MLP, SublayerKey, group_size, unit_count

CHUNK = 131_072  # hidden values whose norms are computed at a time: they stay in the processor's cache
PRODUCT_WIDTH = 64  # values a row of the matrix product that sums small groups


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
    model: MultimodalSwin,
    images: Tensor,
    observer: Observer,
    *,
    stages: Iterable[int],
    mlp_activation: str = "before-gelu",
    mlp_group: str = "ratio",
) -> None:
    """Run images [B, 3, S, S] through the encoder once, up to the last of the stages, and show each sublayer.

    The model is run in evaluation mode and left as it was: mode, gradients, weights and hooks.
    """
    arch, wanted = model.architecture, sorted(set(stages))
    keys = [SublayerKey(i, j, kind) for i, j in arch.positions() if i in wanted for kind in (ATTENTION, MLP)]
    with evaluating(model), ExitStack() as hooks:
        for key in keys:
            block = model.block(key.stage, key.block)
            hooks.enter_context(observed(block, key, arch, observer, mlp_activation, mlp_group))
        tokens = model.encoder.patch_embed(images)  # [B, H, W, C]
        for stage in model.encoder.layers[: wanted[-1] + 1 if wanted else 0]:
            tokens = stage(tokens)


@contextmanager
def evaluating(model: nn.Module) -> Iterator[None]:
    """Evaluation mode; afterwards every part of the model is in the mode that it was in."""
    with ExitStack() as restore:
        for module in model.modules():
            restore.callback(setattr, module, "training", module.training)
        model.eval()
        yield


@contextmanager
def observed(
    block: PrunedBlock, key: SublayerKey, arch: Architecture, observer: Observer, activation: str, group: str
) -> Iterator[None]:
    """While this lasts, one sublayer of a block is shown to `observer` whenever it runs; a removed one never does.

    Raises:
        ValueError: the MLP groups do not fit what is left of the sublayer.
    """
    handle = None
    valid = _valid_positions(arch.resolution(key.stage), arch.window(key.stage)).to(block_device(block))
    if key.kind == ATTENTION and block.has_attention:
        hook = partial(_on_heads, key=key, valid=valid, observer=observer, attention=block.attn)
        handle = block.attn.proj.register_forward_pre_hook(hook)
    if key.kind == MLP and block.has_mlp:
        unit_count(arch, key, group)  # raises
        hook = partial(_on_hidden, key=key, valid=valid, observer=observer, mlp=block.mlp,
                       size=group_size(group, arch, key.stage), window=arch.window(key.stage))  # fmt: skip
        handle = (block.mlp.fc1 if activation == "before-gelu" else block.mlp.act).register_forward_hook(hook)
    try:
        yield
    finally:
        if handle is not None:
            handle.remove()


def block_device(block: nn.Module) -> torch.device:
    """Device of a block's parameters (every block keeps at least one, or has nothing to observe)."""
    return next((parameter.device for parameter in block.parameters()), torch.device("cpu"))


def _on_heads(
    _: nn.Module,
    inputs: tuple[Tensor, ...],
    *,
    key: SublayerKey,
    valid: Tensor,
    observer: Observer,
    attention: nn.Module,
) -> None:
    outputs, heads = inputs[0], attention.num_heads  # [B·nW, W², K·D]
    norms = outputs.unflatten(-1, (heads, -1)).float().norm(dim=-1)  # [B·nW, W², K]
    norms = norms.unflatten(0, (-1, valid.shape[0]))  # [B, nW, W², K]
    observer(Observation(key, norms, valid, LazyWeights(partial(head_weights, attention))))


def _on_hidden(
    _: nn.Module,
    __: tuple[Tensor, ...],
    hidden: Tensor,
    *,
    key: SublayerKey,
    valid: Tensor,
    observer: Observer,
    mlp: nn.Module,
    size: int,
    window: int,
) -> None:
    norms = windowed_norms(hidden, size, window)  # [B, nW, W², G]
    observer(Observation(key, norms, valid, LazyWeights(partial(group_weights, mlp, size))))


def windowed_norms(hidden: Tensor, size: int, window: int) -> Tensor:
    """2-norms over groups of `size` channels of [B, H, W, C], as [B, windows, window², C / size].

    On a CPU some images at a time, so that nothing but the norms themselves leaves the cache.
    """
    if hidden.device.type != "cpu":
        return to_windows(group_norms(hidden, size), window)
    images = max(1, CHUNK // max(1, hidden[0].numel()))
    first, *rest = hidden.split(images)
    part = to_windows(group_norms(first, size), window)
    norms = part.new_empty(hidden.shape[0], *part.shape[1:])
    norms[:images] = part
    for number, chunk in enumerate(rest, 1):
        norms[number * images :][: len(chunk)] = to_windows(group_norms(chunk, size), window)
    return norms


def group_norms(hidden: Tensor, size: int) -> Tensor:
    """2-norms over groups of `size` neighbours: [..., C] to float32 [..., C / size].

    Sums over a few neighbours are slow on a CPU; the product of a block of squares with a matrix of ones and zeros
    gives the same sums three times as fast.
    """
    groups = hidden.numel() // size
    together = math.gcd(groups, PRODUCT_WIDTH // size) if size <= PRODUCT_WIDTH else 1
    if hidden.device.type != "cpu" or together == 1:
        return hidden.unflatten(-1, (-1, size)).float().norm(dim=-1)
    ones = torch.eye(together).repeat_interleave(size, 0)  # [together·size, together]
    squares = hidden.float().square().view(-1, together * size)
    return (squares @ ones).sqrt_().view(*hidden.shape[:-1], -1)


def head_weights(attention: nn.Module) -> tuple[Tensor, ...]:
    """The parameters that go with each head, each [K, values]: q, k, v rows and biases, proj columns, bias table."""
    heads = attention.num_heads
    qkv = attention.qkv.weight.unflatten(0, (3, heads, -1)).transpose(0, 1).flatten(1)
    bias = attention.qkv.bias.unflatten(0, (3, heads, -1)).transpose(0, 1).flatten(1)
    proj = attention.proj.weight.unflatten(1, (heads, -1)).transpose(0, 1).flatten(1)
    return qkv, bias, proj, attention.relative_position_bias_table.t()


def group_weights(mlp: nn.Module, size: int) -> tuple[Tensor, ...]:
    """The parameters that go with each MLP group, each [G, values]: fc1 rows and biases, fc2 columns."""
    fc1 = mlp.fc1.weight.unflatten(0, (-1, size)).flatten(1)
    bias = mlp.fc1.bias.unflatten(0, (-1, size))
    return fc1, bias, mlp.fc2.weight.t().unflatten(0, (-1, size)).flatten(1)


def to_windows(tokens: Tensor, window: int) -> Tensor:
    """[B, H, W, U] as [B, windows, window², U] of the unshifted grid, padded with zeros to whole windows."""
    side = tokens.shape[1]
    padding = -side % window
    tokens = nn.functional.pad(tokens, (0, 0, 0, padding, 0, padding)) if padding else tokens
    rows = (side + padding) // window
    grid = tokens.unflatten(2, (rows, window)).unflatten(1, (rows, window))  # [B, rows, W, cols, W, U]
    return grid.transpose(2, 3).flatten(3, 4).flatten(1, 2)


def _valid_positions(side: int, window: int) -> Tensor:
    """[windows, window²] bool: which window positions lie inside the picture (timm pads at the right and bottom)."""
    return to_windows(torch.ones(1, side, side, 1), window)[0, :, :, 0] > 0
