"""What a model says of every image of a test set: all that a later comparison needs, and no image."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np


@dataclass(frozen=True, eq=False)
class Predictions:
    """Labels and class probabilities of a test set, image by image.

    Attributes:
        images: [N] str, image ids.
        lesions: [N] str, the lesion that each image shows.
        labels: [N] int64, indices into `classes`.
        classes: class names in the order of the columns.
        probabilities: [N, classes] float32, rows sum to 1.
        round_number: the round after which the model was asked; -1 if it is no round of a run.
        model: SHA-256 of the model's file; empty where that is not known.
        groups: by name (`site`, `sex`, `age`) the group that each image belongs to, [N] str; empty where unknown.

    Raises:
        ValueError: the parts do not fit together.
    """

    images: np.ndarray
    lesions: np.ndarray
    labels: np.ndarray
    classes: tuple[str, ...]
    probabilities: np.ndarray
    round_number: int = -1
    model: str = ""
    groups: Mapping[str, np.ndarray] = field(default_factory=dict)

    def __post_init__(self) -> None:
        count = len(self.images)
        if not (
            len(self.lesions) == len(self.labels) == count and self.probabilities.shape == (count, len(self.classes))
        ):
            raise ValueError(
                f"{count} images, {len(self.lesions)} lesions, {len(self.labels)} labels and probabilities "
                f"{self.probabilities.shape} of {len(self.classes)} classes do not fit together"
            )
        if wrong := [name for name, column in self.groups.items() if len(column) != count]:
            raise ValueError(f"{count} images do not fit the {len(self.groups[wrong[0]])} values of group {wrong[0]}")
        if count and not 0 <= self.labels.min() <= self.labels.max() < len(self.classes):
            raise ValueError(f"labels lie outside of 0..{len(self.classes) - 1}")
