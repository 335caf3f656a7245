"""Every way in which a data set can be wrong ends in one clear message."""

import zipfile

import pytest
from test_data_sources import CONTAINERS, HAM, HEADER, PICTURES, ROWS, TABLE, folder, tar_file, zip_file

from fedskew.data import archives, sources
from fedskew.data.samples import DataError
from fedskew.data.sources import open_source
from fedskew.data.stores import Entry


def test_a_path_that_does_not_exist_names_a_near_one(tmp_path):
    tar_file(tmp_path / "ham.tar.gz", HAM, "w:gz")
    with pytest.raises(DataError, match=r"ham\.tar does not exist, but .*ham\.tar\.gz does"):
        open_source(tmp_path / "ham.tar")
    with pytest.raises(DataError, match=r"ham does not exist, but .*ham\.tar\.gz does"):
        open_source(tmp_path / "ham")
    tar_file(tmp_path / "isic.tar", HAM)
    with pytest.raises(DataError, match=r"isic\.tar\.gz does not exist, but .*isic\.tar does"):
        open_source(tmp_path / "isic.tar.gz")
    with pytest.raises(DataError, match=r"nothing\.zip does not exist; give the path"):
        open_source(tmp_path / "nothing.zip")


def test_empty_folder(tmp_path):
    with pytest.raises(DataError, match="is empty"):
        open_source(tmp_path)


def test_a_folder_that_is_no_data_set_says_what_was_looked_for(tmp_path):
    with pytest.raises(DataError, match=r"manifest\.yaml.*HAM10000_metadata.*GroundTruth.*Found notes\.txt"):
        open_source(folder(tmp_path / "d", {"notes.txt": b"hello"}))


def test_metadata_without_any_image(tmp_path):
    with pytest.raises(DataError, match=r"not one image of its 3 rows.*ISIC_1"):
        open_source(folder(tmp_path / "d", {"HAM10000_metadata.csv": TABLE.encode()}))


@pytest.mark.parametrize(
    ("table", "message"),
    [
        (TABLE + ROWS[0] + "\n", "ISIC_3 stands in 2 rows"),
        (HEADER + "\n", "holds no rows"),
        (TABLE.replace("60.0", "sixty"), r"line 2: age 'sixty'"),
        (TABLE.replace("60.0", "-1"), r"line 2: age '-1'"),
        (TABLE.replace(",mel,", ",,"), r"line 2: column 'dx' is empty"),
        (TABLE + "HAM_9,ISIC_9\n", r"line 5: 2 values for 8 columns"),
        (TABLE.replace("dataset", "sex"), "names a column twice"),
        (TABLE.replace("back", "b\x81ck"), "no text in cp1252"),
        (TABLE.replace("back", "b\0ck"), "zero bytes"),
    ],
)
def test_faulty_tables(tmp_path, table, message):
    with pytest.raises(DataError, match=message):
        open_source(folder(tmp_path / "d", HAM | {"HAM10000_metadata.csv": table.encode("latin-1")}))


def test_two_different_tables_are_ambiguous(tmp_path):
    files = HAM | {"other/HAM10000_metadata.csv": TABLE.replace("mel", "nv").encode()}
    with pytest.raises(DataError, match="several metadata tables"):
        open_source(folder(tmp_path / "d", files))


@pytest.mark.parametrize("kind", ["zip", "tar", "tar.gz"])
def test_archives_cut_short(tmp_path, kind):
    whole = CONTAINERS[kind](tmp_path).read_bytes()
    cut = tmp_path / f"cut.{kind}"
    cut.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(DataError, match=r"cut\."):
        open_source(cut)


def test_a_file_that_is_no_archive(tmp_path):
    (tmp_path / "x.zip").write_bytes(b"no archive")
    with pytest.raises(DataError, match="neither a folder nor a readable archive"):
        open_source(tmp_path / "x.zip")


def test_absurdly_large_members_are_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(sources, "MAX_IMAGE_BYTES", 100)
    source = open_source(zip_file(tmp_path / "d.zip", HAM))
    with pytest.raises(DataError, match=r"ISIC_1\.jpg .*more than the"):
        source.read(source.samples[0].image)


def test_a_zip_member_that_is_larger_than_it_says(tmp_path):
    path = zip_file(tmp_path / "d.zip", {"bomb": bytes(10_000)})
    store = archives.open_store(path)
    store._entries["bomb"] = Entry(10, "")
    with pytest.raises(DataError, match="bomb"):
        store.read("bomb", 100)


def test_a_damaged_zip_member_is_named(tmp_path):
    path = tmp_path / "d.zip"
    with zipfile.ZipFile(path, "w") as archive:  # stored, so that a byte of content can be spoilt
        for name, content in HAM.items():
            archive.writestr(name, content)
    raw = bytearray(path.read_bytes())
    raw[raw.find(PICTURES["part_1/ISIC_1.jpg"]) + 50] ^= 0xFF
    path.write_bytes(raw)
    source = open_source(path)
    with pytest.raises(DataError, match=r"ISIC_1\.jpg.*damaged"):
        source.read(source.samples[0].image)
    assert source.read(source.samples[1].image) == PICTURES["part_1/ISIC_2.JPG"]


def test_reading_what_is_not_there(tmp_path):
    with pytest.raises(DataError, match=r"nothing\.jpg is not in"):
        open_source(folder(tmp_path / "d", HAM)).read("nothing.jpg")


def test_a_loop_of_links_ends(tmp_path):
    path = folder(tmp_path / "d", HAM)
    (path / "loop").symlink_to(path, target_is_directory=True)
    assert len(open_source(path).samples) == 3
