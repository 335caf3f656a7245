"""Lesion masks (`<image_id>_segmentation.png`), in the frame of the model's evaluation images."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path, PurePosixPath

import numpy as np

from fedskew.data.archives import open_store
from fedskew.data.choices import Fit
from fedskew.data.decode import decode
from fedskew.data.preprocessing import cache_size, central
from fedskew.data.samples import DataError

SUFFIX = "_segmentation.png"
LIMIT = 20 * 2**20  # bytes of one mask


def read_masks(path: Path, image_ids: Sequence[str], *, image_size: int, fit: Fit) -> np.ndarray:
    """Masks as float32 [N, S, S] in [0, 1], scaled and cropped exactly as `ImageBatches` does for evaluation.

    Args:
        path: folder or archive of the masks.
        image_ids: the masks wanted, in this order.

    Raises:
        DataError: a mask is not there or cannot be read.
    """
    store = open_store(path)
    names = {PurePosixPath(name).name.removesuffix(SUFFIX): name for name in store.names() if name.endswith(SUFFIX)}
    if missing := [image_id for image_id in image_ids if image_id not in names]:
        raise DataError(f"{path} holds no mask {missing[0]}{SUFFIX} ({len(missing)} of {len(image_ids)} are missing)")
    size = cache_size(image_size)
    corner = central(size, image_size)
    masks = np.empty((len(image_ids), image_size, image_size), dtype=np.float32)
    wanted = {names[image_id]: row for row, image_id in enumerate(image_ids)}
    for name in store.order(wanted):
        pixels = decode(store.read(name, LIMIT), size, fit)[
            corner : corner + image_size, corner : corner + image_size, 0
        ]
        masks[wanted[name]] = pixels > 127
    return masks
