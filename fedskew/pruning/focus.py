"""Do the units that skewness keeps really look at the lesion? A test of the paper's central claim with lesion masks.

A unit's focus on an image is the log of its mean activation norm inside the lesion over that outside; above 0 it is
more active inside. The claim says that units with skewness > 0 have more of it than those with skewness ≤ 0.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from scipy.stats import mannwhitneyu, spearmanr
from torch import Tensor, nn

from fedskew.model.swin import MultimodalSwin
from fedskew.pruning.criteria import skewness
from fedskew.pruning.observe import Observation, observe
from fedskew.pruning.units import ATTENTION, MLP, SublayerKey

FAINT = 1e-6  # keeps the logarithm finite for a unit that is silent


@dataclass(frozen=True)
class UnitFocus:
    """Skewness and lesion focus of the units of one sublayer, each [units]."""

    skewness: Tensor
    focus: Tensor


def measure_focus(
    model: MultimodalSwin, images: Tensor, metadata: Tensor, masks: Tensor, *, reading: str = "mean"
) -> dict[SublayerKey, UnitFocus]:
    """Skewness and mean lesion focus of every unit, from one forward pass.

    Args:
        images: [B, 3, S, S]; metadata: [B, vocabularies].
        masks: float [B, S, S], 1 inside the lesion. Images whose lesion fills all or nothing do not count.
        reading: of the skewness, see `criteria.skewness`.
    """
    found: dict[SublayerKey, UnitFocus] = {}

    def look(seen: Observation) -> None:
        block = model.block(seen.key.stage, seen.key.block)
        shift = block.shift_size[0] if seen.key.kind == ATTENTION else 0
        side = model.architecture.resolution(seen.key.stage)
        inside = nn.functional.adaptive_avg_pool2d(masks[:, None], side)[:, 0]  # [B, H, W]
        norms = to_tokens(seen.norms, side, shift)  # [B, H, W, units]
        found[seen.key] = UnitFocus(skewness(seen, reading=reading), _focus(norms, inside))

    observe(model, images, metadata, look, stages=range(len(model.architecture.stages)))
    return found


def to_tokens(norms: Tensor, side: int, shift: int) -> Tensor:
    """[B, windows, window², units] back to tokens [B, side, side, units]; undoes padding and the cyclic shift."""
    window = round(norms.shape[2] ** 0.5)
    rows = round(norms.shape[1] ** 0.5)
    grid = norms.unflatten(2, (window, window)).unflatten(1, (rows, rows))  # [B, rows, cols, W, W, U]
    tokens = grid.transpose(2, 3).flatten(3, 4).flatten(1, 2)[:, :side, :side]
    return torch.roll(tokens, (shift, shift), (1, 2)) if shift else tokens


def _focus(norms: Tensor, inside: Tensor) -> Tensor:
    weight = inside[..., None]
    usable = (inside.mean((1, 2)) > 0.01) & (inside.mean((1, 2)) < 0.99)
    within = (norms * weight).sum((1, 2)) / weight.sum((1, 2)).clamp_min(FAINT)  # [B, units]
    without = (norms * (1 - weight)).sum((1, 2)) / (1 - weight).sum((1, 2)).clamp_min(FAINT)
    return ((within + FAINT).log() - (without + FAINT).log())[usable].mean(0)


def focus_summary(found: dict[SublayerKey, UnitFocus]) -> dict[str, dict[str, Any]]:
    """For heads and for MLP groups: focus of the units that the sign rule keeps against those it prunes.

    `probability` is that of a kept unit having more focus than a pruned one (0.5: no difference), `p` that of the
    Mann-Whitney test, `spearman` the rank correlation of skewness and focus.
    """
    summary = {}
    for kind in (ATTENTION, MLP):
        values = [unit for key, unit in sorted(found.items()) if key.kind == kind]
        scores = np.concatenate([value.skewness.numpy() for value in values])
        focus = np.concatenate([value.focus.numpy() for value in values])
        known = np.isfinite(scores) & np.isfinite(focus)
        kept, pruned = focus[known & (scores > 0)], focus[known & (scores <= 0)]
        test = mannwhitneyu(kept, pruned) if len(kept) and len(pruned) else None
        summary[kind] = {
            "kept": len(kept),
            "pruned": len(pruned),
            "focus_kept": float(kept.mean()) if len(kept) else None,
            "focus_pruned": float(pruned.mean()) if len(pruned) else None,
            "probability": float(test.statistic / len(kept) / len(pruned)) if test else None,
            "p": float(test.pvalue) if test else None,
            "spearman": float(spearmanr(scores[known], focus[known]).statistic) if known.sum() > 2 else None,
        }
    return summary
