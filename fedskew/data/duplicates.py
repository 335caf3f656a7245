"""Images that are there more than once, by content: reported where they can falsify a result, never a reason to stop.

A copy in the test set of an image in training makes figures too good; a copy under another label is a fault of the
labels; a copy under another lesion or patient is one that the split does not keep together.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence

import numpy as np

from fedskew.data.samples import Sample

Groups = tuple[tuple[int, ...], ...]
_SHOWN = 3  # groups in a line


def duplicate_groups(contents: np.ndarray, indices: np.ndarray) -> Groups:
    """Indices of images with equal content.

    Args:
        contents: uint8 [N, B], hashes.
        indices: int [n], the images to compare.

    Returns:
        Every group of two or more, ascending, in the order of their first images.
    """
    found: dict[bytes, list[int]] = {}
    for index in indices:
        found.setdefault(contents[index].tobytes(), []).append(int(index))
    return tuple(sorted(tuple(sorted(group)) for group in found.values() if len(group) > 1))


def duplicate_lines(samples: Sequence[Sample], groups: Groups, parts: Mapping[str, Iterable[int]]) -> list[str]:
    """What a person should know of duplicates: how many, and which are of different labels, lesions or parts.

    Args:
        parts: indices by name, e.g. `test`, `open`, `partition-0`; images in none are not compared by part.

    Returns:
        One line each, with the first few names; empty if there are no duplicates.
    """
    if not groups:
        return []
    owner = {int(index): name for name, indices in parts.items() for index in indices}
    aspects: dict[str, Callable[[int], str | None]] = {
        "labels": lambda index: samples[index].label,
        "lesions or patients": lambda index: samples[index].group,
        "parts of the split": owner.get,
    }
    copies = sum(len(group) - 1 for group in groups)
    lines = [
        f"duplicates by content: {copies} of {len(samples)} images are copies of others: {_listed(groups, samples)}"
    ]
    for name, value in aspects.items():
        across = [group for group in groups if len({value(index) for index in group} - {None}) > 1]
        if across:
            told = f"{len(across)} of {len(groups)} groups of equal images: {_listed(across, samples, value)}"
            lines.append(f"duplicates across {name}: {told}")
    return lines


def _listed(
    groups: Sequence[Sequence[int]], samples: Sequence[Sample], value: Callable[[int], str | None] | None = None
) -> str:
    def shown(index: int) -> str:
        return samples[index].image_id + (f" ({value(index)})" if value else "")

    text = "; ".join(" = ".join(map(shown, group)) for group in groups[:_SHOWN])
    return text + (f"; and {len(groups) - _SHOWN} more groups" if len(groups) > _SHOWN else "")
