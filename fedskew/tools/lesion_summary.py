"""What the measured focus says: is the own mask's figure higher than the controls', and by more than chance?"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import pairwise
from typing import Any

import numpy as np
from scipy.stats import rankdata

from fedskew.model.groups import ATTENTION, MLP, SublayerKey
from fedskew.tools.lesion_attention import DISC, OTHER, OWN, UnitFocus

RESAMPLES = 1000
INTERVAL = (2.5, 97.5)  # percentiles
CONTROLS = {OTHER: "another image's mask", DISC: "a central disc"}
Strata = Sequence[np.ndarray]  # unit indices of each stratum


def focus_summary(found: Mapping[SublayerKey, UnitFocus], *, seed: int = 0) -> dict[str, Any]:
    """For heads (`attention`) and for MLP groups (`mlp`), JSON-ready: focus of kept units against pruned ones.

    Each kind has the scopes `across` (all units together: mixes what differs between sublayers with what the claim is
    about), `within` (kept and pruned units of the same sublayer) and `stage 0`, `stage 1`, … (within the sublayers of
    one stage). A scope has

    - `kept`, `pruned`: units with skewness > 0 and ≤ 0 that are compared (within sublayers: only of those with both);
    - `own`, `other`, `disc`: for the image's own lesion mask, another image's, and a central disc of the same mean
      area, `{probability, low, high}`: that of a kept unit having more focus than a pruned one, ties counted half
      (0.5: no difference), and its 95 % interval. Over several sublayers it is the mean of their probabilities with
      the weights of van Elteren's test, n·m / (n + m + 1);
    - `own_minus_other`, `own_minus_disc`: `{difference, low, high}` of these probabilities on the same images;
    - `verdict`: whether the own mask gives more than the controls: the intervals of both differences lie above 0.

    Figures are None where no sublayer has units of both signs. Intervals are percentiles of 1,000 bootstrap samples
    of the images; which units are kept stays fixed. Units with constant norms, which have no skewness, do not count.

    Args:
        found: from `focus.measure_focus` with the masks of `focus.control_masks`.
        seed: of the bootstrap.
    """
    summary: dict[str, Any] = {}
    for kind in (ATTENTION, MLP):
        keys = sorted(key for key in found if key.kind == kind)
        if not keys:
            continue
        kept = np.concatenate([found[key].skewness.cpu().numpy() for key in keys])
        means = _bootstrap_means([found[key] for key in keys], seed)
        bounds = np.cumsum([0, *(len(found[key].skewness) for key in keys)])
        known = np.isfinite(kept)
        units = [np.arange(low, high)[known[low:high]] for low, high in pairwise(bounds)]
        scopes = {"across": [np.flatnonzero(known)], "within": units}
        for stage in sorted({key.stage for key in keys}):
            scopes[f"stage {stage}"] = [part for key, part in zip(keys, units, strict=True) if key.stage == stage]
        summary[kind] = {name: _scope(means, kept > 0, strata) for name, strata in scopes.items()}
    return summary


def _bootstrap_means(found: Sequence[UnitFocus], seed: int) -> dict[str, np.ndarray]:
    """Mean focus of every unit over the images, then over each bootstrap sample: by kind of mask, [1 + R, units]."""
    images = len(found[0].focus[OWN])
    drawn = np.random.default_rng(seed).multinomial(images, np.full(images, 1 / max(1, images)), RESAMPLES)
    weights = np.concatenate([np.ones((1, images)), drawn]) / max(1, images)  # [1 + R, images], the same for all masks
    return {
        mask: np.concatenate([weights @ unit.focus[mask].cpu().double().numpy() for unit in found], axis=1)
        for mask in (OWN, *CONTROLS)
    }


def _scope(means: Mapping[str, np.ndarray], kept: np.ndarray, strata: Strata) -> dict[str, Any]:
    both = [units for units in strata if kept[units].any() and not kept[units].all()]
    counted = np.concatenate(both) if both else np.zeros(0, dtype=np.int64)
    result: dict[str, Any] = {"kept": int(kept[counted].sum()), "pruned": int((~kept[counted]).sum())}
    chances = {mask: stratified_probability(values, kept, both) if both else None for mask, values in means.items()}
    for mask, chance in chances.items():
        result[mask] = _with_interval("probability", chance)
    for mask in CONTROLS:
        apart = None if chances[mask] is None else chances[OWN] - chances[mask]
        result[f"own_minus_{mask}"] = _with_interval("difference", apart)
    result["verdict"] = _verdict(result) if both else "nothing to compare"
    return result


def stratified_probability(values: np.ndarray, kept: np.ndarray, strata: Strata) -> np.ndarray:
    """Probability that a kept unit has a higher value than a pruned one of its stratum [R].

    Args:
        values: [R, units].
        kept: bool [units].
        strata: each with kept and pruned units.
    """
    total, weights = np.zeros(len(values)), 0.0
    for units in strata:
        ranks = rankdata(values[:, units], axis=1)[:, kept[units]]  # ties take their mean rank
        n, m = int(kept[units].sum()), int((~kept[units]).sum())
        weight = n * m / (n + m + 1)
        total += weight * (ranks.sum(1) - n * (n + 1) / 2) / (n * m)  # Mann-Whitney's U over the pairs
        weights += weight
    return total / weights


def _with_interval(name: str, values: np.ndarray | None) -> dict[str, float | None]:
    """The first value, and the interval of the others."""
    if values is None:
        return {name: None, "low": None, "high": None}
    low, high = np.percentile(values[1:], INTERVAL)
    return {name: round(float(values[0]), 4), "low": round(float(low), 4), "high": round(float(high), 4)}


def _verdict(result: Mapping[str, Any]) -> str:
    no_more = [name for mask, name in CONTROLS.items() if not result[f"own_minus_{mask}"]["low"] > 0]
    if no_more:
        return f"the own mask gives no more than {' and '.join(no_more)}"
    return "the own mask gives more than both controls"
