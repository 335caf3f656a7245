"""Pictures that look alike though their bytes differ: a perceptual hash, and the pairs whose hashes are close.

The hash is a pHash of 16 × 16 (Zauner, Implementation and Benchmarking of Perceptual Image Hash Functions, 2010): the
signs, against their median, of the lowest frequencies of the picture's cosine transform. It takes a copy that was
saved again, scaled, or changed in colour for the same picture; another photograph of the same lesion is another one.
`docs/data.md` has what it finds in HAM10000, by which `THRESHOLD` was chosen, and what other hashes find there.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
from scipy.fft import dctn

from fedskew.console import counted

EDGE = 32  # pixels a side of the grey picture that is transformed
SIDE = 16  # frequencies a side that are kept
BITS = SIDE * SIDE  # of a hash; the first stands for the mean brightness and is always 0
THRESHOLD = 28  # differing bits up to which two pictures count as the same
_LUMA = np.array([0.299, 0.587, 0.114], dtype=np.float32)  # ITU-R BT.601


def perceptual_hash(pictures: np.ndarray) -> np.ndarray:
    """Hashes of pictures.

    Args:
        pictures: uint8 [N, 32, 32, 3], RGB.

    Returns:
        uint64 [N, 4].
    """
    grey = pictures.astype(np.float32) @ _LUMA  # [N, 32, 32]
    low = dctn(grey, axes=(1, 2), norm="ortho")[:, :SIDE, :SIDE].reshape(len(grey), BITS)
    bits = low > np.median(low[:, 1:], axis=1, keepdims=True)  # the mean brightness says nothing
    bits[:, 0] = False
    return np.packbits(bits, axis=1).view(np.uint64)


def close_pairs(hashes: np.ndarray, parts: np.ndarray, threshold: int = THRESHOLD) -> Iterator[tuple[int, int, int]]:
    """(differing bits, i, j) of every pair of different parts whose hashes differ in at most `threshold` bits; i < j.

    Args:
        hashes: uint64 [N, 4].
        parts: int [N], which part each is in.
    """
    for i in counted(range(len(hashes) - 1), len(hashes) - 1, "images compared with those after them"):
        distances = np.bitwise_count(hashes[i] ^ hashes[i + 1 :]).sum(axis=1)  # [N - i - 1]
        for j in np.flatnonzero((distances <= threshold) & (parts[i + 1 :] != parts[i])):
            yield int(distances[j]), i, int(i + 1 + j)
