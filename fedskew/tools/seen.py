"""Which of the images that a model is evaluated on its run has trained or scored on, as far as files tell."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fedskew.runs.reading import read_split

OTHER_SPLIT = "this is not the test set of the run: its data or manifest differ"


@dataclass(frozen=True)
class Seen:
    """What an evaluation's images have to do with those of the run.

    Attributes:
        same_split: whether the data split as the run's did; None if the model file does not say how that was.
        trained: how many of the images have the ids of images in the run's training or open part; None if unknown.
        warnings: what a person must know before believing the figures.
    """

    same_split: bool | None
    trained: int | None
    warnings: tuple[str, ...]


def run_split(model: Path) -> dict[str, Any]:
    """The split of the run folder that a model file lies in, also in its `best/`; empty if it lies elsewhere."""
    for folder in (model.parent, model.parent.parent):
        if split := read_split(folder):
            return split
    return {}


def seen_images(
    images: Iterable[str], split: Mapping[str, Any], *, same_split: bool | None, everything: bool, test: int
) -> Seen:
    """Compare the ids of evaluated images with a run's split.

    Args:
        split: of the run, see `run_split`.
        same_split: see `Seen`.
        everything: the images are all of a data set, not a test split of it.
        test: images in the data's test split.
    """
    ids = list(images)
    if not split:
        return Seen(same_split, None, tuple(_without_folder(len(ids), same_split, everything=everything, test=test)))
    known = {*split["ids"]["open"], *(image for part in split["ids"]["parts"] for image in part)}
    trained = sum(image in known for image in ids)
    lines = [OTHER_SPLIT] if same_split is False and not everything else []
    if trained:
        which = "these figures include" if everything else "among these are"
        lines.append(
            f"{which} {trained} of {len(ids)} images that were in the run's training or open part, by their ids: it "
            "has been trained or scored on them"
        )
    return Seen(same_split, trained, tuple(lines))


def _without_folder(count: int, same_split: bool | None, *, everything: bool, test: int) -> list[str]:
    """What the split hash in a model file tells on its own."""
    if everything and same_split:
        return [f"these are the run's own data: {count - test} of {count} images were in its training or open part"]
    if same_split is False and not everything:
        return [f"{OTHER_SPLIT}; some of these images may have been trained on"]
    return []
