"""Batches of a client's images for training and evaluation: cheap, vectorised, bit-repeatable."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from fedskew.data.augment import RandAugment, turn_and_zoom
from fedskew.data.preprocessing import IMAGENET, Statistics, central
from fedskew.data.resident import Cut, cut_resident
from fedskew.data.samples import DataError

_LUMA = (0.299, 0.587, 0.114)


@dataclass(frozen=True)
class Augmentation:
    """Random changes of training images that leave the diagnosis as it is.

    Attributes:
        flips: mirror left-right and top-bottom (each half of the time).
        quarter_turns: turn by a multiple of 90 degrees.
        colour: strength in [0, 1) of the jitter of brightness, contrast and saturation, each scaled by a
            factor from [1 - colour, 1 + colour]; 0 is off.
        crop: cut the image out at a random place of the (larger) cached one, not at its centre.
        zoom: turn by any angle and scale by up to e^±zoom; 0 is off.
        rand_augment: policy of timm's RandAugment; empty is off.
    """

    flips: bool = True
    quarter_turns: bool = True
    colour: float = 0.2
    crop: bool = True
    zoom: float = 0.0
    rand_augment: str = ""

    def __post_init__(self) -> None:
        if not 0 <= self.colour < 1:
            raise DataError(f"colour jitter {self.colour} must lie in [0, 1)")


class Batch(NamedTuple):
    """Normalised images, encoded metadata (in the order of the model's vocabularies), labels."""

    images: Tensor  # float32 [B, 3, S, S]
    metadata: Tensor  # int64 [B, V]
    labels: Tensor  # int64 [B]


class ImageBatches:
    """An iterable over batches; each iteration is one epoch.

    With a seed, epoch e is shuffled and augmented by a generator that depends on (seed, e) alone: it is the same
    bit by bit in every process. Iterating starts epoch 0, then 1, ...; `set_epoch` chooses. Without a seed,
    batches come in the order of `indices`, centrally cropped.
    """

    def __init__(
        self,
        images: np.ndarray,
        indices: np.ndarray,
        metadata: np.ndarray,
        labels: np.ndarray,
        *,
        batch_size: int,
        image_size: int,
        seed: int | None = None,
        augmentation: Augmentation | None = None,
        drop_last: bool = False,
        drawing: np.ndarray | None = None,
        resident: Tensor | None = None,
        statistics: Statistics = IMAGENET,
    ) -> None:
        """
        Args:
            images: uint8 [N, C, C, 3] with C >= `image_size`; may be a memory map.
            indices: int [n], the rows to use.
            metadata: int64 [N, V].
            labels: int64 [N].
            batch_size: B; the last batch is smaller unless `drop_last`.
            image_size: S.
            seed: None for evaluation.
            augmentation: None for none; needs a seed.
            drop_last: leave out the last batch if it is not full.
            drawing: probabilities [n] with which an epoch draws n indices, with repetition; None: each once.
            resident: the same images in the memory of a device (see `resident`): then batches are made there.
            statistics: mean and deviation of each channel that images are normalised with.

        Raises:
            DataError: shapes, sizes or indices do not fit together.
        """
        self._images, self._metadata, self._labels, self._resident = images, metadata, labels, resident
        self._indices = np.asarray(indices, dtype=np.int64)  # [n]
        self._batch_size, self._image_size, self._drop_last = batch_size, image_size, drop_last
        self._seed, self._augmentation, self._drawing = seed, augmentation, drawing
        self._rand_augment = (
            RandAugment(augmentation.rand_augment) if augmentation and augmentation.rand_augment else None
        )
        self._epoch, self._statistics = 0, statistics
        self._check()

    def _check(self) -> None:
        shape = self._images.shape
        if len(shape) != 4 or shape[1] != shape[2] or shape[3] != 3 or self._images.dtype != np.uint8:
            raise DataError(f"images must be uint8 [N, C, C, 3], got {self._images.dtype} {list(shape)}")
        if not 1 <= self._image_size <= shape[1]:
            raise DataError(f"image size {self._image_size} must lie in 1..{shape[1]}, the cached images' size")
        if self._metadata.shape[:-1] != (shape[0],) or self._labels.shape != (shape[0],):
            raise DataError(f"{shape[0]} images need metadata [{shape[0]}, V] and labels [{shape[0]}], "
                            f"got {list(self._metadata.shape)} and {list(self._labels.shape)}")  # fmt: skip
        if self._batch_size < 1:
            raise DataError(f"batch size {self._batch_size} must be at least 1")
        if self._indices.size and not (self._indices.min() >= 0 and self._indices.max() < shape[0]):
            raise DataError(f"indices must lie in 0..{shape[0] - 1}")
        if self._drawing is not None and self._drawing.shape != self._indices.shape:
            raise DataError(f"{len(self._indices)} indices need as many probabilities, got {list(self._drawing.shape)}")
        if self._augmentation is not None and self._seed is None:
            raise DataError("augmentation needs a seed; without one, batches are for evaluation")

    def __len__(self) -> int:
        full, rest = divmod(len(self._indices), self._batch_size)
        return full if self._drop_last or not rest else full + 1

    def set_epoch(self, epoch: int) -> None:
        """Let the next iteration be this epoch."""
        self._epoch = epoch

    def __iter__(self) -> Iterator[Batch]:
        epoch, self._epoch = self._epoch, self._epoch + 1
        return self._batches(epoch)

    def _batches(self, epoch: int) -> Iterator[Batch]:
        generator = None if self._seed is None else np.random.default_rng([self._seed, epoch])
        order = self._order(generator)
        for number in range(len(self)):
            rows = order[number * self._batch_size : (number + 1) * self._batch_size]  # [B]
            images = self._images_of(rows, generator)
            metadata, labels = torch.from_numpy(self._metadata[rows]), torch.from_numpy(self._labels[rows])
            yield Batch(images, metadata.to(images.device), labels.to(images.device))

    def _order(self, generator: np.random.Generator | None) -> np.ndarray:
        if generator is None:
            return self._indices
        if self._drawing is None:
            return generator.permutation(self._indices)
        return generator.choice(self._indices, len(self._indices), p=self._drawing)

    def _images_of(self, rows: np.ndarray, generator: np.random.Generator | None) -> Tensor:
        """Augmented, normalised images: float32 [B, 3, S, S]."""
        cut = self._draw(len(rows), generator)
        if self._resident is None:
            pixels = torch.from_numpy(self._cut(rows, cut))  # uint8 [B, S, S, 3]
        else:
            pixels = cut_resident(self._resident, rows, cut, self._image_size)
        changes = self._augmentation
        if changes is None or generator is None:
            return normalise(pixels, statistics=self._statistics)
        if self._rand_augment is not None:
            changed = self._rand_augment(pixels.cpu().numpy(), int(generator.integers(2**32)))
            pixels = torch.from_numpy(changed).to(pixels.device)
        images = normalise(pixels, changes.colour, generator, statistics=self._statistics)
        return turn_and_zoom(images, changes.zoom, generator) if changes.zoom else images

    def _draw(self, count: int, generator: np.random.Generator | None) -> Cut:
        """How the images of a batch are cut: at the centre and upright, or by chance."""
        margin = self._images.shape[1] - self._image_size
        corners = np.full((count, 2), central(self._images.shape[1], self._image_size))  # [B, 2]
        turns, flips = np.zeros(count, dtype=np.int64), np.zeros((count, 2), dtype=bool)
        if self._augmentation is not None and generator is not None:
            if self._augmentation.crop:
                corners = generator.integers(0, margin + 1, (count, 2))
            if self._augmentation.quarter_turns:
                turns = generator.integers(0, 4, count)
                flips[:, 0] = turns % 2 == 1  # swapped axes alone are a mirror image, with one flip a quarter turn
            if self._augmentation.flips:
                flips = generator.integers(0, 2, (count, 2)).astype(bool)
        return Cut(corners, turns, flips)

    def _cut(self, rows: np.ndarray, how: Cut) -> np.ndarray:
        """Crop, turn and flip: uint8 [B, S, S, 3]. Touches only the pixels that are used, and those once."""
        size = self._image_size
        cut = np.empty((len(rows), size, size, 3), dtype=np.uint8)
        for place, row in enumerate(rows):
            top, left = how.corners[place]
            view = self._images[row, top : top + size, left : left + size]
            view = view.transpose(1, 0, 2) if how.turns[place] % 2 else view
            down, right = how.flips[place] ^ (how.turns[place] >= 2)  # a half turn flips both ways
            cut[place] = view[:: -1 if down else 1, :: -1 if right else 1]
        return cut


def normalise(
    pixels: Tensor,
    strength: float = 0.0,
    generator: np.random.Generator | None = None,
    *,
    statistics: Statistics = IMAGENET,
) -> Tensor:
    """Scale to ImageNet's (or other) statistics, with colour jitter of the given strength.

    Brightness, contrast, saturation and normalisation are all affine in the colour, so together they are one
    3 x 3 matrix and one offset per image: a single batched product.

    Args:
        pixels: uint8 [B, S, S, 3].
        strength: as `Augmentation.colour`; 0, or no generator, is no jitter.
        generator: source of randomness.
        statistics: mean and deviation of each channel, of values from 0 to 1.

    Returns:
        float32 [B, 3, S, S].
    """
    count, height, width, _ = pixels.shape
    flat = pixels.view(count, -1, 3).to(torch.float32)  # [B, S*S, 3]
    made = _colour_transform(flat, strength, generator, statistics)
    matrix, offset = (part.to(pixels.device) for part in made)  # [B, 3, 3], [B, 3, 1]
    return torch.baddbmm(offset, matrix, flat.transpose(1, 2)).view(count, 3, height, width)


def _colour_transform(
    flat: Tensor, strength: float, generator: np.random.Generator | None, statistics: Statistics
) -> tuple[Tensor, Tensor]:
    count = flat.shape[0]
    mean_colour, deviation = (torch.tensor(values).view(1, 3, 1) for values in statistics)
    scale = 1 / (255 * deviation)  # [1, 3, 1]
    shift = -mean_colour / deviation  # [1, 3, 1]
    identity = torch.eye(3).expand(count, 3, 3)
    if generator is None or strength == 0 or count == 0:
        return scale * identity, shift.expand(count, 3, 1)
    factors = generator.uniform(1 - strength, 1 + strength, (3, count, 1, 1)).astype(np.float32)
    brightness, contrast, saturation = torch.from_numpy(factors)  # each [B, 1, 1]
    luma = torch.tensor(_LUMA).view(1, 1, 3)
    to_grey = luma.expand(1, 3, 3)
    saturate = saturation * identity + (1 - saturation) * to_grey  # [B, 3, 3]
    mean = brightness * (luma @ flat.mean(1).view(count, 3, 1).cpu())  # [B, 1, 1], grey level that contrast keeps
    matrix = brightness * contrast * saturate
    return scale * matrix, scale * (1 - contrast) * mean + shift
