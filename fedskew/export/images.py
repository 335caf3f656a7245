"""The real images that an export is calibrated and checked on: the run's own open ones, or those of a data set."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from fedskew.data.batches import Batch
from fedskew.data.samples import DataError
from fedskew.learning.datasets import DataSet, batches, divide_open, open_data, split_hash, split_server
from fedskew.model.architecture import Architecture
from fedskew.runs.folder import RunFolderError
from fedskew.tools.evaluate import Setting, config_beside, of_data

CALIBRATION = 256  # images, at most, and never more than half of what there is
FEWEST = 8  # images to check on
FEW = 100  # below this, a person is told so
BATCH = 16


@dataclass(frozen=True, eq=False)
class CheckImages:
    """Images by their indices in a data set.

    Attributes:
        calibration: the ranges of activations are those on these.
        checked: parity and gate are measured on these.
        test: the test images of the run; None where these are not the run's data.
        what: the checked ones in words.
    """

    data: DataSet
    setting: Setting
    calibration: np.ndarray
    checked: np.ndarray
    test: np.ndarray | None
    what: str

    def batches(self, indices: np.ndarray, arch: Architecture) -> Iterator[Batch]:
        """Images as the model sees them, with metadata and labels."""
        statistics = self.setting.preprocessing.statistics
        return iter(batches(self.data, indices, arch, batch_size=BATCH, statistics=statistics))


def check_images(
    model: Path, arch: Architecture, setting: Setting, data: Path | None, *, best: bool, manifest: str = ""
) -> CheckImages:
    """Images for the checks of an export.

    Of the run's own data: its open images, no test image among them and none that a node trained on. Those that are
    held back are checked on, with those that are not needed for calibration. Of other data: all of them, divided.

    Args:
        model: the model file.
        data: folder or archive; None: what the run itself used.

    Raises:
        RunFolderError: nothing says where data are.
        DataError: they cannot be read, or there are too few.
    """
    if data is None and not config_beside(model, best=best).is_file():
        raise RunFolderError(
            f"{model} does not say what data it was trained on, and an export is checked on real images before it is "
            "kept: give --data-dir"
        )
    config, prepared = of_data(setting, data, manifest), setting.preprocessing
    opened = open_data(config.data, prepared.image_size, vocabularies=arch.vocabularies, edge=prepared.edge)
    split = split_server(opened, config.data)
    known = setting.lineage.get("split_hash")
    own = data is None if known is None else known == split_hash(opened, split)
    if own:
        training, held_back = divide_open(opened, split, config.data)
        shuffled = np.random.default_rng(0).permutation(training)
        pool, what = np.concatenate([shuffled, held_back]), "open images of the run"
    else:
        pool, what = np.random.default_rng(0).permutation(opened.usable), "images of other data than the run's"
    count = min(CALIBRATION, len(pool) // 2)
    parts = np.sort(pool[:count]), np.sort(pool[count:]), split.test if own else None
    found = CheckImages(opened, setting, *parts, what)
    _check(found, arch)
    return found


def _check(found: CheckImages, arch: Architecture) -> None:
    labels = {found.data.samples[i].label for i in found.checked}
    if len(found.checked) < FEWEST or len(labels & set(arch.classes)) < 2:
        raise DataError(
            f"{found.data.place} leaves {len(found.checked)} images of {len(labels)} classes to check an export on, "
            f"and at least {FEWEST} of 2 classes are needed: give more with --data-dir"
        )
