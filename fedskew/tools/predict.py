"""What a model says of one picture, whatever runs it: pictures and metadata are read the same way for all.

Knows no torch: `torch_model` and `onnx_model` only add how logits are computed.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Any

import numpy as np
from PIL import Image

from fedskew.data.decode import Decoded, UnreadableImage, decode_picture, decode_sized
from fedskew.data.preprocessing import Preprocessing
from fedskew.data.reference import Reference
from fedskew.data.samples import NamedVocabularies
from fedskew.data.sources import MAX_IMAGE_BYTES
from fedskew.tools.metadata import Metadata, encoded, named

Picture = str | Path | bytes | Image.Image


@dataclass(frozen=True)
class Prediction:
    """What a model says of one image.

    Attributes:
        probabilities: by the name of the class, in the model's order; they sum to 1.
        decision: the likeliest class.
        unknown: columns of the model's metadata that it took as unknown: not given, or no value that it has learned.
        notes: why to doubt it: values that the model has not learned, a picture unlike those of its training.
    """

    probabilities: Mapping[str, float]
    decision: str
    unknown: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()


class Predictor(ABC):
    """A trained model that says of pictures what they show.

    Attributes:
        preprocessing: how its pictures are prepared.
        reference: what the pictures of its training are like; None in files that do not say.
    """

    preprocessing: Preprocessing
    reference: Reference | None

    @property
    @abstractmethod
    def classes(self) -> tuple[str, ...]:
        """Names of the classes, in the order of the logits."""

    @property
    @abstractmethod
    def vocabularies(self) -> NamedVocabularies:
        """Names and values of the metadata, in the model's order."""

    @abstractmethod
    def _logits(self, images: np.ndarray, codes: np.ndarray) -> np.ndarray:
        """float32 [B, classes] of images [B, 3, S, S] and metadata indices [B, V]."""

    def preprocess(self, image: Picture) -> Any:
        """A picture as the model sees it: the same pixels as in training without augmentation.

        It is turned as its EXIF says, becomes RGB (from CMYK, grey or a palette), and is scaled and normalised as
        `preprocessing` says.

        Args:
            image: path of a JPEG or PNG file, its bytes, or a picture of Pillow's, which is left as it was.

        Returns:
            float32 [1, 3, S, S], in the kind of array that the model takes.

        Raises:
            UnreadableImage: it is none of these, damaged, absurdly large, or has 16 bits a channel.
        """
        return self.preprocessing.prepared(self.decoded(image).pixels)

    def predict(
        self, image: Picture, *, metadata: Mapping[str, Metadata] | None = None, **values: Metadata
    ) -> Prediction:
        """What the model says of a picture.

        Args:
            image: as `preprocess` takes it.
            metadata: values by the names of the model's own columns, `dict(vocabularies)`, for names that are no word
                of Python. A column in bins, as `age`, takes a number.
            values: the same as keywords: `age=55, sex="female", localization="back"`. `site` is the body site, the
                column `localization`, unless the model has a column `site` of its own.

        Raises:
            UnreadableImage: as `preprocess`.
            DataError: the model has no such column, a value is given twice, is neither text nor number, or an age
                that nobody has.
        """
        given = named(self.vocabularies, metadata, values)
        return self.predict_decoded(self.decoded(image), given)

    def predict_decoded(self, picture: Decoded, metadata: Mapping[str, Metadata]) -> Prediction:
        """`predict` of a picture that is decoded already, with metadata as `metadata.named` gives them."""
        known = encoded(self.vocabularies, metadata)
        logits = self._logits(self.preprocessing.prepared(picture.pixels), known.codes)[0].astype(np.float64)
        odds = np.exp(logits - logits.max())
        found = {name: float(value) for name, value in zip(self.classes, odds / odds.sum(), strict=True)}
        unlike = self.reference.notes(picture) if self.reference else ()
        decision = max(found, key=found.__getitem__)
        return Prediction(MappingProxyType(found), decision, known.unknown, (*known.notes, *unlike))

    def decoded(self, image: Picture) -> Decoded:
        """The pixels that the model's are cut out of, and how large the picture was.

        Raises:
            UnreadableImage: as `preprocess`.
        """
        edge, fit = self.preprocessing.edge, self.preprocessing.fit
        if isinstance(image, Image.Image):
            return decode_picture(image, edge, fit)
        if isinstance(image, bytes):
            return decode_sized(image, edge, fit)
        try:
            return decode_sized(content_of(Path(image)), edge, fit)
        except UnreadableImage as error:
            raise UnreadableImage(f"{image} is no image that can be used: {error}") from error


def content_of(path: Path) -> bytes:
    """The bytes of an image file.

    Raises:
        UnreadableImage: it cannot be read, or is larger than any image that is taken.
    """
    try:
        with path.open("rb") as file:
            content = file.read(MAX_IMAGE_BYTES + 1)
    except OSError as error:
        raise UnreadableImage(f"{path} cannot be read: {error.strerror or error}; give the path of an image") from None
    if len(content) > MAX_IMAGE_BYTES:
        raise UnreadableImage(f"{path} is larger than {MAX_IMAGE_BYTES >> 20} MiB, which no image needs; scale it down")
    return content
