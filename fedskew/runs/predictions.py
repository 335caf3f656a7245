"""`predictions.npz`: what a run's model says of each test image, for comparisons in pairs. No image is in it.

NumPy's compressed archive of `images`, `lesions`, `labels`, `classes`, `probabilities` and `round`; about 60 KB for
1,700 images of seven classes. Written without a time stamp: the same predictions are the same bytes.
"""

from __future__ import annotations

import io
import zipfile
from pathlib import Path

import numpy as np

from fedskew.metrics.predictions import Predictions

PREDICTIONS = "predictions.npz"


class PredictionsError(RuntimeError):
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
    )
    return target.getvalue()


def read_predictions(path: Path) -> Predictions:
    """Predictions from a file, or from the `predictions.npz` of a folder.

    Raises:
        PredictionsError: there are none, or the file is damaged.
    """
    path = path / PREDICTIONS if path.is_dir() else path
    try:
        with np.load(path, allow_pickle=False) as file:
            return Predictions(
                images=file["images"],
                lesions=file["lesions"],
                labels=file["labels"].astype(np.int64),
                classes=tuple(str(name) for name in file["classes"]),
                probabilities=file["probabilities"],
                round_number=int(file["round"]),
            )
    except FileNotFoundError:
        raise PredictionsError(
            f"{path} does not exist: runs save it after an evaluated round; for a run without it, "
            f"fedskew evaluate RUN --data-dir DIR --predictions {path}"
        ) from None
    except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile) as error:
        raise PredictionsError(
            f"{path} cannot be read as predictions ({error}); make it anew with "
            f"fedskew evaluate RUN --data-dir DIR --predictions {path}"
        ) from error
