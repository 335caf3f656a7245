"""Folders named by class: what is a class, what is one lesion, and what is not taken for classes."""

import pytest
from test_data_sources import folder, jpeg, tar_file, zip_file

from fedskew.data.manifest import ManifestLayout
from fedskew.data.own_table import NO_LESIONS
from fedskew.data.samples import DataError
from fedskew.data.sources import open_source

PICTURES = {"mel/a.jpg": jpeg(1), "mel/P1/b.PNG": jpeg(2), "nv/a.jpg": jpeg(3), "nv/P1/c.jpeg": jpeg(4)}
OTHERS = {"__MACOSX/mel/._a.jpg": b"", "x.txt": b"x"}


def labels_of(source):
    return {sample.image_id: (sample.label, sample.group, sample.image) for sample in source.samples}


@pytest.mark.parametrize(
    ("kind", "prefix"), [(folder, ""), (folder, "data/"), (zip_file, ""), (zip_file, "data/set/"), (tar_file, "d/")]
)
def test_the_first_folder_level_is_the_class_whatever_lies_around_all(tmp_path, kind, prefix):
    files = {prefix + name: content for name, content in PICTURES.items()} | OTHERS
    source = open_source(kind(tmp_path / "d.zip", files))
    assert labels_of(source) == {
        "mel/a.jpg": ("mel", "mel/a.jpg", f"{prefix}mel/a.jpg"),
        "mel/P1/b.PNG": ("mel", "P1", f"{prefix}mel/P1/b.PNG"),
        "nv/a.jpg": ("nv", "nv/a.jpg", f"{prefix}nv/a.jpg"),
        "nv/P1/c.jpeg": ("nv", "P1", f"{prefix}nv/P1/c.jpeg"),
    }
    assert source.description == "folders by class, no table"
    assert source.read(source.samples[0].image) == PICTURES[source.samples[0].image_id]
    assert source.missing == ()


def test_what_is_known_of_lesions_is_said(tmp_path):
    flat = {"mel/a.jpg": jpeg(1), "nv/b.jpg": jpeg(2)}
    assert open_source(folder(tmp_path / "flat", flat)).notes == (NO_LESIONS,)
    mixed = open_source(folder(tmp_path / "mixed", PICTURES)).notes
    assert mixed[0].endswith("2 images in 1 such folders, 2 of them in 'P1'")
    assert mixed[1] == f"of the others {NO_LESIONS}"
    grouped = {"mel/P1/a.jpg": jpeg(1), "nv/P2/b.jpg": jpeg(2), "nv/P2/c.jpg": jpeg(3)}
    notes = open_source(folder(tmp_path / "grouped", grouped)).notes
    assert len(notes) == 1
    assert notes[0].endswith("3 images in 2 such folders, 2 of them in 'P2'")


def test_images_beside_the_folders_are_counted(tmp_path):
    source = open_source(folder(tmp_path / "d", PICTURES | {"logo.png": jpeg(9)}))
    assert len(source.samples) == 4
    assert source.notes[-1] == "1 images beside the folders of classes are left out"


def test_folders_that_lie_too_deep_are_named(tmp_path):
    source = open_source(folder(tmp_path / "d", PICTURES | {"nv/P1/x/w/y/z.jpg": jpeg(8), "nv/P1/x/w/ok.jpg": jpeg(9)}))
    assert len(source.samples) == 5
    assert source.notes[-1].startswith("1 folders lie too deep to be looked into (e.g. nv/P1/x/w/y/)")


@pytest.mark.parametrize(
    ("files", "words"),
    [
        ({"mel/a.jpg": jpeg(1)}, "is no data set that is known"),
        ({"a.jpg": jpeg(1), "b.jpg": jpeg(2)}, "is no data set that is known"),
        (PICTURES | {"notes.csv": b"a,b\n1,2\n"}, r"columns of notes\.csv mean: `fedskew manifest .*` drafts one"),
        (PICTURES | {"notes.xlsx": b"x"}, r"notes\.xlsx"),
        ({"HAM10000_images_part_1/a.jpg": jpeg(1), "HAM10000_images_part_2/b.jpg": jpeg(2)}, "HAM10000_metadata"),
        ({"images/a.jpg": jpeg(1), "masks/a.png": jpeg(2)}, "is no data set that is known"),
        ({"train/mel/a.jpg": jpeg(1), "test/nv/b.jpg": jpeg(2)}, "folders test, train, which are parts of a split"),
    ],
)
def test_what_are_no_classes(tmp_path, files, words):
    with pytest.raises(DataError, match=words):
        open_source(folder(tmp_path / "d", files))


def test_a_manifest_of_labels_renames_and_drops_folders_even_beside_tables(tmp_path):
    files = {"Melanom/a.jpg": jpeg(1), "Naevus/b.jpg": jpeg(2), "unklar/c.jpg": jpeg(3), "notes.csv": b"a,b\n1,2\n",
             "manifest.yaml": b"labels: {melanom: mel, Naevus: nv, unklar: null}"}  # fmt: skip
    source = open_source(folder(tmp_path / "d", files))
    assert [(s.image_id, s.label) for s in source.samples] == [("Melanom/a.jpg", "mel"), ("Naevus/b.jpg", "nv")]
    assert source.notes[0] == "1 images are left out, as the manifest's labels say: 'unklar' (1)"
    with pytest.raises(
        DataError, match=r"not among the manifest's 'labels': 'Naevus' \(1 images\), 'unklar' \(1 images\)"
    ):
        open_source(tmp_path / "d", manifest=ManifestLayout(labels={"Melanom": "mel"}))
    with pytest.raises(DataError, match="leave out every image"):
        open_source(tmp_path / "d", manifest=ManifestLayout(labels=dict.fromkeys(["Melanom", "Naevus", "unklar"])))


def test_a_table_in_an_archive_beside_its_images_comes_before_folders(tmp_path):
    table = b"image_id,dx\na,mel\nb,nv\n"
    path = folder(tmp_path / "d", {"one/a.jpg": jpeg(1), "two/b.jpg": jpeg(2)})
    assert {s.label for s in open_source(path).samples} == {"one", "two"}
    zip_file(path / "meta.zip", {"HAM10000_metadata.csv": table})
    assert {s.label for s in open_source(path).samples} == {"mel", "nv"}


@pytest.mark.parametrize(
    ("paths", "groups"),
    [
        (["mel/2019/P1/a.jpg", "nv/2020/P1/b.jpg", "nv/2020/P2/c.jpg"], ["P1", "P1", "P2"]),
        (["mel/P1/2019-05/a.jpg", "mel/P1/2019-06/b.jpg", "nv/P2/2019-05/c.jpg"], ["P1", "P1", "P2"]),
        (["mel/P1/left/a.jpg", "mel/P1/right/b.jpg", "nv/P2/left/c.jpg"], ["P1", "P1", "P2"]),
        (["mel/2019/05/P1/a.jpg", "nv/2020/06/P1/b.jpg", "nv/2020/11/P2/c.jpg"], ["P1", "P1", "P2"]),
        (["mel/01.02.2019/P1/a.jpg", "nv/03.02.2019/P1/b.jpg", "nv/03.02.2019/P2/c.jpg"], ["P1", "P1", "P2"]),
        (["mel/05/a/a.jpg", "mel/05/b/b.jpg", "nv/06/a/c.jpg"], ["05", "05", "06"]),
    ],
)
def test_of_several_levels_the_outermost_that_is_no_date_is_the_patient(tmp_path, paths, groups):
    source = open_source(folder(tmp_path / "d", {path: jpeg(n) for n, path in enumerate(paths)}))
    assert [sample.group for sample in source.samples] == groups
    (note,) = [note for note in source.notes if "lie in each other" in note]
    assert f"{len(set(groups))} of them in all" in note


def test_folders_of_dates_alone_are_no_patients_and_that_is_said(tmp_path):
    files = {"mel/2019/a.jpg": jpeg(1), "nv/2020/b.jpg": jpeg(2)}
    notes = open_source(folder(tmp_path / "d", files)).notes
    assert any("named by dates, which are no patients" in note for note in notes)
    assert not any("named by dates" in note for note in open_source(folder(tmp_path / "e", PICTURES)).notes)


@pytest.mark.parametrize("prefix", ["", "set/"])
def test_one_folder_is_a_class_if_a_manifest_says_so(tmp_path, prefix):
    files = {f"{prefix}Nevi/a.jpg": jpeg(1), f"{prefix}Nevi/P1/b.jpg": jpeg(2)}
    path = folder(tmp_path / "d", files)
    with pytest.raises(DataError, match="or in one that a manifest labels"):
        open_source(path)
    source = open_source(path, manifest=ManifestLayout(labels={"nevi": "nv"}))
    assert [(s.image_id, s.label, s.group) for s in source.samples] == [
        ("Nevi/P1/b.jpg", "nv", "P1"), ("Nevi/a.jpg", "nv", "Nevi/a.jpg")]  # fmt: skip
