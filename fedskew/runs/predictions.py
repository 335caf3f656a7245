"""`predictions.npz`: what a run's model says of each test image, for comparisons in pairs. No image is in it.

NumPy's compressed archive of `images`, `lesions`, `labels`, `classes`, `probabilities`, `round`, `model` (SHA-256 of
the model file) and `group.site`, `group.sex`, `group.age` (a band of years); what comes last is absent in those of
earlier versions. About 60 KB for 1,700 images of seven classes. Written without a time stamp: the same predictions are
the same bytes.
"""

from __future__ import annotations

import io
import os
import zipfile
import zlib
from pathlib import Path

import numpy as np

from fedskew.errors import FedskewError
from fedskew.files import file_sha256
from fedskew.metrics.predictions import Predictions
from fedskew.runs.reading import METRICS, MODEL, PREDICTIONS, STATE

GROUP = "group."
MAX_BYTES = 2**30  # unpacked; a million images of seven classes are a fifth of it
DAMAGE = (
    OSError, ValueError, KeyError, TypeError, AttributeError, EOFError, MemoryError, NotImplementedError,
    zipfile.BadZipFile, zlib.error,
)  # fmt: skip  # what NumPy's reader makes of hostile bytes
SAME_ACCURACY = 1e-4  # what rounding in records may change; one of 5,000 images is more


class PredictionsError(FedskewError, RuntimeError):
    """Predictions that cannot be read; the message names the file and the remedy."""


def encode_predictions(predictions: Predictions) -> bytes:
    """The content of a predictions file."""
    target = io.BytesIO()
    np.savez_compressed(
        target,
        images=predictions.images,
        lesions=predictions.lesions,
        labels=predictions.labels.astype(np.int16),
        classes=np.array(predictions.classes),
        probabilities=predictions.probabilities.astype(np.float32),
        round=np.array(predictions.round_number),
        **({"model": np.array(predictions.model)} if predictions.model else {}),
        **{f"{GROUP}{name}": column for name, column in sorted(predictions.groups.items())},
    )
    return target.getvalue()


def accuracy_of(predictions: Predictions) -> float:
    """The share of images whose likeliest class is their label."""
    return float((predictions.probabilities.argmax(1) == predictions.labels).mean())


def check_target(target: Path, model: Path) -> bool:
    """Make sure, before a model is asked, that what it says can be written to a file and belongs there.

    Args:
        model: its file.

    Returns:
        Whether that is the place of the model's own predictions in a run folder.

    Raises:
        PredictionsError: a folder, a place that is not there or cannot be written, another kind of file, or a run's
            own predictions that would become those of another model.
    """
    folder = target.absolute().parent
    if target.is_dir():
        raise PredictionsError(f"{target} is a folder; name a file in it, as {target / 'other-images.npz'}")
    if not folder.is_dir():
        raise PredictionsError(f"{target} cannot be written: there is no folder {folder}; make it, or name another")
    if not os.access(folder, os.W_OK | os.X_OK):
        raise PredictionsError(f"{target} cannot be written: {folder} is not writable; name another place")
    if target.suffix != ".npz":
        raise PredictionsError(f"predictions are an .npz file, and {target} is named otherwise")
    if (folder / STATE).is_file():
        raise PredictionsError(f"{folder} is a checkpoint, which nothing may change; name another place")
    if target.name != PREDICTIONS or not any((folder / name).is_file() for name in (MODEL, METRICS)):
        return False
    if not (folder / MODEL).is_file() or file_sha256(folder / MODEL) != file_sha256(model):
        raise PredictionsError(
            f"{target} is where the run in {folder} keeps what its own model says, and {model} is another: `compare` "
            "would take it for that run's. Name another place, or evaluate that run itself"
        )
    return True


def read_predictions(path: Path) -> Predictions:
    """Predictions from a file, or from the `predictions.npz` of a folder.

    Raises:
        PredictionsError: there are none, or the file is damaged.
    """
    path = path / PREDICTIONS if path.is_dir() else path
    try:
        with zipfile.ZipFile(path) as archive:
            if (size := sum(member.file_size for member in archive.infolist())) > MAX_BYTES:
                raise ValueError(f"{size:,} bytes unpacked, at most {MAX_BYTES:,} are read")
        with np.load(path, allow_pickle=False) as file:
            return Predictions(
                images=file["images"],
                lesions=file["lesions"],
                labels=file["labels"].astype(np.int64),
                classes=tuple(str(name) for name in file["classes"]),
                probabilities=file["probabilities"],
                round_number=int(file["round"]),
                model=str(file["model"]) if "model" in file else "",
                groups={name.removeprefix(GROUP): file[name] for name in file.files if name.startswith(GROUP)},
            )
    except FileNotFoundError:
        raise PredictionsError(
            f"{path} does not exist: runs save it after an evaluated round; for a run without it, "
            f"fedskew evaluate RUN --data-dir DIR --predictions {path}"
        ) from None
    except DAMAGE as error:
        raise PredictionsError(
            f"{path} cannot be read as predictions ({str(error).partition(chr(10))[0]}); make it anew with "
            f"fedskew evaluate RUN --data-dir DIR --predictions {path}"
        ) from error
