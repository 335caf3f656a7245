"""2-norms of units over their channels, however a family lays out its tokens: a fast path for CPUs."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from fedskew.model.groups import TOKENS, WINDOWS, Probe

CHUNK = 131_072  # hidden values whose norms are computed at a time: they stay in the processor's cache
PRODUCT_WIDTH = 64  # values a row of the matrix product that sums small groups


def unit_norms(values: Tensor, probe: Probe, units: int) -> Tensor:
    """Norms [B, windows, positions, units] of activations that lie as a probe says, `units` neighbours in C."""
    if probe.layout == WINDOWS:
        norms = values.unflatten(-1, (units, -1)).float().norm(dim=-1)  # [B·nW, W², units]
        return torch.unflatten(norms, 0, (-1, (-(-probe.side // probe.window)) ** 2))
    size = values.shape[-1] // units
    if probe.layout == TOKENS:
        return group_norms(values, size)[:, None]
    return windowed_norms(values, size, probe.window)


def windowed_norms(hidden: Tensor, size: int, window: int) -> Tensor:
    """2-norms over groups of `size` channels of [B, H, W, C], as [B, windows, window², C / size].

    On a CPU some images at a time, so that nothing but the norms themselves leaves the cache.
    """
    if hidden.device.type != "cpu":
        return to_windows(group_norms(hidden, size), window)
    images = max(1, CHUNK // max(1, hidden[0].numel()))
    first, *rest = torch.split(hidden, images)
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
        norms: Tensor = hidden.unflatten(-1, (-1, size)).float().norm(dim=-1)
        return norms
    ones = torch.eye(together).repeat_interleave(size, 0)  # [together·size, together]
    squares = hidden.float().square().view(-1, together * size)
    return (squares @ ones).sqrt_().view(*hidden.shape[:-1], -1)


def to_windows(tokens: Tensor, window: int) -> Tensor:
    """[B, H, W, U] as [B, windows, window², U] of the unshifted grid, padded with zeros to whole windows."""
    side = tokens.shape[1]
    padding = -side % window
    tokens = nn.functional.pad(tokens, (0, 0, 0, padding, 0, padding)) if padding else tokens
    rows = (side + padding) // window
    grid: Tensor = tokens.unflatten(2, (rows, window)).unflatten(1, (rows, window))  # [B, rows, W, cols, W, U]
    return grid.transpose(2, 3).flatten(3, 4).flatten(1, 2)


def valid_positions(probe: Probe) -> Tensor:
    """[windows, positions] bool: which positions lie inside the picture (timm pads at the right and bottom)."""
    if probe.layout == TOKENS:
        return torch.ones(1, probe.prefix + probe.side**2, dtype=torch.bool)
    return to_windows(torch.ones(1, probe.side, probe.side, 1), probe.window)[0, :, :, 0] > 0


def to_picture(norms: Tensor, probe: Probe) -> Tensor:
    """Norms [B, windows, positions, units] back as tokens of the picture [B, side, side, units].

    Undoes padding and the cyclic shift; tokens that are no part of the picture are left out.
    """
    if probe.layout == TOKENS:
        return torch.unflatten(norms[:, 0, probe.prefix :], 1, (probe.side, probe.side))
    window, rows = round(norms.shape[2] ** 0.5), round(norms.shape[1] ** 0.5)
    grid = norms.unflatten(2, (window, window)).unflatten(1, (rows, rows))  # [B, rows, cols, W, W, U]
    tokens: Tensor = grid.transpose(2, 3).flatten(3, 4).flatten(1, 2)[:, : probe.side, : probe.side]
    return torch.roll(tokens, (probe.shift, probe.shift), (1, 2)) if probe.shift else tokens
