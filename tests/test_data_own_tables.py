"""A hospital's own table: files found wherever they lie, labels dropped, patients kept together."""

import unicodedata

import numpy as np
import pytest
from test_data_sources import folder, jpeg, zip_file

from fedskew.data.manifest import ManifestLayout, MetadataSource
from fedskew.data.own_table import NO_LESIONS
from fedskew.data.samples import DataError
from fedskew.data.sources import open_source
from fedskew.data.splits import check_disjoint, partition, split_samples, train_validation


def read(tmp_path, table, names=("a.jpg", "b.jpg", "c.jpg"), **layout):
    """A source out of a table with the columns i and dx, and images of these names."""
    files = {name: jpeg(10 * number) for number, name in enumerate(names)} | {"t.csv": table.encode()}
    return open_source(folder(tmp_path / "d", files), manifest=ManifestLayout("t.csv", "i", "dx", **layout))


# Where images lie


@pytest.mark.parametrize(
    ("cell", "names", "expected"),
    [
        ("a.jpg", ("deep/er/a.jpg",), "deep/er/a.jpg"),
        ("a", ("deep/a.JPEG",), "deep/a.JPEG"),
        ("A.JPG", ("deep/a.jpg",), "deep/a.jpg"),
        ("a.jpg", ("x/A.jpg", "y/a.jpg"), "y/a.jpg"),
        ("a.b", ("x/a.b.png", "x/a.png"), "x/a.b.png"),
        (r"x\a.jpg", ("x/a.jpg", "y/a.jpg"), "x/a.jpg"),
        ("y/a.jpg", ("x/a.jpg",), ""),
        ("a.jpg", ("x/a.jpg.png",), "x/a.jpg.png"),
        ("a", ("x/a.txt", "x/b.jpg"), ""),
        ("ä.jpg", (unicodedata.normalize("NFD", "x/ä.jpg"),), unicodedata.normalize("NFD", "x/ä.jpg")),
        ("a.jpg", ("a.jpg", "x/a.jpg"), "a.jpg"),
    ],
)
def test_a_cell_finds_its_file(tmp_path, cell, names, expected):
    source = read(tmp_path, f"i,dx\n{cell},mel\nother.jpg,nv\n", (*names, "other.jpg"))
    assert {sample.image_id: sample.image for sample in source.samples}[cell] == expected


def test_a_file_of_a_subfolder_in_an_archive(tmp_path):
    files = {"d/t.csv": b"i,dx\na,mel\n", "d/2020/a.jpg": jpeg(1), "__MACOSX/d/2020/._a.jpg": b"x"}
    layout = ManifestLayout("d/t.csv", "i", "dx")
    source = open_source(zip_file(tmp_path / "d.zip", files), manifest=layout)
    assert [sample.image for sample in source.samples] == ["d/2020/a.jpg"]


def test_a_table_in_a_subfolder_may_count_paths_from_the_data_sets_own(tmp_path):
    files = {"tables/t.csv": b"i,dx\nimages/a.jpg,mel\n../images/b.jpg,nv\n", "images/a.jpg": jpeg(1),
             "images/b.jpg": jpeg(2)}  # fmt: skip
    source = open_source(folder(tmp_path / "d", files), manifest=ManifestLayout("tables/t.csv", "i", "dx"))
    assert [sample.image for sample in source.samples] == ["images/b.jpg", "images/a.jpg"]


def test_a_name_that_two_files_have_names_both(tmp_path):
    with pytest.raises(
        DataError, match=r"^t\.csv, line 3: image 'a\.jpg' may be x/a\.jpg or y/a\.jpg; write the folder"
    ):
        read(tmp_path, "i,dx\nb.jpg,nv\na.jpg,mel\n", ("x/a.jpg", "y/a.jpg", "b.jpg"))


def test_one_image_in_two_rows_names_both_lines(tmp_path):
    with pytest.raises(DataError, match=r"^t\.csv, line 4: image '\./a\.jpg' stands in line 2 too"):
        read(tmp_path, "i,dx\na.jpg,nv\nb.jpg,nv\n./a.jpg,mel\n")


# Labels and values


def test_labels_are_mapped_whatever_their_capitals_and_null_leaves_images_out(tmp_path):
    labels = {"Melanom": "mel", "Nävus": "nv", "NV": "other", "unklar": None, "": None}
    composed, apart = unicodedata.normalize("NFC", "NÄVUS"), unicodedata.normalize("NFD", "Nävus")
    rows = ["MELANOM", composed, apart, "NV", "Unklar", "", "unklar"]
    table = "i,dx,age\n" + "".join(f"{n}.jpg,{dx},{'old' if n > 3 else 50}\n" for n, dx in enumerate(rows))
    source = read(tmp_path, table, ["0.jpg"], labels=labels, age="age")
    assert [sample.label for sample in source.samples] == ["mel", "nv", "nv", "other"]
    assert "3 images are left out, as the manifest's labels say: '' (1), 'Unklar' (1), 'unklar' (1)" in source.notes


def test_two_labels_that_differ_in_capitals_are_both_meant(tmp_path):
    source = read(tmp_path, "i,dx\na.jpg,mm\nb.jpg,MM\n", labels={"mm": "mel", "MM": "nv"})
    assert [sample.label for sample in source.samples] == ["mel", "nv"]
    with pytest.raises(DataError, match="diagnosis 'Mm' is not among"):
        read(tmp_path, "i,dx\na.jpg,Mm\n", labels={"mm": "mel", "MM": "nv"})


def test_labels_that_leave_nothing_are_said(tmp_path):
    with pytest.raises(DataError, match="leave out every image"):
        read(tmp_path, "i,dx\na.jpg,x\n", labels={"x": None})


def test_further_metadata_are_mapped_checked_and_in_the_order_of_their_names(tmp_path):
    more = {
        "skin": MetadataSource("Typ", {"I": "light", "V": "Dark", "x": None}),
        "mm": MetadataSource("MM", numbers=True),
        "centre": MetadataSource("C"),
    }
    table = "i;dx;typ;mm;c\na.jpg;mel;i;1,5;Kiel\nb.jpg;nv;V;;K 2\nc.jpg;nv;x;3;-\n"
    a, b, c = read(tmp_path, table, metadata=more).samples
    assert a.metadata == (("centre", "kiel"), ("mm", 1.5), ("skin", "light"))
    assert b.metadata == (("centre", "k 2"), ("skin", "Dark"))
    assert c.metadata == (("mm", 3.0),)
    assert (a.value("mm"), a.value("skin"), a.value("none"), a.value("sex")) == (1.5, "light", None, None)
    with pytest.raises(DataError, match=r"line 2: mm 'large' is not a number"):
        read(tmp_path, table.replace("1,5", "large"), metadata=more)
    with pytest.raises(DataError, match=r"has no column typ; its columns are i, dx, mm, c"):
        read(tmp_path, "i;dx;mm;c\na.jpg;mel;1;x\n", metadata=more)


def test_another_encoding_is_reported_by_name(tmp_path):
    files = {"t.csv": "i;dx;ort\na.jpg;mel;Rücken\n".encode("cp1252"), "a.jpg": jpeg(1)}
    path = folder(tmp_path / "d", files)
    layout = ManifestLayout("t.csv", "i", "dx", localization="ort")
    source = open_source(path, manifest=layout)
    assert source.samples[0].localization == "rücken"
    assert source.notes[0].startswith("t.csv is not UTF-8: read as cp1252 (Windows Latin-1)")
    told = ManifestLayout("t.csv", "i", "dx", localization="ort", encoding="cp1252")
    assert open_source(path, manifest=told).notes == (NO_LESIONS,)


# Patients and lesions

PATIENTS = """i,dx,patient,lesion
a.jpg,mel,P1,1
b.jpg,nv,P1,2
c.jpg,nv,P2,1
d.jpg,nv,,7
e.jpg,nv,P3,7
f.jpg,nv,,8
g.jpg,nv,,8
h.jpg,nv,-,?
"""


def test_patients_come_before_lesions_which_may_be_numbered_within_them(tmp_path):
    source = read(tmp_path, PATIENTS, lesion="lesion", patient="patient")
    groups = {sample.image_id[0]: sample.group for sample in source.samples}
    assert groups == {"a": "P1", "b": "P1", "c": "P2", "d": "P3", "e": "P3", "f": "8", "g": "8", "h": "h.jpg"}
    lesions = {sample.image_id[0]: sample.lesion_id for sample in source.samples}
    assert lesions == {
        "a": "P1/1", "b": "2", "c": "P2/1", "d": "7", "e": "7", "f": "8", "g": "8", "h": "h.jpg",
    }  # fmt: skip
    assert source.notes == (
        "1 names of lesions occur with several patients (e.g. '1'): taken as numbers within each patient",
        "1 of 8 images name neither patient nor lesion: each counts as its own",
    )


def test_a_lesion_of_several_patients_needs_its_patient(tmp_path):
    with pytest.raises(DataError, match=r"line 5: no patient, and lesion '1' is that of P1 and of P2; fill in"):
        read(tmp_path, PATIENTS.replace("d.jpg,nv,,7", "d.jpg,nv,,1"), lesion="lesion", patient="patient")


def test_a_table_that_tells_of_no_lesions_is_reported(tmp_path):
    assert read(tmp_path, PATIENTS).notes == (NO_LESIONS,)
    assert read(tmp_path, PATIENTS, lesion="lesion").notes == (
        "1 of 8 images name neither patient nor lesion: each counts as its own",
    )


@pytest.mark.parametrize("seed", range(3))
def test_no_patient_is_ever_in_two_parts(tmp_path, seed):
    """60 patients with one to three lesions of one to three pictures each; lesions are numbered within patients."""
    random = np.random.default_rng(seed)
    rows = [(f"{p}-{x}-{i}.jpg", random.choice(["nv", "nv", "mel"]), f"P{p}", x)
            for p in range(60) for x in range(random.integers(1, 4)) for i in range(random.integers(1, 4))]  # fmt: skip
    table = "i,dx,patient,lesion\n" + "".join(",".join(map(str, row)) + "\n" for row in rows)
    samples = read(tmp_path, table, ["0-0-0.jpg"], lesion="lesion", patient="patient").samples
    split = split_samples(samples, test=0.2, open=0.2, unit="lesion", seed=seed)
    nodes = partition(samples, split.clients, nodes=3, kind="dirichlet", alpha=0.5, unit="lesion", seed=seed)
    parts = [split.test, split.open, *(h for n in nodes for h in train_validation(
        samples, n, validation=0.3, unit="lesion", seed=seed))]  # fmt: skip
    owners = [{samples[i].image_id.split("-")[0] for i in part} for part in parts]  # by name, not by what was read
    assert sum(map(len, owners)) == len(set().union(*owners)) == 60
    assert min(map(len, owners[:2])) > 5, "and each is more than nothing"
    assert sum(len(part) for part in parts) == len(rows)
    check_disjoint(samples, *parts, unit="lesion")
    half = len(rows) // 2
    with pytest.raises(DataError, match="lesion P"):
        check_disjoint(samples, range(half), range(half - 1, len(rows)), unit="lesion")


# Links


def test_a_link_back_is_no_second_folder_and_a_linked_file_no_second_image(tmp_path):
    files = {"t.csv": b"i,dx\na,mel\nb.jpg,nv\n", "images/a.jpg": jpeg(1), "images/b.jpg": jpeg(2)}
    path = folder(tmp_path / "d", files)
    (path / "images/loop").symlink_to(path / "images")
    (path / "more").mkdir()
    (path / "more/b.jpg").symlink_to(path / "images/b.jpg")
    source = open_source(path, manifest=ManifestLayout("t.csv", "i", "dx"))
    assert [sample.image for sample in source.samples] == ["images/a.jpg", "images/b.jpg"]
    (path / "more/b.jpg").unlink()
    (path / "more/b.jpg").write_bytes(jpeg(2))
    with pytest.raises(DataError, match=r"may be images/b\.jpg or more/b\.jpg"):
        open_source(path, manifest=ManifestLayout("t.csv", "i", "dx"))


def test_folders_by_class_do_not_count_a_loop(tmp_path):
    path = folder(tmp_path / "d", {"mel/a.jpg": jpeg(1), "nv/b.jpg": jpeg(2)})
    (path / "nv/loop").symlink_to(path)
    assert [sample.image_id for sample in open_source(path).samples] == ["mel/a.jpg", "nv/b.jpg"]
