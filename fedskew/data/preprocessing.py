"""What is done to a picture before the model sees it: enough, together with `decode`, to do the same elsewhere.

Knows numpy only: a device that runs an exported model has no torch.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from typing import Any, get_args

import numpy as np

from fedskew.data.choices import Fit
from fedskew.data.samples import DataError

Statistics = tuple[tuple[float, ...], tuple[float, ...]]  # mean and deviation of each channel

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)
IMAGENET: Statistics = (IMAGENET_MEAN, IMAGENET_STD)
MARGIN = 1.125  # of the cached image to the cut one
MAX_EDGE = 4096


def cache_size(image_size: int) -> int:
    """The edge of cached images that leaves room for random crops of `image_size`."""
    return round(MARGIN * image_size)


def central(edge: int, image_size: int) -> int:
    """Where the central square of `image_size` begins in one of `edge`, from the top and from the left."""
    return (edge - image_size) // 2


@dataclass(frozen=True)
class Preprocessing:
    """Scale the upright picture to a square, cut out its centre, scale colours to 0..1, normalise each channel.

    Attributes:
        image_size: pixels a side of what the model sees.
        edge: pixels a side of the square that it is cut out of.
        fit: `squash` (the whole picture, its aspect lost) or `crop` (its central square), before it is scaled.
        mean, deviation: of each channel (RGB), of values from 0 to 1.
    """

    image_size: int
    edge: int
    fit: Fit
    mean: tuple[float, float, float] = IMAGENET_MEAN
    deviation: tuple[float, float, float] = IMAGENET_STD

    def __post_init__(self) -> None:
        sizes = (self.image_size, self.edge)
        if any(type(size) is not int for size in sizes) or not 1 <= self.image_size <= self.edge <= MAX_EDGE:
            raise DataError(
                f"preprocessing: image_size {self.image_size!r} and edge {self.edge!r} must be whole numbers with "
                f"1 <= image_size <= edge <= {MAX_EDGE}"
            )
        if self.fit not in get_args(Fit):
            raise DataError(f"preprocessing: fit is {self.fit!r}, expected {' or '.join(get_args(Fit))}")
        for name, values in (("mean", self.mean), ("deviation", self.deviation)):
            if len(values) != 3 or not all(type(v) in (int, float) and math.isfinite(v) for v in values):
                raise DataError(f"preprocessing: {name} must be three numbers, got {values!r:.80}")
        if min(self.deviation) <= 0:
            raise DataError(f"preprocessing: deviation must be above 0, got {self.deviation}")

    @property
    def statistics(self) -> Statistics:
        """Mean and deviation, as `ImageBatches` takes them."""
        return self.mean, self.deviation

    def prepared(self, pixels: np.ndarray) -> np.ndarray:
        """What the model sees of a decoded picture, uint8 [edge, edge, 3]: float32 [1, 3, S, S]."""
        start = central(self.edge, self.image_size)
        middle = pixels[start : start + self.image_size, start : start + self.image_size]
        mean, deviation = (np.array(values, dtype=np.float32) for values in self.statistics)
        scaled = middle.astype(np.float32) * (1 / (255 * deviation)) - mean / deviation  # [S, S, 3], as `normalise`
        return np.ascontiguousarray(scaled.transpose(2, 0, 1)[None])

    def to_mapping(self) -> dict[str, Any]:
        """Plain values for JSON."""
        return {key: list(value) if isinstance(value, tuple) else value for key, value in asdict(self).items()}


def training_preprocessing(image_size: int, fit: Fit) -> Preprocessing:
    """What training and the runs' own evaluation do."""
    return Preprocessing(image_size, cache_size(image_size), fit)


def preprocessing_from(mapping: Any) -> Preprocessing:
    """Rebuild what `Preprocessing.to_mapping` made.

    Raises:
        DataError: keys are missing or unknown, or values cannot be used.
    """
    names = {spec.name for spec in fields(Preprocessing)}
    if not isinstance(mapping, Mapping) or set(mapping) != names:
        raise DataError(f"preprocessing must hold {', '.join(sorted(names))}, got {mapping!r:.200}")
    return Preprocessing(**{key: tuple(value) if isinstance(value, list) else value for key, value in mapping.items()})
