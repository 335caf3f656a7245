"""Whether an exported model says the same as the one that it was made of. Pure NumPy on logits."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from fedskew.metrics import classification_metrics

MAX_DIFFERENCE = 1e-4  # of logits in float32
MAX_LOSS = 0.005  # of balanced accuracy
MIN_SAME = 0.99  # share of images with the same likeliest class


@dataclass(frozen=True)
class Parity:
    """How far the logits of two models lie apart on the same images, at most.

    Attributes:
        images: how many were looked at.
        largest: the largest absolute logit, for the scale.
    """

    images: int
    difference: float
    largest: float

    @property
    def failure(self) -> str:
        """Why the export may not be used; empty if it may."""
        if self.difference <= MAX_DIFFERENCE:  # so that NaN fails
            return ""
        return (
            f"on {self.images} real images its logits differ from PyTorch's by up to {self.difference:.2g} (the "
            f"largest logit is {self.largest:.3g}); at most {MAX_DIFFERENCE:g} is taken"
        )


@dataclass(frozen=True)
class Gate:
    """What a smaller model loses against the float32 model on the same images.

    Attributes:
        reference, found: balanced accuracy of the float32 model and of the smaller one.
        same: share of the images with the same likeliest class.
        difference: of logits, the largest.
    """

    images: int
    reference: float
    found: float
    same: float
    difference: float

    @property
    def failure(self) -> str:
        """Which limits it misses; empty if none."""
        points = 100 * (self.reference - self.found)
        lines = []
        if not self.reference - self.found <= MAX_LOSS + 1e-12:  # decimals: 0.5 points are taken
            lines.append(
                f"balanced accuracy falls by {points:.2f} points, from {100 * self.reference:.2f} to "
                f"{100 * self.found:.2f} %, at most {100 * MAX_LOSS:g} are taken"
            )
        if not self.same >= MIN_SAME:
            lines.append(
                f"{100 * self.same:.2f} % of the images get the same class, at least {100 * MIN_SAME:g} % are taken"
            )
        return "; ".join(lines)


def parity(reference: np.ndarray, found: np.ndarray) -> Parity:
    """Of logits [N, classes] of the same images."""
    return Parity(len(reference), _difference(reference, found), float(np.abs(reference).max()))


def gate(labels: np.ndarray, classes: Sequence[str], reference: np.ndarray, found: np.ndarray) -> Gate:
    """Of labels [N] and logits [N, classes] of the same images."""
    before, after = (
        float(classification_metrics(labels, softmax(logits), classes)["balanced_accuracy"])
        for logits in (reference, found)
    )
    same = float((reference.argmax(1) == found.argmax(1)).mean())
    return Gate(len(labels), before, after, same, _difference(reference, found))


def _difference(reference: np.ndarray, found: np.ndarray) -> float:
    with np.errstate(invalid="ignore"):  # infinities: the difference is NaN, which no limit takes
        return float(np.abs(reference.astype(np.float64) - found).max())


def softmax(logits: np.ndarray) -> np.ndarray:
    """Probabilities [N, classes] of logits."""
    with np.errstate(invalid="ignore"):
        powers = np.exp(logits - logits.max(1, keepdims=True))
    probabilities: np.ndarray = powers / powers.sum(1, keepdims=True)
    return probabilities
