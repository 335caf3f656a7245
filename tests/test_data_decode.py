"""Decoding: the right pixels, upright, in RGB; whatever is bad is unreadable and nothing worse."""

import io

import numpy as np
import pytest
from PIL import Image

from fedskew.data import decode
from fedskew.data.decode import UnreadableImage


def encoded(image: Image.Image, kind: str = "PNG", **options) -> bytes:
    out = io.BytesIO()
    image.save(out, kind, **options)
    return out.getvalue()


def picture(width=40, height=20):
    """Left half red, right half blue, a white stripe on top."""
    pixels = np.zeros((height, width, 3), np.uint8)
    pixels[:, : width // 2, 0] = 255
    pixels[:, width // 2 :, 2] = 255
    pixels[: height // 4] = 255
    return Image.fromarray(pixels)


def test_squash_keeps_all_and_crop_the_centre():
    content = encoded(picture())
    squashed, cropped = decode.decode(content, 10, "squash"), decode.decode(content, 10, "crop")
    assert squashed.shape == cropped.shape == (10, 10, 3)
    assert squashed[5, 0].tolist() == [255, 0, 0]
    assert squashed[5, 9].tolist() == [0, 0, 255]
    expected = np.asarray(picture().crop((10, 0, 30, 20)).resize((10, 10), Image.Resampling.LANCZOS))
    assert np.abs(cropped.astype(int) - expected).max() < 40


@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_orientation_is_honoured(orientation):
    upright = picture(64, 64)
    stored_as = {1: None, 2: 0, 3: 3, 4: 1, 5: 5, 6: 2, 7: 6, 8: 4}[orientation]  # the inverse transposition
    stored = upright if stored_as is None else upright.transpose(Image.Transpose(stored_as))
    exif = Image.Exif()
    exif[0x0112] = orientation
    got = decode.decode(encoded(stored, "JPEG", exif=exif, quality=95), 16, "squash")
    want = np.asarray(upright.resize((16, 16), Image.Resampling.LANCZOS))
    assert np.abs(got.astype(int) - want).mean() < 12


@pytest.mark.parametrize("mode", ["L", "LA", "RGBA", "P", "1", "CMYK"])
def test_every_common_pixel_format_becomes_rgb(mode):
    content = encoded(picture().convert(mode), "JPEG" if mode == "CMYK" else "PNG")
    assert decode.decode(content, 8, "squash").shape == (8, 8, 3)


def test_sixteen_bits_are_refused_not_clipped():
    with pytest.raises(UnreadableImage, match="8 bits"):
        decode.decode(encoded(Image.fromarray(np.full((8, 8), 40000, np.uint16))), 4, "squash")


def test_a_decompression_bomb_is_only_unreadable(monkeypatch):
    content = encoded(Image.new("1", (4000, 4000)))
    monkeypatch.setattr(decode, "MAX_PIXELS", 1_000_000)
    with pytest.raises(UnreadableImage, match="4000 x 4000"):
        decode.decode(content, 8, "squash")
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 1_000_000)
    with pytest.raises(UnreadableImage, match="DecompressionBomb"):
        decode.decode(content, 8, "squash")


@pytest.mark.parametrize("kind", ["GIF", "BMP", "TIFF"])
def test_other_formats_are_refused(kind):
    with pytest.raises(UnreadableImage):
        decode.decode(encoded(picture(), kind), 8, "squash")


def test_large_jpegs_shrink_like_small_ones():
    rng = np.random.default_rng(0)
    large = Image.fromarray(rng.integers(0, 256, (12, 16, 3), dtype=np.uint8)).resize(
        (800, 600), Image.Resampling.BICUBIC
    )
    want = np.asarray(large.resize((24, 24), Image.Resampling.LANCZOS)).astype(int)
    got = decode.decode(encoded(large, "JPEG", quality=95), 24, "squash")
    assert np.abs(got - want).mean() < 4
