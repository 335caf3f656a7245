"""Do the units that skewness keeps really look at the lesion? A test of the paper's central claim, with controls.

A unit's focus on an image is the log of its mean activation norm inside a mask over that outside; above 0 it is more
active inside. The claim says that units with skewness > 0 have more of it than those with skewness ≤ 0. But lesions
lie in the middle of their pictures, and sublayers differ in both skewness and focus. So the same is measured with
masks that know nothing of the lesion at hand, another image's and a central disc, and within sublayers.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial

import numpy as np
import torch
from torch import Tensor, nn

from fedskew.console import counted
from fedskew.model.fusion import MultimodalModel
from fedskew.model.groups import SublayerKey
from fedskew.pruning.criteria import Summary, skewness
from fedskew.pruning.norms import to_picture
from fedskew.pruning.observe import Observation, observe
from fedskew.pruning.score import images_at_once
from fedskew.pruning.units import bundles

OWN, OTHER, DISC = "own", "other", "disc"
MASKS = (OWN, OTHER, DISC)
FAINT = 1e-6  # keeps the logarithm finite for a unit that is silent
LEAST = 0.01  # share of the picture inside and outside of a mask that an image needs to count


@dataclass(frozen=True)
class UnitFocus:
    """Skewness of the units of one sublayer [units], and their focus by kind of mask, each [images, units]."""

    skewness: Tensor
    focus: Mapping[str, Tensor]


def control_masks(masks: Tensor, seed: int) -> dict[str, Tensor]:
    """Each image's own lesion mask [B, S, S] and its controls, by kind.

    `other` gives every image the mask of another one, each mask once; `disc` gives all the same disc in the middle of
    the picture, as large as the masks are on average.

    Raises:
        ValueError: a single image has no other.
    """
    if len(masks) < 2:
        raise ValueError("the control with another image's mask needs at least 2 images")
    order = torch.from_numpy(np.random.default_rng(seed).permutation(len(masks)))
    other = torch.empty_like(masks)
    other[order] = masks[order.roll(1)]  # one cycle through all images: none keeps its own
    side = masks.shape[-1]
    away = torch.arange(side) - (side - 1) / 2
    distance = (away[:, None] ** 2 + away[None] ** 2).flatten()
    disc = torch.zeros(side * side, dtype=masks.dtype)
    disc[distance.argsort(stable=True)[: round(float(masks.mean()) * side * side)]] = 1
    return {OWN: masks, OTHER: other, DISC: disc.view(1, side, side).expand_as(masks)}


def measure_focus(
    model: MultimodalModel, images: Tensor, masks: Mapping[str, Tensor], *, reading: str
) -> dict[SublayerKey, UnitFocus]:
    """Skewness of every unit, and its focus on every image by every kind of mask, from one forward pass.

    Args:
        images: [B, 3, S, S].
        masks: by kind, float [B, S, S], 1 inside. Images do not count where any mask fills (nearly) all or nothing.
        reading: of the skewness, see `criteria.skewness`.
    """
    stacked = torch.stack(list(masks.values()), 1)  # [B, kinds, S, S]
    area = stacked.mean((2, 3))
    usable = ((area > LEAST) & (area < 1 - LEAST)).all(1)  # [B]
    summaries: dict[SublayerKey, Summary] = {}
    focus: dict[SublayerKey, list[Tensor]] = {}

    def look(seen: Observation, part: Tensor) -> None:
        new = skewness(seen, reading=reading)
        summaries[seen.key] = summaries[seen.key].merged(new) if seen.key in summaries else new
        probe = table[seen.key].group.probe
        norms = to_picture(seen.norms, probe)  # [b, H, W, units]
        inside = nn.functional.adaptive_avg_pool2d(stacked[part], probe.side)  # [b, kinds, H, W]
        focus.setdefault(seen.key, []).append(focus_of(norms, inside)[usable[part]])

    table = bundles(model.architecture, "ratio")
    parts = torch.arange(len(images)).split(images_at_once(images))
    for part in counted(parts, len(parts), "parts of images looked at"):
        observe(model, images[part], partial(look, part=part), table)
    found = {}
    for key, summary in summaries.items():
        values = torch.cat(focus[key])  # [usable images, kinds, units]
        found[key] = UnitFocus(summary.scores(), {kind: values[:, i] for i, kind in enumerate(masks)})
    return found


def focus_of(norms: Tensor, inside: Tensor) -> Tensor:
    """Log of the mean norm inside over that outside [B, kinds, units].

    Args:
        norms: [B, H, W, units].
        inside: share of each token that lies inside each kind of mask [B, kinds, H, W].
    """
    means = []
    for weight in (inside, 1 - inside):
        total = torch.einsum("bkhw,bhwu->bku", weight, norms)
        means.append(total / weight.sum((2, 3)).clamp_min(FAINT)[..., None])
    return (means[0] + FAINT).log() - (means[1] + FAINT).log()
