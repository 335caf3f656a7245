"""Augmentation beyond crops, turns and colour: any angle and scale, and timm's RandAugment."""

from __future__ import annotations

import random
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import torch
from PIL import Image
from timm.data.auto_augment import rand_augment_transform
from torch import Tensor, nn

from fedskew.data.samples import DataError

GREY = (124, 116, 104)  # ImageNet's mean colour: what RandAugment fills corners with
MOST_OPERATIONS = 15  # of one image, as many as timm knows: a task with a billion would never end, and fill the memory
MOST_CHARACTERS = 100  # of a policy


@contextmanager
def seeded_globals(seed: int) -> Iterator[None]:
    """Python's and NumPy's global generators, which timm draws from, seeded for the time being and then restored."""
    python, numpy = random.getstate(), np.random.get_state()
    random.seed(seed)
    np.random.seed(seed % 2**32)
    try:
        yield
    finally:
        random.setstate(python)
        np.random.set_state(numpy)


class RandAugment:
    """timm's RandAugment of uint8 images [B, S, S, 3], seeded batch by batch.

    Args:
        policy: as timm writes it, `rand-m5-n2-mstd0.5`: magnitude, operations an image, deviation of the magnitude.

    Raises:
        DataError: timm cannot read the policy, or it asks for too much.
    """

    def __init__(self, policy: str) -> None:
        try:
            if len(policy) > MOST_CHARACTERS:
                raise ValueError(f"of {len(policy)} characters, {MOST_CHARACTERS} at most are read")
            self._transform = rand_augment_transform(policy, {"img_mean": GREY})
        except (AssertionError, ValueError, KeyError, IndexError) as error:
            raise DataError(
                f"RandAugment policy {policy!r:.120} cannot be read ({error}); e.g. rand-m5-n2-mstd0.5"
            ) from None
        if self._transform.num_layers > MOST_OPERATIONS:
            raise DataError(
                f"RandAugment policy {policy!r} asks for {self._transform.num_layers} operations an image, and "
                f"{MOST_OPERATIONS} at most are done; e.g. rand-m5-n2-mstd0.5"
            )

    def __call__(self, pixels: np.ndarray, seed: int) -> np.ndarray:
        """The changed images, uint8 [B, S, S, 3]."""
        with seeded_globals(seed):
            return np.stack([np.asarray(self._transform(Image.fromarray(image))) for image in pixels])


def turn_and_zoom(images: Tensor, strength: float, generator: np.random.Generator) -> Tensor:
    """Turn images [B, 3, S, S] by any angle and scale them by e^u, u uniform in ±strength; mirrored beyond the edge."""
    angles = generator.uniform(0, 2 * np.pi, len(images))
    scales = np.exp(generator.uniform(-strength, strength, len(images)))
    cos, sin, zero = np.cos(angles) / scales, np.sin(angles) / scales, np.zeros(len(images))
    matrices = torch.from_numpy(np.array([[cos, -sin, zero], [sin, cos, zero]], dtype=np.float32)).permute(2, 0, 1)
    grid = nn.functional.affine_grid(matrices.to(images.device), list(images.shape), align_corners=False)
    return nn.functional.grid_sample(images, grid, padding_mode="reflection", align_corners=False)
