"""One patient in several spellings, one lesion with several labels: what leaks or contradicts is mended or said."""

import pytest
from test_data_sources import HAM, folder, jpeg
from typer.testing import CliRunner

from fedskew.cli.main import app
from fedskew.config.schema import DataConfig
from fedskew.data.contradictions import several_sites_lines
from fedskew.data.manifest import ManifestLayout
from fedskew.data.names import name_key, other_spellings
from fedskew.data.sources import open_source
from fedskew.learning.datasets import node_data, open_data, split_server
from fedskew.learning.manifest import describe_split
from fedskew.ops.check_data import Expected, check_data


@pytest.mark.parametrize(
    ("one", "other"),
    [("P001", "p001"), ("P001", "P 001"), ("1", "1.0"), ("1", "01"), ("1", "1,0"), ("P1", "P001"), ("ä", "Ä"),
     (" 12.00", "012")],
)  # fmt: skip
def test_spellings_of_one_name(one, other):
    assert name_key(one) == name_key(other)


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("P1", "P10"),
        ("1.1", "1.10"),
        ("P1", "P2"),
        ("0", "00a"),
        ("1", "1.5"),
        ("10", "1"),
        ("HAM_0000118", "HAM_118 0"),
    ],
)
def test_other_names_stay_apart(one, other):
    assert name_key(one) != name_key(other)


def test_the_most_frequent_spelling_stays_and_clean_names_are_left_alone():
    assert other_spellings(["p1", "P1", "P1", "P2", "1.0", "1"]) == {"p1": "P1", "1.0": "1"}
    assert other_spellings([f"HAM_{n:07d}" for n in range(3000)]) == {}


TABLE = """i,dx,patient,lesion,sex,site
a.jpg,mel,P001,1,male,Nord
b.jpg,nv,p001,1,female,nord
c.jpg,nv,P 001,2,male,Süd
d.jpg,nv,2,3,male,Süd
e.jpg,nv,2.0,4,,Süd
"""


def clinic(tmp_path, table=TABLE):
    files = {f"{name}.jpg": jpeg(20 * n) for n, name in enumerate("abcde")}
    manifest = b"file: t.csv\nimage: i\nlabel: dx\npatient: patient\nlesion: lesion\nsex: sex\nsite: site\n"
    return folder(tmp_path / "d", files | {"t.csv": table.encode(), "manifest.yaml": manifest})


SPELT = (
    "2 names of patients are written in several ways that differ only in capitals, blanks, zeros or .0, and are taken "
    "as one: '2' = '2.0'; 'P 001' = 'P001' = 'p001'; rename them if they are not"
)


def test_a_patient_in_other_writing_is_one_patient_and_that_is_said(tmp_path):
    source = open_source(clinic(tmp_path))
    assert [sample.group for sample in source.samples] == ["P 001", "P 001", "P 001", "2", "2"]
    assert [sample.site for sample in source.samples] == ["Nord", "Nord", "Süd", "Süd", "Süd"]
    assert source.warnings[0] == SPELT
    assert "1 names of sites are written in several ways" in source.warnings[1]
    assert "'Nord' = 'nord'" in source.warnings[1]


def test_what_one_lesion_or_patient_is_said_to_be_in_two_ways(tmp_path):
    lines = open_source(clinic(tmp_path)).warnings
    assert "1 lesions have images of several labels: 1 (mel 1, nv 1); settle which one is right" in lines
    assert any(
        line.startswith("1 patients or lesions are of several sexes: P 001 (female 1, male 2)") for line in lines
    )
    assert open_source(folder(tmp_path / "ham", HAM)).warnings == ()


def test_patients_of_several_sites_are_told_where_the_site_divides(tmp_path):
    path = clinic(tmp_path)
    line = "1 patients or lesions have images of several sites: P 001 (Nord 2, Süd 1); each goes wholly to the site"
    assert several_sites_lines(open_source(path).samples)[0].startswith(line)
    config = DataConfig(dir=str(path), cache_dir=str(tmp_path / "cache"), partition="site", test=0.02, open=0.02)
    data = open_data(config, 32)
    split = split_server(data, config)
    by_site = describe_split(data, split, (), (), config.partition)["warnings"]
    assert any(told.startswith(line) for told in by_site)
    assert not any(told.startswith(line) for told in describe_split(data, split, ())["warnings"])


def test_names_of_patients_are_told_at_the_site_and_stay_there(tmp_path):
    path = clinic(tmp_path)
    found = [
        finding.message for finding in check_data(path, None, Expected(("mel", "nv"))) if finding.subject == "names"
    ]
    assert found == list(open_source(path).warnings)
    assert len(found) == 4
    (path / "manifest.yaml").rename(tmp_path / "m.yaml")
    drafted = CliRunner().invoke(app, ["manifest", str(path)])
    assert "warning: 2 names of patients are written in several ways" in drafted.output
    config = DataConfig(cache_dir=str(tmp_path / "cache"))
    data = node_data(config, 32, {"data-dir": str(path), "manifest": str(tmp_path / "m.yaml")}).data
    assert any("names of patients" in line for line in data.warnings)
    assert not any("P001" in note or "P 001" in note for note in data.notes), "notes go to the coordinator"


def test_folders_of_one_patient_in_other_writing(tmp_path):
    files = {"mel/P1/a.jpg": jpeg(1), "nv/p1/b.jpg": jpeg(2), "nv/1.jpg": jpeg(3), "nv/01.jpg": jpeg(4)}
    source = open_source(folder(tmp_path / "d", files))
    assert [sample.group for sample in source.samples] == ["P1", "nv/01.jpg", "nv/1.jpg", "P1"]
    assert len(source.warnings) == 1, "that P1 has a melanoma and a nevus contradicts nothing"


def test_a_lesion_of_one_patient_in_two_spellings_is_no_lesion_of_two_patients(tmp_path):
    table = "i,dx,patient,lesion\na.jpg,mel,P1,L7\nb.jpg,mel,p1,l7\nc.jpg,mel,,L07\n"
    layout = ManifestLayout("t.csv", "i", "dx", patient="patient", lesion="lesion")
    files = {name: jpeg(n) for n, name in enumerate(("a.jpg", "b.jpg", "c.jpg"))} | {"t.csv": table.encode()}
    source = open_source(folder(tmp_path / "d", files), manifest=layout)
    assert {(sample.group, sample.lesion_id) for sample in source.samples} == {("P1", "L07")}
    assert source.notes == ()
