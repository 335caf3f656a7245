"""What matters more than accuracy where a missed melanoma costs more than a needless excision. Classes of HAM10000."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

MELANOMA = "mel"
SENSITIVITY = 0.9
DANGEROUS = ("mel", "akiec", "bcc")  # malignant or a precursor
HARMLESS = ("nv", "bkl", "df", "vasc")


def specificity_at_sensitivity(positive: np.ndarray, scores: np.ndarray, sensitivity: float) -> float | None:
    """Share of the negatives below the highest threshold at which at least that share of the positives is found.

    An example is called positive if its score is at or above the threshold; nothing is interpolated.

    Args:
        positive: [N] bool.
        scores: [N], higher means more likely positive.
        sensitivity: above 0, at most 1.

    Returns:
        None unless there are both positives and negatives.
    """
    found = np.sort(scores[positive])[::-1]
    if not 0 < len(found) < len(scores):
        return None
    needed = math.ceil(sensitivity * len(found) - 1e-9)  # 0.9 · 10 is 9, whatever floating point says
    return float((scores[~positive] < found[max(needed, 1) - 1]).mean())


@dataclass(frozen=True)
class Degradation:
    """Recall that a second model lost against a first one, by kind of class; negative is a gain.

    Attributes:
        dangerous: mean recall lost by mel, akiec and bcc.
        harmless: mean recall lost by nv, bkl, df and vasc.
    """

    dangerous: float
    harmless: float

    @property
    def ratio(self) -> float | None:
        """Dangerous over harmless: above 1 the dangerous classes pay more. None unless the harmless ones lost some."""
        return self.dangerous / self.harmless if self.harmless > 0 else None


def degradation(first: Mapping[str, float | None], second: Mapping[str, float | None]) -> Degradation | None:
    """The dangerous-class degradation from the recall per class of two models.

    Classes without test images (recall None) are left out of the means.

    Returns:
        None if the classes are not HAM10000's, or one of the kinds has no test images.
    """
    means = []
    for kind in (DANGEROUS, HARMLESS):
        if not set(kind) <= set(first) & set(second):
            return None
        pairs = [(first[name], second[name]) for name in kind]
        lost = [before - after for before, after in pairs if before is not None and after is not None]
        if not lost:
            return None
        means.append(sum(lost) / len(lost))
    return Degradation(*means)
