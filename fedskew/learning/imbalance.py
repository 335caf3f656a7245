"""Against class imbalance: loss weights, logit adjustment and sampling, all from class counts.

Counts are a node's own, or the sum over the nodes that tell them: then all nodes optimise the same objective.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

POWERS = {"none": 0.0, "natural": 0.0, "sqrt": 0.5, "inverse": 1.0, "balanced": 1.0}
PRIOR_COUNT = 0.5  # added to every class (Krichevsky-Trofimov), so that the log of an absent one is finite


def class_counts(labels: np.ndarray, classes: int) -> np.ndarray:
    """How many examples of each class there are: int64 [classes] of labels [N]."""
    return np.bincount(labels, minlength=classes)


def class_weights(counts: np.ndarray, setting: str) -> Tensor | None:
    """Loss weight of each class [classes]: 1 / counts^½ (`sqrt`) or 1 / counts (`inverse`); None for `none`.

    Their mean over the counted examples is 1; a class without an example gets 0.
    """
    if setting == "none":
        return None
    weights = _rarity(counts, setting)
    return torch.tensor(weights * counts.sum() / max((weights * counts).sum(), 1e-12), dtype=torch.float32)


def logit_offsets(counts: np.ndarray, strength: float) -> Tensor | None:
    """What to add to the logits in training [classes]: strength · log π of the class shares π; None for 0.

    A model trained so, and used without the offsets, is a classifier for equally frequent classes at strength 1
    (Menon et al., Long-tail learning via logit adjustment, 2021, Eq. 10). With a node's own counts it is also what
    makes nodes with different class shares agree on one target (Zhang et al., FedLC, 2022).
    """
    if not strength:
        return None
    shares = (counts + PRIOR_COUNT) / (counts + PRIOR_COUNT).sum()
    return torch.tensor(strength * np.log(shares), dtype=torch.float32)


def drawing_weights(labels: np.ndarray, setting: str) -> np.ndarray | None:
    """Probability of each example in a draw [N]: classes in proportion to the root of their counts (`sqrt`) or all
    alike (`balanced`); None for `natural`.
    """
    if setting == "natural" or not len(labels):
        return None
    weights = _rarity(class_counts(labels, int(labels.max()) + 1), setting)[labels]
    shares: np.ndarray = weights / weights.sum()
    return shares


def _rarity(counts: np.ndarray, setting: str) -> np.ndarray:
    counts = np.asarray(counts, dtype=np.float64)
    return np.divide(1.0, counts ** POWERS[setting], out=np.zeros(len(counts)), where=counts > 0)
