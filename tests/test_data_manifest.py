"""A hospital's own table."""

import numpy as np
import pytest
from PIL import Image

from fedskew.data.manifest import ManifestLayout, load_manifest
from fedskew.data.samples import DataError
from fedskew.data.sources import open_source

MANIFEST = """
file: tables/lesions.csv
image: Path
label: Diagnosis
patient: Patient
lesion: Lesion
age: Years
sex: Gender
localization: Place
site: Ward
separator: ";"
labels: {Melanom: mel, Naevus: nv, 3: bcc}
sex_values: {w: female, m: male}
localization_values: {Ruecken: back}
"""
TABLE = """Path;Diagnosis;Patient;Lesion;Years;Gender;Place;Ward
../images/a.png;Melanom;P1;L1;61;w;Ruecken;north
../images/b.png;Naevus;P1;L2;;d;Nase;south
deep/er/st/c/c.png;3;;L3;7,;m;;
"""


@pytest.fixture
def hospital(tmp_path):
    for name in ("images/a.png", "images/b.png", "tables/deep/er/st/c/c.png"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(np.zeros((8, 8, 3), np.uint8)).save(tmp_path / name)
    (tmp_path / "tables/lesions.csv").write_text(TABLE.replace("7,", "7"))
    (tmp_path / "manifest.yaml").write_text(MANIFEST)
    return tmp_path


def test_a_manifest_in_the_folder_is_found(hospital):
    source = open_source(hospital)
    a, b, c = source.samples
    assert (a.image_id, a.image, a.label) == ("../images/a.png", "images/a.png", "mel")
    assert (a.group, a.age, a.sex, a.localization, a.site) == ("P1", 61.0, "female", "back", "north")
    assert (b.group, b.age, b.sex, b.localization) == ("P1", None, "d", "nase")
    assert (a.lesion_id, b.lesion_id, c.patient_id) == ("L1", "L2", None)
    assert (c.group, c.label, c.age, c.localization, c.site) == ("L3", "bcc", 7.0, None, None)
    assert source.missing == ()
    assert len(source.read(c.image)) > 0


def test_a_given_manifest_comes_first(hospital):
    layout = ManifestLayout(file="tables/lesions.csv", image="Path", label="Ward", separator=";")
    with pytest.raises(DataError, match=r"line 4: column 'ward' is empty"):
        open_source(hospital, manifest=layout)


def test_absolute_paths(hospital):
    (hospital / "own.csv").write_text(f"image,dx\n{hospital}/images/a.png,mel\n")
    source = open_source(hospital, manifest=ManifestLayout(file="own.csv", image="image", label="dx"))
    assert len(source.read(source.samples[0].image)) > 0


def test_a_changed_image_changes_the_fingerprint(hospital):
    before = open_source(hospital).fingerprint
    Image.fromarray(np.ones((9, 9, 3), np.uint8)).save(hospital / "tables/deep/er/st/c/c.png")
    assert open_source(hospital).fingerprint != before


def test_a_diagnosis_that_is_not_mapped(hospital):
    (hospital / "tables/lesions.csv").write_text(TABLE.replace("7,", "7").replace("Naevus", "Nevus"))
    with pytest.raises(DataError, match=r"line 3: diagnosis 'Nevus' .*not among the manifest's 'labels'"):
        open_source(hospital)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{}", "lacks file, image, label"),
        ("labels: {a: b}\nimage: x\n", "lacks file, label"),
        ("metadata: 3\n" + MANIFEST, "'metadata' must map names to columns"),
        ("metadata: {sex: Gender}\n" + MANIFEST, "'sex' is a key of its own"),
        (
            "metadata: {mm: {colum: x}}\n" + MANIFEST,
            "unknown key 'metadata.mm.colum'; did you mean",
        ),
        ("metadata: {mm: {column: x, numbers: 1}}\n" + MANIFEST, "'metadata.mm.numbers' must be true or false"),
        ("metadata: {mm: {column: x, numbers: true, values: {a: b}}}\n" + MANIFEST, "true without values"),
        ("metadata: {mm: {values: {a: b}}}\n" + MANIFEST, "'metadata.mm.column' must be text"),
        ("metadata: {mm: {column: x, values: {no: b}}}\n" + MANIFEST, "'metadata.mm.values' must map text to text"),
        (MANIFEST.replace("label:", "lable:"), "unknown key 'lable'; did you mean 'label'"),
        ("file: a.csv\nimage: x\n", "lacks label"),
        ("- a\n- b\n", "must hold keys and values"),
        ("file: [", "is not YAML"),
        (MANIFEST.replace("patient: Patient", "patient: 7"), "'patient' must be text, got 7"),
        (MANIFEST.replace("{w: female, m: male}", "w"), "'sex_values' must map"),
        (MANIFEST.replace("{w: female, m: male}", "{no: female}"), "use quotes"),
    ],
)
def test_faulty_manifests(tmp_path, text, message):
    (tmp_path / "manifest.yaml").write_text(text)
    with pytest.raises(DataError, match=message):
        load_manifest(tmp_path / "manifest.yaml")


def test_a_manifest_that_is_not_there(tmp_path):
    with pytest.raises(DataError, match="cannot be read"):
        load_manifest(tmp_path / "manifest.yaml")


def test_a_table_or_column_that_is_not_there(hospital):
    with pytest.raises(DataError, match=r"table none\.csv is not in"):
        open_source(hospital, manifest=ManifestLayout(file="none.csv", image="Path", label="Diagnosis"))
    with pytest.raises(DataError, match=r"no column file; its columns are path, diagnosis"):
        open_source(hospital, manifest=ManifestLayout(file="tables/lesions.csv", image="file", label="Diagnosis"))


def test_a_loaded_manifest_has_its_values(tmp_path):
    (tmp_path / "m.yaml").write_text(MANIFEST)
    layout = load_manifest(tmp_path / "m.yaml")
    assert layout.labels["3"] == "bcc"
    assert layout.separator == ";"
    assert layout.patient == "Patient"
