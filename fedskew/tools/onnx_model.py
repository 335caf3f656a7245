"""A trained model in an exported ONNX file: needs onnxruntime, NumPy and Pillow, and no torch."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime

from fedskew.data.preprocessing import Preprocessing
from fedskew.data.reference import Reference
from fedskew.data.samples import NamedVocabularies
from fedskew.model.bounds import ArchitectureError
from fedskew.model.signature import (
    ModelFileError,
    Signature,
    about_from_json,
    preprocessing_of,
    reference_of,
    signature_from_json,
)
from fedskew.tools.onnx_file import ABOUT, ARCHITECTURE, IMAGES, LOGITS, METADATA, SEAL, seal
from fedskew.tools.predict import Predictor

ERRORS_ONLY = 3  # of onnxruntime's levels of logging
UNPACKED = ("session.disable_prepacking", "1")  # packing weights takes longer than one picture: half of the start


@dataclass(frozen=True, eq=False)
class OnnxModel(Predictor):
    """A trained model that onnxruntime runs.

    Attributes:
        session: takes `images` float32 [B, 3, S, S] and, where there are vocabularies, `metadata` int64 [B, V].
        signature: classes and vocabularies.
        preprocessing: how its pictures are prepared.
        reference: what the pictures of its training are like; None in files that do not say.
        about: what the file says of itself, as a model file does.
    """

    session: onnxruntime.InferenceSession
    signature: Signature
    preprocessing: Preprocessing
    reference: Reference | None = None
    about: Mapping[str, Any] = field(default_factory=dict)

    @property
    def classes(self) -> tuple[str, ...]:
        """Names of the classes, in the order of the logits."""
        return self.signature.classes

    @property
    def vocabularies(self) -> NamedVocabularies:
        """Names and values of the metadata, in the model's order."""
        return self.signature.vocabularies

    def _logits(self, images: np.ndarray, codes: np.ndarray) -> np.ndarray:
        given = {IMAGES: images} | ({METADATA: codes} if self.vocabularies else {})
        logits: np.ndarray = self.session.run([LOGITS], given)[0]
        return logits


def load_onnx(file: Path) -> OnnxModel:
    """The model of an exported file; see `load`.

    Raises:
        ModelFileError: there is no such file, it is no ONNX, none of fedskew's, or was changed after its export.
    """
    if not file.is_file():
        raise ModelFileError(f"{file} does not exist; give the path of an exported model")
    try:
        options = onnxruntime.SessionOptions()
        options.log_severity_level = ERRORS_ONLY
        options.add_session_config_entry(*UNPACKED)
        session = onnxruntime.InferenceSession(file, options, providers=["CPUExecutionProvider"])
    except Exception as error:  # onnxruntime's errors have no class in common
        raise ModelFileError(f"{file} cannot be read as an ONNX model: {str(error)[:300]}") from error
    said = session.get_modelmeta().custom_metadata_map
    if lacking := [key for key in (ARCHITECTURE, ABOUT, SEAL) if key not in said]:
        raise ModelFileError(f"{file} is no model that fedskew exported: its metadata hold no {', '.join(lacking)}")
    if seal(said) != said[SEAL]:
        raise ModelFileError(
            f"{file}: classes, preprocessing or lineage in its metadata were changed after the export, so that what it "
            "says could mean something else; export it again (fedskew export)"
        )
    try:
        signature = signature_from_json(said[ARCHITECTURE])
    except ArchitectureError as error:
        raise ModelFileError(f"{file} cannot be read as a model: {error}") from error
    about = about_from_json(said[ABOUT], file)
    prepared = preprocessing_of(about, file)
    if prepared is None:
        raise ModelFileError(f"{file} does not say how pictures are prepared; export it again (fedskew export)")
    _check_ends(file, session, signature, prepared)
    return OnnxModel(session, signature, prepared, reference_of(about, file), about)


def _check_ends(file: Path, session: onnxruntime.InferenceSession, known: Signature, prepared: Preprocessing) -> None:
    """Raise `ModelFileError` unless the graph takes and gives what the file says; the first axis is the batch."""
    size = prepared.image_size
    wanted = {IMAGES: ("tensor(float)", [3, size, size])}
    if known.vocabularies:
        wanted[METADATA] = ("tensor(int64)", [len(known.vocabularies)])
    for what, given, expected in (
        ("inputs", session.get_inputs(), wanted),
        ("outputs", session.get_outputs(), {LOGITS: ("tensor(float)", [len(known.classes)])}),
    ):
        found = {value.name: (value.type, list(value.shape[1:])) for value in given}
        if found != expected:
            raise ModelFileError(f"{file}: its {what} are {found}, by what it says of itself they must be {expected}")
