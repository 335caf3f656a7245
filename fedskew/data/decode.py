"""Turn one encoded image into a small square of RGB bytes."""

from __future__ import annotations

import io
import re
from collections.abc import Iterator
from contextlib import contextmanager
from typing import NamedTuple

import numpy as np
from PIL import Image, UnidentifiedImageError

from fedskew.data.choices import Fit
from fedskew.errors import FedskewError

# No other decoder is ever given hospital files: what is decoded may come from anywhere, and TIFF alone is a dozen
# codecs, each with native code of its own. Other formats are recognised by their first bytes, to say so.
FORMATS = ("JPEG", "PNG")
_OTHER_FORMATS = {
    "TIFF": re.compile(rb"II\*\0|MM\0\*"),
    "BMP": re.compile(rb"BM"),
    "GIF": re.compile(rb"GIF8"),
    "WebP": re.compile(rb"RIFF....WEBP", re.DOTALL),
    "JPEG 2000": re.compile(rb"\0\0\0\x0cjP"),
    "HEIC or AVIF": re.compile(rb"....ftyp", re.DOTALL),
    "DICOM": re.compile(rb".{128}DICM", re.DOTALL),
}
_ADDRESS = re.compile(r" <_io\.[^>]*>")
MAX_PIXELS = 80_000_000  # below Pillow's warning threshold; a dermatoscope has a tenth of it
_OVERSAMPLING = 2  # the JPEG decoder may shrink to twice the final size; the rest is done with a better filter
_ORIENTATION_TAG = 0x0112
_UPRIGHT = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
_SIDEWAYS = frozenset({5, 6, 7, 8})


class UnreadableImage(FedskewError, ValueError):
    """The bytes are not an image that can be used; the message says why."""


class Decoded(NamedTuple):
    """A picture as the model's are cut out of it, and how large it was."""

    pixels: np.ndarray  # uint8 [size, size, 3], RGB
    width: int  # of the upright picture
    height: int


def decode(content: bytes, size: int, fit: Fit) -> np.ndarray:
    """The pixels of `decode_sized`: uint8 [size, size, 3], RGB."""
    return decode_sized(content, size, fit).pixels


def decode_sized(content: bytes, size: int, fit: Fit) -> Decoded:
    """Decode, turn upright, and scale one image.

    Args:
        content: a JPEG or PNG file.
        size: edge of the result in pixels.
        fit: `"squash"` keeps the whole image and gives up its aspect; `"crop"` keeps the central square.

    Raises:
        UnreadableImage: not an image, damaged, cut short, or absurdly large.
    """
    with _explained(content), Image.open(io.BytesIO(content), formats=FORMATS) as image:
        return _scaled(image, size, fit)


def decode_picture(image: Image.Image, size: int, fit: Fit) -> Decoded:
    """The same for a picture of Pillow's, which is left as it was.

    One that was opened and not looked at yet is read from its file again: decoders of JPEG shrink while they decode,
    so that the same file gives the same pixels here and in training.

    Raises:
        UnreadableImage: as `decode_sized`.
    """
    content = _unread_file(image)
    if content is not None:
        return decode_sized(content, size, fit)
    with _explained(b""):
        return _scaled(image.copy(), size, fit)


def _unread_file(image: Image.Image) -> bytes | None:
    """The file of a picture that was opened and not decoded yet; None for any other."""
    file = getattr(image, "fp", None)
    if image.format not in FORMATS or file is None or not getattr(image, "tile", None):
        return None
    place = file.tell()
    try:
        file.seek(0)
        return bytes(file.read())
    finally:
        file.seek(place)


@contextmanager
def _explained(content: bytes) -> Iterator[None]:
    """Whatever a decoder makes of hostile bytes, it is this one image that is bad."""
    try:
        yield
    except UnreadableImage:
        raise
    except UnidentifiedImageError as error:
        raise UnreadableImage(f"UnidentifiedImageError: {_unidentified(content)}") from error
    except Exception as error:
        raise UnreadableImage(f"{type(error).__name__}: {_ADDRESS.sub('', str(error))}") from error


def _unidentified(content: bytes) -> str:
    """What bytes are that neither decoder knows."""
    if not content:
        return "empty file"
    known = next((name for name, pattern in _OTHER_FORMATS.items() if pattern.match(content)), "")
    return f"{known} and not {' or '.join(FORMATS)}; convert it to PNG" if known else f"no {' or '.join(FORMATS)}"


def _scaled(image: Image.Image, size: int, fit: Fit) -> Decoded:
    if image.width * image.height > MAX_PIXELS:
        raise UnreadableImage(f"{image.width} x {image.height} pixels are more than {MAX_PIXELS:,}")
    if image.mode.startswith(("I", "F")):
        raise UnreadableImage(f"pixel format {image.mode}; expected 8 bits per channel")
    orientation = image.getexif().get(_ORIENTATION_TAG, 1)
    width, height = image.size[:: -1 if orientation in _SIDEWAYS else 1]
    image.draft("RGB", (_OVERSAMPLING * size, _OVERSAMPLING * size))
    rgb = image.convert("RGB")
    box = _central_square(rgb) if fit == "crop" else None
    small = rgb.resize((size, size), Image.Resampling.LANCZOS, box=box, reducing_gap=3.0)
    if orientation in _UPRIGHT:  # turning a square after scaling is the same, and cheaper
        small = small.transpose(_UPRIGHT[orientation])
    return Decoded(np.asarray(small), width, height)


def _central_square(image: Image.Image) -> tuple[float, float, float, float]:
    edge = min(image.size)
    left, top = (image.width - edge) / 2, (image.height - edge) / 2
    return left, top, left + edge, top + edge
