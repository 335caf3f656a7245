"""How good predictions are, and how sure a difference between two models is. Pure NumPy on labels and probabilities."""

from fedskew.metrics.classification import classification_metrics
from fedskew.metrics.paired import Difference, PairingError, paired_differences, paired_over_seeds
from fedskew.metrics.predictions import Predictions

__all__ = ["Difference", "PairingError", "Predictions", "classification_metrics", "paired_differences",
           "paired_over_seeds"]  # fmt: skip
