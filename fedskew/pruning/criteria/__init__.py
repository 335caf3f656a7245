"""Criteria: what is kept of a look at a sublayer, and the one score a unit that it gives. Higher means "keep".

A new criterion is one function from an `Observation` to a `Summary` and a name (`register_criterion`). Summaries of
different images can be merged, so that the scoring images need not be in memory together, and so that the scores of
two halves of them (are the signs more than noise?) come from the same forward pass as those of all.
"""

from __future__ import annotations

from functools import partial

from fedskew.pruning.criteria.base import (
    CRITERIA,
    Criterion,
    CriterionFactory,
    CriterionSettings,
    Fixed,
    Needing,
    Negative,
    Ratio,
    Summary,
    make_criterion,
    register_criterion,
)
from fedskew.pruning.criteria.responses import activation_norm, lesion_attention, taylor
from fedskew.pruning.criteria.shape import READINGS, kurtosis, skewness, skewness_reversed
from fedskew.pruning.criteria.weights import automatic, l1_norm, l2_norm, random_scores

__all__ = [
    "CRITERIA", "READINGS", "WITHOUT_SIGN", "Criterion", "CriterionFactory", "CriterionSettings", "Fixed", "Needing",
    "Negative", "Ratio", "Summary", "make_criterion", "register_criterion", "skewness",
]  # fmt: skip

CRITERIA.add("skewness", lambda settings: partial(skewness, reading=settings.reading))
CRITERIA.add("skewness-reversed", lambda settings: partial(skewness_reversed, reading=settings.reading))
CRITERIA.add("kurtosis", lambda settings: partial(kurtosis, reading=settings.reading))
CRITERIA.add("activation-norm", lambda settings: activation_norm)
CRITERIA.add("l1-norm", lambda settings: l1_norm)
CRITERIA.add("l2-norm", lambda settings: l2_norm)
CRITERIA.add("taylor", lambda settings: Needing(taylor, gradients=True))
CRITERIA.add("automatic", lambda settings: partial(automatic, boundary=settings.boundary))
CRITERIA.add("random", lambda settings: partial(random_scores, seed=settings.seed))
CRITERIA.add("lesion-attention", lambda settings: Needing(lesion_attention, masks=True))

# Scores that are never below 0: the rule `sign` has nothing to go by.
WITHOUT_SIGN = ("activation-norm", "l1-norm", "l2-norm", "taylor", "random", "lesion-attention")
