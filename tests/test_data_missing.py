"""Images that are not read: other formats, files that are not there, files that are none. Counted, and said why."""

import io

import pytest
from PIL import Image
from test_data_sources import HEADER, folder, jpeg

from fedskew.config.schema import DataConfig
from fedskew.data.decode import UnreadableImage, decode
from fedskew.data.draft import draft_manifest
from fedskew.data.manifest import ManifestLayout
from fedskew.data.samples import DataError
from fedskew.data.sources import open_source
from fedskew.learning.datasets import open_data
from fedskew.ops.check_data import Expected, check_data
from fedskew.ops.findings import FAIL, WARN


def encoded(kind, value=7):
    out = io.BytesIO()
    Image.new("RGB", (16, 12), (value, 20, 30)).save(out, kind)
    return out.getvalue()


def opened(path, tmp_path, **settings):
    return open_data(DataConfig(dir=str(path), cache_dir=str(tmp_path / "cache"), **settings), 32)


OTHERS = {"nv/a.tif": encoded("TIFF"), "bcc/b.TIFF": encoded("TIFF"), "bcc/c.bmp": encoded("BMP"), "bcc/.d.tif": b"x"}
PICTURES = {"mel/a.jpg": jpeg(1), "mel/b.jpg": jpeg(2), "nv/c.jpg": jpeg(3)}
NOTE = (
    "3 files of other image formats are not read (.bmp 1, .tif 1, .tiff 1); nothing else is in bcc (2); "
    "convert them to PNG"
)


def test_images_of_other_formats_are_counted_in_folders_by_class(tmp_path):
    path = folder(tmp_path / "d", PICTURES | OTHERS)
    assert NOTE in open_source(path).notes
    assert NOTE in opened(path, tmp_path).notes
    (found,) = [line for line in check_data(path, None, Expected(("mel", "nv"))) if "image formats" in line.message]
    assert (found.status, found.message) == (WARN, NOTE)
    assert f"# {NOTE}" in draft_manifest(path).splitlines()
    with pytest.raises(DataError, match=r"3 files of other image formats are not read .* convert them to PNG"):
        open_source(folder(tmp_path / "none", OTHERS))
    assert not any("formats" in note for note in open_source(folder(tmp_path / "clean", PICTURES)).notes)


def test_an_image_of_the_table_in_another_format_is_named(tmp_path):
    table = "i,dx\na,mel\nb,nv\nc.jpg,nv\nx/d.tif,nv\ne,nv\nf,nv\n"
    files = {"t.csv": table.encode(), "a.jpg": jpeg(1), "x/B.tif": encoded("TIFF"), "c.tif": encoded("TIFF"),
             "x/d.tif": encoded("TIFF"), "e.png": encoded("PNG"), "f.png": encoded("PNG", 9),
             "manifest.yaml": b"file: t.csv\nimage: i\nlabel: dx\n"}  # fmt: skip
    path = folder(tmp_path / "d", files)
    data = opened(path, tmp_path)
    reasons = dict(data.cached.unreadable)
    assert reasons == {
        "b": "x/B.tif is there, but no JPEG or PNG; convert it",
        "c.jpg": "c.tif is there, but no JPEG or PNG; convert it",
        "x/d.tif": "UnidentifiedImageError: TIFF and not JPEG or PNG; convert it to PNG",
    }
    (found,) = [line for line in check_data(path, None, Expected(("mel", "nv"))) if line.subject == "images"]
    assert found.status == FAIL
    assert "b (x/B.tif is there, but no JPEG or PNG; convert it)" in found.message
    ham = {"HAM10000_metadata.csv": f"{HEADER}\nL,I1,nv,,,,,\nL,I2,nv,,,,,\n".encode(), "I1.jpg": jpeg(1)}
    source = open_source(folder(tmp_path / "ham", ham | {"I2.tiff": b"x"}))
    assert source.why_missing("I2") == "I2.tiff is there, but no JPEG or PNG; convert it"


@pytest.mark.parametrize(
    ("content", "told"),
    [
        (b"", "UnidentifiedImageError: empty file"),
        (b"no image", "UnidentifiedImageError: no JPEG or PNG"),
        (encoded("TIFF"), "UnidentifiedImageError: TIFF and not JPEG or PNG; convert it to PNG"),
        (encoded("BMP"), "UnidentifiedImageError: BMP and not JPEG or PNG; convert it to PNG"),
        (encoded("GIF"), "UnidentifiedImageError: GIF and not JPEG or PNG; convert it to PNG"),
        (encoded("WEBP"), "UnidentifiedImageError: WebP and not JPEG or PNG; convert it to PNG"),
        (bytes(128) + b"DICM", "UnidentifiedImageError: DICOM and not JPEG or PNG; convert it to PNG"),
    ],
)
def test_what_is_no_image_is_said_without_an_address(content, told):
    with pytest.raises(UnreadableImage) as error:
        decode(content, 8, "squash")
    assert str(error.value) == told


def table_of(tmp_path, there, rows):
    table = "i,dx\n" + "".join(f"{n:02d},{'mel' if n % 2 else 'nv'}\n" for n in range(rows))
    files = {f"{n:02d}.jpg": jpeg(n) for n in range(there)}
    manifest = b"file: t.csv\nimage: i\nlabel: dx\n"
    return folder(tmp_path / "d", files | {"t.csv": table.encode(), "manifest.yaml": manifest})


def test_images_that_are_not_there_are_one_line_with_both_counts(tmp_path):
    data = opened(table_of(tmp_path, 12, 20), tmp_path)
    (line,) = [note for note in data.notes if "not found" in note]
    assert line == ("8 of 20 images were not found and are skipped; the first: 12: file not found; 13: file not found; "
                    "14: file not found; 15: file not found; 16: file not found")  # fmt: skip
    assert len(data.skipped) == 8, "the record of the run names them all"


def test_more_than_half_not_there_or_unreadable_is_refused(tmp_path):
    assert len(opened(table_of(tmp_path, 10, 20), tmp_path).usable) == 10
    path = table_of(tmp_path / "less", 9, 20)
    with pytest.raises(DataError, match=r"only 9 of 20 images can be used; 11 of 20 images were not found .*rows"):
        opened(path, tmp_path)
    assert len(open_source(path, manifest=ManifestLayout("t.csv", "i", "dx")).missing) == 11, "a draft can be looked at"
    path = table_of(tmp_path / "empty", 20, 20)
    for n in range(11):
        (path / f"{n:02d}.jpg").write_bytes(b"")
    with pytest.raises(DataError, match=r"only 9 of 20 .* 11 of 20 images cannot be read .* empty file"):
        opened(path, tmp_path)
