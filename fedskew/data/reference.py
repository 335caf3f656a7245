"""What the pictures of a model's training are like in a few numbers, and in what a new picture is unlike them.

A model says something of any picture, of a document too. Who uses it is told where a picture is far from all that it
was trained on. This sees colour, contrast, detail, size and shape, not what a picture shows: that there is no note says
little. `benchmarks/unlike_notes.py` measures how often a note is a false alarm, and what it finds. Knows numpy only.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from fedskew.data.decode import Decoded
from fedskew.data.samples import DataError

QUANTILES = (0.005, 0.995)
WIDER = 0.2  # of the range between them, by which it is widened on both sides
LEAST_IMAGES = 100  # fewer say nothing of so far out a quantile
MOST_IMAGES = 2000  # more say nothing new
AT_ONCE = 64
FAINT = 1 / 512  # keeps logarithms finite: half a step of 8 bits


@dataclass(frozen=True)
class Feature:
    """A number that describes a picture.

    Attributes:
        words: what it is, for people.
        slack: by how much a range is widened at least; the factor e^slack where `ratio` is True.
        ratio: whether it is compared by its logarithm.
    """

    words: str
    slack: float
    ratio: bool = False

    def scale(self, value: float) -> float:
        """A value where distances can be compared."""
        return math.log(value + FAINT) if self.ratio else value


FEATURES: Mapping[str, Feature] = {
    "red": Feature("mean red", 0.02),
    "green": Feature("mean green", 0.02),
    "blue": Feature("mean blue", 0.02),
    "red-green": Feature("red above green", 0.02),
    "red-blue": Feature("red above blue", 0.02),
    "contrast": Feature("contrast", 0.1, ratio=True),
    "colour": Feature("colourfulness", 0.1, ratio=True),
    "detail": Feature("fine detail", 0.1, ratio=True),
    "side": Feature("shorter side in pixels", math.log(2), ratio=True),
    "shape": Feature("longer side by shorter side", math.log(1.2), ratio=True),
}


def features(pixels: np.ndarray, sides: np.ndarray) -> dict[str, np.ndarray]:
    """The features of decoded pictures, each [N].

    Args:
        pixels: uint8 [N, edge, edge, 3].
        sides: [N, 2], width and height of the pictures before they were scaled.
    """
    values = pixels.astype(np.float32) / 255
    red, green, blue = values.mean((1, 2)).T  # each [N]
    grey = values.mean(-1)  # [N, edge, edge]
    steps = [np.abs(np.diff(grey, axis=axis)).mean((1, 2)) for axis in (1, 2)]
    short = sides.min(1).astype(np.float64)
    return {
        "red": red, "green": green, "blue": blue, "red-green": red - green, "red-blue": red - blue,
        "contrast": grey.std((1, 2)), "colour": np.ptp(values, axis=-1).mean((1, 2)), "detail": sum(steps) / 2,
        "side": short, "shape": sides.max(1) / short,
    }  # fmt: skip


@dataclass(frozen=True)
class Reference:
    """Ranges of the features of some pictures.

    Attributes:
        images: how many pictures.
        ranges: two quantiles (`QUANTILES`) by the name of the feature.
    """

    images: int
    ranges: Mapping[str, tuple[float, float]]

    def notes(self, picture: Decoded) -> tuple[str, ...]:
        """One line if a picture is far from these, empty if not."""
        found = features(picture.pixels[None], np.array([[picture.width, picture.height]]))
        unlike = [
            f"{feature.words} {_number(found[name][0])} (theirs {' to '.join(map(_number, self.ranges[name]))})"
            for name, feature in FEATURES.items()
            if name in self.ranges and _is_outside(feature, float(found[name][0]), *self.ranges[name])
        ]
        return (f"unlike the pictures of its training: {', '.join(unlike)}",) if unlike else ()

    def to_mapping(self) -> dict[str, Any]:
        """Plain values for JSON."""
        return {"images": self.images, "ranges": {name: list(ends) for name, ends in self.ranges.items()}}


def _number(value: float) -> str:
    return f"{value:.0f}" if abs(value) >= 100 else f"{value:.3g}"


def _is_outside(feature: Feature, value: float, low: float, high: float) -> bool:
    start, end, place = feature.scale(low), feature.scale(high), feature.scale(value)
    slack = max(feature.slack, WIDER * (end - start))
    return not start - slack <= place <= end + slack


def measure(pixels: np.ndarray, sides: np.ndarray, images: np.ndarray) -> Reference | None:
    """The reference of some images of a cache; None if there are fewer than `LEAST_IMAGES`.

    Args:
        pixels: uint8 [N, edge, edge, 3]; may be a memory map.
        sides: [N, 2], as in `features`.
        images: int [n], which of them count; of more than `MOST_IMAGES`, that many, evenly spread.
    """
    if len(images) < LEAST_IMAGES:
        return None
    chosen = images[np.linspace(0, len(images) - 1, min(len(images), MOST_IMAGES)).round().astype(np.int64)]
    parts = [features(pixels[rows], sides[rows]) for rows in _chunks(chosen)]
    ranges = {}
    for name in FEATURES:
        low, high = np.quantile(np.concatenate([part[name] for part in parts]).astype(np.float64), QUANTILES)
        ranges[name] = (float(f"{low:.4g}"), float(f"{high:.4g}"))
    return Reference(len(chosen), ranges)


def _chunks(rows: np.ndarray) -> Iterable[np.ndarray]:
    return (rows[start : start + AT_ONCE] for start in range(0, len(rows), AT_ONCE))


def reference_from(mapping: Any) -> Reference:
    """Rebuild what `Reference.to_mapping` made; features of later versions are left out.

    Raises:
        DataError: it is none.
    """
    ranges = mapping.get("ranges") if isinstance(mapping, Mapping) else None
    if not isinstance(ranges, Mapping) or type(mapping.get("images")) is not int:
        raise DataError(f"reference must hold images and ranges, got {mapping!r:.200}")
    found = {name: tuple(ends) if isinstance(ends, list) else () for name, ends in ranges.items() if name in FEATURES}
    for name, ends in found.items():
        numbers = len(ends) == 2 and all(type(end) in (int, float) and math.isfinite(end) for end in ends)
        if not numbers or ends[0] > ends[1] or (FEATURES[name].ratio and ends[0] < 0):
            raise DataError(f"reference: {name} must be two ascending numbers, got {ranges[name]!r:.80}")
    return Reference(mapping["images"], found)
