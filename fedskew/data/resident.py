"""Images that lie on the accelerator as a whole: cropping, turning and mirroring them is one gather, and nothing of a
batch but its indices crosses the bus.
"""

from __future__ import annotations

from functools import lru_cache
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from fedskew.data.cache import CachedImages


class Cut(NamedTuple):
    """How each image of a batch is cut out of the cached one."""

    corners: np.ndarray  # int [B, 2], top and left
    turns: np.ndarray  # int [B], quarter turns: 1 and 3 swap the axes, 2 and 3 flip both
    flips: np.ndarray  # bool [B, 2], upside down and left to right


@lru_cache(maxsize=2)  # the nodes of a simulation share a data set: it crosses the bus once a process
def resident_images(cached: CachedImages, device: torch.device) -> Tensor:
    """All images of a cache, uint8 [N, C, C, 3], in the memory of a device."""
    return torch.from_numpy(np.array(cached.images)).to(device)


def cut_resident(images: Tensor, rows: np.ndarray, cut: Cut, size: int) -> Tensor:
    """Crops of `size` pixels of some rows of images [N, C, C, 3]: uint8 [B, S, S, 3] on their device."""
    down, right = np.moveaxis(cut.flips ^ (cut.turns >= 2)[:, None], -1, 0)  # each [B]
    place = np.arange(size)
    vertical = np.where(down[:, None], size - 1 - place, place)[
        :, :, None
    ]  # [B, S, 1]: line of the cut before it turned
    horizontal = np.where(right[:, None], size - 1 - place, place)[:, None, :]  # [B, 1, S]
    swapped = (cut.turns % 2 == 1)[:, None, None]
    lines = np.where(swapped, horizontal, vertical) + cut.corners[:, 0, None, None]  # [B, S, S]
    columns = np.where(swapped, vertical, horizontal) + cut.corners[:, 1, None, None]  # [B, S, S]
    side = images.shape[1]
    index = torch.from_numpy((rows[:, None, None] * side + lines) * side + columns).to(images.device)
    return images.view(-1, 3)[index]
