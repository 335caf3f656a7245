"""What a run folder records of its data: who gets which images, and what of it a person should know."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from fedskew.config.schema import Config, DataConfig
from fedskew.data.contradictions import several_sites_lines
from fedskew.data.duplicates import duplicate_lines
from fedskew.data.notes import empty_classes
from fedskew.data.partitions import sites_of
from fedskew.data.splits import Split, split_manifest, train_validation
from fedskew.learning.datasets import DataSet, partitions, split_hash


def run_manifest(config: Config, data: DataSet, split: Split, held_back: np.ndarray, nodes: int) -> dict[str, Any]:
    """The content of a run's split.json, but for the hash of its samples.

    Args:
        held_back: indices of the open images that are held back.
        nodes: how many share the data; 0: each has its own, and `nodes` is None.

    Raises:
        DataError: too few images for so many nodes.
    """
    settings = config.data
    parts = partitions(data, split, settings, nodes) if nodes else ()
    by_site = settings.partition == "site" and parts
    sites = {"sites": sites_of(data.samples, parts, settings.split_by)} if by_site else {}
    return (
        describe_split(data, split, parts, config.model.classes, settings.partition)
        | sites
        | {
            "unused_validation": 0 if config.federation.evaluate_clients else _held_out(data, settings, parts),
            "nodes": nodes or None,
            "held_back": [data.samples[i].image_id for i in held_back],
            "split_hash": split_hash(data, split),
        }
    )


def describe_split(
    data: DataSet,
    split: Split,
    parts: tuple[np.ndarray, ...],
    classes: Sequence[str] = (),
    kind: str = "iid",
) -> dict[str, Any]:
    """The manifest of a split, with where the data is and what of it should be told.

    Args:
        classes: of the model: those without images are among the `warnings`, as are duplicates and contradictions.
        kind: how the parts were made: where it is by site, who has images of several is told.
    """
    named = {"test": split.test, "open": split.open} | {f"partition-{i}": part for i, part in enumerate(parts)}
    warnings = [
        *empty_classes(data.samples, data.usable, split.test, classes),
        *data.warnings,
        *(several_sites_lines(data.samples) if kind == "site" else []),
        *duplicate_lines(data.samples, data.duplicates, named),
    ]
    about = {"data": data.place, "skipped": list(data.skipped), "notes": list(data.notes), "warnings": warnings}
    return split_manifest(data.samples, split, parts) | about


def _held_out(data: DataSet, settings: DataConfig, parts: Sequence[np.ndarray]) -> int:
    """How many images the nodes hold out for validation, as each of them will."""
    return sum(
        len(train_validation(data.samples, part, validation=settings.validation, unit=settings.split_by,
                             seed=settings.split_seed)[1])
        for part in parts
    )  # fmt: skip
