"""Where in a picture the most skewed attention heads are active: their norms over it (paper, Eq. 1 and 5)."""

from __future__ import annotations

import base64
import io
from dataclasses import dataclass

import matplotlib as mpl
import numpy as np
import torch
from PIL import Image
from torch import Tensor

from fedskew.data.decode import Decoded
from fedskew.model.fusion import MultimodalModel
from fedskew.model.groups import ATTENTION, SublayerKey
from fedskew.pruning.criteria import skewness
from fedskew.pruning.norms import to_picture
from fedskew.pruning.observe import Observation, observe
from fedskew.pruning.score import FEW_VALUES
from fedskew.pruning.units import bundles
from fedskew.tools.torch_model import FedskewModel

COLOURS, PIXELS = "viridis", 256  # of a map, a side
FLAT = 1e-30  # keeps a map of equal norms finite


@dataclass(frozen=True, eq=False)
class HeadMap:
    """The norms of one head's output at every token of a picture.

    Attributes:
        key: of its attention.
        head: its number in the dense model.
        skewness: of its norms over this picture.
        norms: float32 [side, side], from the top left.
    """

    key: SublayerKey
    head: int
    skewness: float
    norms: np.ndarray


def head_maps(model: MultimodalModel, image: Tensor) -> list[HeadMap]:
    """The most skewed head of every stage on one picture, [1, 3, S, S], the most skewed of all first.

    The skewness is taken over all tokens of this picture (the reading `pool`), where that are at least `FEW_VALUES`: of
    fewer its sign is mostly chance, so that such stages have no map.
    """
    best: dict[int, HeadMap] = {}
    table = bundles(model.architecture, "ratio", [key for key in model.architecture.groups if key.kind == ATTENTION])

    def look(seen: Observation) -> None:
        summary = skewness(seen, reading="pool")
        scores = summary.scores().nan_to_num(-torch.inf)  # [heads]; NaN: constant norms, which show nothing
        place = int(scores.argmax())
        known = best.get(seen.key.stage)
        enough = summary.values is not None and summary.values >= FEW_VALUES and scores[place].isfinite()
        if enough and (known is None or float(scores[place]) > known.skewness):
            norms = to_picture(seen.norms, table[seen.key].group.probe)[0, ..., place]
            kept = model.architecture.left[seen.key]
            number = place if isinstance(kept, int) else kept[place]
            best[seen.key.stage] = HeadMap(seen.key, number, float(scores[place]), norms.cpu().numpy())

    observe(model, image, look, table)
    return sorted(best.values(), key=lambda one: -one.skewness)


def page_maps(model: FedskewModel, picture: Decoded) -> list[dict[str, str]]:
    """The maps of a picture for a page: `caption`, and `image` as a data URI."""
    image = torch.from_numpy(model.preprocessing.prepared(picture.pixels))
    return [
        {
            "caption": f"stage {one.key.stage}, block {one.key.block}, head {one.head}: skewness {one.skewness:+.2f}",
            "image": f"data:image/png;base64,{base64.b64encode(painted(one.norms)).decode()}",
        }
        for one in head_maps(model.module, image)
    ]


def painted(norms: np.ndarray) -> bytes:
    """A map as a PNG, from its smallest norm (dark) to its largest (bright), smooth between the tokens."""
    low, high = float(norms.min()), float(norms.max())
    shares = Image.fromarray((norms - low) / max(high - low, FLAT))
    smooth = np.asarray(shares.resize((PIXELS, PIXELS), Image.Resampling.BICUBIC)).clip(0, 1)
    out = io.BytesIO()
    Image.fromarray(mpl.colormaps[COLOURS](smooth, bytes=True)[..., :3].copy()).save(out, "PNG")
    return out.getvalue()
