"""Mixup and cutmix of whole batches, by timm."""

from __future__ import annotations

import torch
from timm.data.mixup import Mixup, mixup_target
from torch import Tensor

from fedskew.data.augment import seeded_globals


class Mixing:
    """timm's mixup and cutmix with soft targets; does nothing where both strengths are 0."""

    def __init__(self, mixup: float, cutmix: float, *, classes: int, smoothing: float, seed: int) -> None:
        self._classes, self._smoothing, self._seed, self._step = classes, smoothing, seed, 0
        on = mixup > 0 or cutmix > 0
        self._mixup = Mixup(mixup, cutmix, label_smoothing=smoothing, num_classes=classes) if on else None

    @property
    def active(self) -> bool:
        """Whether targets are soft, [B, classes], and smoothed already."""
        return self._mixup is not None

    def __call__(self, images: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
        """Images [B, 3, S, S] and targets, [B] or soft; timm pairs images, so an odd one stays as it is."""
        if self._mixup is None:
            return images, labels
        self._step += 1
        even = len(images) // 2 * 2
        targets = mixup_target(labels, self._classes, smoothing=self._smoothing)
        if even:
            with seeded_globals(self._seed + self._step):
                mixed, soft = self._mixup(images[:even].clone(), labels[:even])  # timm works in place
            images, targets = torch.cat([mixed, images[even:]]), torch.cat([soft, targets[even:]])
        return images, targets
