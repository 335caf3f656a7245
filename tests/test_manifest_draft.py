"""`fedskew manifest`: a draft out of what lies there, that reads back, decides nothing alone and overwrites nothing."""

import json
import re

import pytest
import yaml
from test_data_sources import HAM, folder, jpeg, zip_file
from typer.testing import CliRunner

from fedskew.cli.main import app
from fedskew.config.load import from_mapping
from fedskew.data.draft import draft_manifest
from fedskew.data.guesses import DIAGNOSES, PLACES, columns_by_name, identifier, meaning, words
from fedskew.data.manifest import parse_manifest
from fedskew.data.samples import DataError
from fedskew.data.sources import open_source

HEAD = "Bild;Diagnose;Patienten-Nr;Läsion;Alter;Geschlecht;Ort;Lokalisation;Durchmesser;Typ;Bemerkung\n"
ROWS = "".join(
    f"IMG_{n:02d};{('Melanom', 'Nävus', 'unklar', 'BCC')[n % 4]};{n // 3};{n % 2};{30 + n},5;{'wmd'[n % 3]};Kiel;"
    f"{('Rücken', 'Zehe')[n % 2]};{n * n % 17},5;{('II', 'I')[n % 2]};Text {n}\n"
    for n in range(24)
)
PICTURES = {f"bilder/{n % 2}/img_{n:02d}.jpg": jpeg(n) for n in range(24)}


def clinic(tmp_path, encoding="cp1252", **files):
    others = {"notes.csv": b"a,b\n1,2\n", "readme.txt": b"IMG_01,IMG_02\nx,y\n"}
    return folder(tmp_path / "d", {"befunde.csv": (HEAD + ROWS).encode(encoding), **PICTURES, **others, **files})


def test_columns_values_and_encoding_are_guessed(tmp_path):
    text = draft_manifest(clinic(tmp_path))
    assert yaml.safe_load(text) == {
        "file": "befunde.csv", "image": "bild", "label": "diagnose", "encoding": "cp1252", "lesion": "läsion",
        "patient": "patienten-nr", "age": "alter", "sex": "geschlecht", "localization": "lokalisation",
        "labels": {"Melanom": "mel", "Nävus": "nv", "BCC": "bcc"}, "sex_values": {"w": "female", "m": "male"},
        "localization_values": {"Rücken": "back"},
    }  # fmt: skip
    for line in ("  # unklar:  # 6 rows", "  # d:  # 8 rows", "  # Zehe:  # 12 rows", "# not used: ort, bemerkung"):
        assert line in text.splitlines(), line
    assert "#   typ: {column: typ}  # 24 of 24 rows have a value, 2 different ones" in text
    assert "#     typ: {weight: 0.05, values: [i, ii]}" in text
    assert "encoding" not in draft_manifest(clinic(tmp_path, "utf-8"))


@pytest.mark.parametrize(
    ("column", "values", "key"),
    [("site", ("back", "Bauch", "scalp"), "localization"), ("site", ("Kiel", "Mainz", "back"), "site"),
     ("body part", ("Zehe", "back", "Nabel"), "localization")],
)  # fmt: skip
def test_a_site_is_a_hospital_or_a_part_of_the_body_as_its_values_say(tmp_path, column, values, key):
    table = f"image,dx,{column}\n" + "".join(f"{n:03d},nv,{values[n % 3]}\n" for n in range(9))
    files = {"t.csv": table.encode()} | {f"{n:03d}.jpg": jpeg(n) for n in range(9)}
    found = yaml.safe_load(draft_manifest(folder(tmp_path / "d", files)))
    assert {name for name in ("site", "localization") if found.get(name) == column} == {key}


def test_bins_are_suggested_by_quantiles(tmp_path):
    text = draft_manifest(clinic(tmp_path))
    assert "#   durchmesser: {column: durchmesser, numbers: true}" not in text, "9 different squares modulo 17: words"
    table = "image,dx,mm\n" + "".join(f"{n:03d},nv,{n}\n" for n in range(101))
    files = {"t.csv": table.encode()} | {f"{n:03d}.jpg": jpeg(n) for n in range(101)}
    found = draft_manifest(folder(tmp_path / "mm", files))
    assert "#     mm: {weight: 0.05, bins: [0, 20, 40, 60, 80]}  # by the quantiles of this table" in found
    assert "#   mm: {column: mm, numbers: true}  # 101 of 101 rows have a value, 101 different ones" in found


def test_the_suggestions_can_be_used_as_they_stand(tmp_path):
    path = clinic(tmp_path)
    text = draft_manifest(path).replace("  # unklar:", "  unklar: null")
    further = re.search(r"# metadata:\n((?:#   .*\n)+)", text)
    text += re.sub(r"^# ?", "", further.group(0), flags=re.MULTILINE)
    source = open_source(path, manifest=parse_manifest(text, "draft"))
    assert len(source.samples) == 18
    assert source.missing == ()
    assert {dict(sample.metadata)["typ"] for sample in source.samples} == {"i", "ii"}


def test_the_suggested_configuration_keeps_sex_age_and_localization(tmp_path):
    """`model.metadata` replaces the default three: whoever copied the suggestion lost them without a word."""
    text = draft_manifest(clinic(tmp_path))
    (block,) = re.findall(r"^# model:\n(?:#   .*\n)+", text, flags=re.MULTILINE)
    settings = from_mapping(yaml.safe_load(re.sub(r"^# ", "", block, flags=re.MULTILINE)), "draft").model
    assert [column.name for column in settings.metadata] == ["sex", "age", "localization", "durchmesser", "typ"]
    assert "(--config FILE)" in text, "where the run takes it from"


def test_what_is_undecided_stops_the_reading_and_does_not_drop_images(tmp_path):
    path = clinic(tmp_path)
    with pytest.raises(DataError, match="diagnosis 'unklar' is not among"):
        open_source(path, manifest=parse_manifest(draft_manifest(path), "draft"))


def test_a_table_without_a_known_diagnosis_asks_for_it(tmp_path):
    path = folder(tmp_path / "d", {"t.csv": b"file,x,y\na,1,q\nb,2,q\n", "a.jpg": jpeg(1), "b.jpg": jpeg(2)})
    text = draft_manifest(path)
    assert "label:  # which column holds the diagnosis? perhaps x" in text.splitlines()
    assert any(line.startswith("# patient:  # name the column") for line in text.splitlines())
    with pytest.raises(DataError, match="lacks label"):
        parse_manifest(text, "draft")


def test_the_table_that_names_most_images_is_taken_even_in_an_archive(tmp_path):
    tables = {"d/few.csv": b"i,dx\na,mel\n", "d/sub/all.tsv": b"n\tdx\n../a.jpg\tmel\n../b.jpg\tnv\n"}
    files = tables | {"d/a.jpg": jpeg(1), "d/b.jpg": jpeg(2)}
    text = draft_manifest(zip_file(tmp_path / "d.zip", files))
    assert yaml.safe_load(text)["file"] == "d/sub/all.tsv"
    assert yaml.safe_load(text)["image"] == "n"


def test_an_age_column_that_holds_no_ages_is_none(tmp_path):
    rows = "".join(f"{n}.jpg,nv,{'child' if n % 2 else 'adult'}\n" for n in range(4))
    files = {"t.csv": f"i,dx,age\n{rows}".encode()} | {f"{n}.jpg": jpeg(n) for n in range(4)}
    text = draft_manifest(folder(tmp_path / "d", files))
    assert "age" not in yaml.safe_load(text)
    assert "#   age: {column: age}" in text


def test_folders_by_class_get_their_labels(tmp_path):
    path = folder(tmp_path / "d", {"Melanom/a.jpg": jpeg(1), "Naevus/b.jpg": jpeg(2), "x/c.jpg": jpeg(3)})
    text = draft_manifest(path)
    assert yaml.safe_load(text) == {"labels": {"Melanom": "mel", "Naevus": "nv"}}
    assert "  # x:  # 1 rows" in text


def test_a_single_folder_gets_its_label(tmp_path):
    path = folder(tmp_path / "d", {"nv/a.jpg": jpeg(1), "nv/b.jpg": jpeg(2)})
    text = draft_manifest(path)
    assert yaml.safe_load(text) == {"labels": {"nv": "nv"}}
    assert len(open_source(path, manifest=parse_manifest(text, "draft")).samples) == 2


@pytest.mark.parametrize(
    ("files", "words"),
    [
        (HAM, "has the layout of HAM10000, which is read as it is"),
        ({"X_GroundTruth.csv": b"image,MEL,NV\na,1,0\n", "a.jpg": b""}, "layout of an ISIC challenge"),
        ({"t.csv": b"a,b\n1,2\n", "x.jpg": b""}, "no table .* names image files"),
        ({"x.jpg": b""}, "no table .* names image files"),
    ],
)
def test_where_no_draft_can_be_made(tmp_path, files, words):
    with pytest.raises(DataError, match=words):
        draft_manifest(folder(tmp_path / "d", files))


# The command


def run(*words):
    return CliRunner().invoke(app, ["manifest", *map(str, words)])


def test_the_command_writes_beside_the_data_and_never_over_a_file(tmp_path):
    path = clinic(tmp_path)
    done = run(path)
    assert done.exit_code == 0, done.output
    assert (path / "manifest.yaml").read_text(encoding="utf-8") == draft_manifest(path)
    assert f"drafted {path}/manifest.yaml: check every line" in done.output
    assert "still to be settled: befunde.csv, lines 4, 8, 12 and 3 more: diagnosis 'unklar'" in done.output
    assert f"next: fedskew doctor data --data-dir {path}" in done.output
    (path / "manifest.yaml").write_text("mine")
    again = run(path)
    assert again.exit_code == 2
    assert "is there already and stays as it is" in again.output
    assert (path / "manifest.yaml").read_text() == "mine"
    other = run(path, "--out", tmp_path / "other.yaml")
    assert other.exit_code == 0
    assert f"--manifest {tmp_path}/other.yaml" in other.output


def test_the_command_says_what_it_reads(tmp_path):
    path = folder(tmp_path / "d", {"t.csv": b"i,dx\na,mel\nb,nv\nc,nv\n", "a.jpg": jpeg(1), "b.jpg": jpeg(2)})
    done = run(path)
    assert "read with it: 3 images, 1 of them without a file" in done.output
    assert "note: nothing is known of lesions" in done.output
    assert run(tmp_path / "absent").exit_code == 2
    assert "does not exist" in run(tmp_path / "absent").output


# Guesses


def test_names_of_columns_are_taken_apart():
    assert words("Alter (Jahre)") == ["alter", "jahre"]
    assert words("age_years2") == ["age", "years"]
    assert identifier("Größe (mm)") == "grosse_mm"
    assert identifier("§") == "column"
    found = columns_by_name(["image_stage", "patientennummer", "sexualität", "age_years", "dx_type", "dx", "sex"])
    assert found == {"label": "dx", "patient": "patientennummer", "age": "age_years", "sex": "sex"}
    assert meaning("W", {"female": ("w",)}) == meaning("FEMALE", {"female": ("w",)}) == "female"
    assert meaning("x", {"female": ("w",)}) is None
    assert columns_by_name(["Bild", "Geschl."]) == {"sex": "Geschl."}
    assert (meaning("vaskuläre Läsion", DIAGNOSES), meaning("akral", PLACES)) == ("vasc", "acral")


def test_the_doctor_takes_the_manifest_of_the_node_configuration(tmp_path):
    path = folder(tmp_path / "d", {"t.csv": b"i,dx\na,x\nb,y\n", "a.jpg": jpeg(1), "b.jpg": jpeg(2)})
    (tmp_path / "m.yaml").write_text("file: t.csv\nimage: i\nlabel: dx\nlabels: {x: mel, y: nv}\n")
    words = ["doctor", "site", "--json", "--node-config", f"data-dir='{path}' manifest='{tmp_path}/m.yaml'"]
    found = json.loads(CliRunner().invoke(app, words).stdout)["findings"]
    about = [line["message"] for line in found if line["subject"] == "data"]
    assert about[0].startswith(f"{path}: manifest for t.csv; 2 images")


# What a draft says of what it cannot use


def drafted(tmp_path, table, names, **files):
    files = {"t.csv": table.encode()} | {name: jpeg(n) for n, name in enumerate(names)} | files
    return draft_manifest(folder(tmp_path / "d", files))


def test_bins_of_years_are_kept_apart(tmp_path):
    table = "image,dx,born\n" + "".join(f"{n},nv,{1960 + n}\n" for n in range(39))
    text = drafted(tmp_path, table, [f"{n}.jpg" for n in range(39)])
    assert "#     born: {weight: 0.05, bins: [0, 1968, 1975, 1983, 1990]}" in text


@pytest.mark.parametrize("column", ["Fall-ID", "Fallnummer", "case_no", "OP-Nr.", "Befund-Nummer"])
def test_names_of_cases_are_no_metadata_but_unused(tmp_path, column):
    table = f"image,dx,Typ,{column}\n" + "".join(f"{n},nv,{n % 2},F{n % 8}\n" for n in range(24))
    text = drafted(tmp_path, table, [f"{n}.jpg" for n in range(24)])
    assert f"# not used: {column.lower()}" in text.splitlines()
    assert "#   typ: {column: typ}" in text


@pytest.mark.parametrize("column", ["Standort", "Einrichtung", "clinic"])
def test_columns_that_name_the_site(column):
    assert columns_by_name(["image", column]) == {"site": column}


def test_files_and_rows_without_each_other_are_listed(tmp_path):
    table = "image,dx\n" + "".join(f"{n},nv\n" for n in range(9))
    text = drafted(tmp_path, table, ["0.jpg", "1.jpg", "x/a.jpg", "x/b.png"])
    assert "# 7 rows name no image file that is there: 2, 3, 4, 5, 6, …" in text.splitlines()
    assert "# 2 image files are in no row: x/a.jpg, x/b.png" in text.splitlines()
    assert "in no row" not in drafted(tmp_path / "all", table, [f"{n}.jpg" for n in range(9)])


def test_a_spreadsheet_is_to_be_saved_as_csv_first(tmp_path):
    path = folder(tmp_path / "my data", {"Befunde.xlsx": b"PK", "1.jpg": jpeg(1)})
    words = r"Spreadsheets are not read: save Befunde\.xlsx as CSV\. .* `fedskew manifest '.*/my data'` drafts one"
    with pytest.raises(DataError, match=words):
        open_source(path)
    with pytest.raises(DataError, match=r"spreadsheets are not read: save Befunde\.xlsx as CSV; put"):
        draft_manifest(path)


def test_the_commands_that_are_suggested_can_be_copied_with_their_blanks(tmp_path):
    path = folder(tmp_path / "my data", {"t.csv": b"i,dx\na,mel\n", "a.jpg": jpeg(1)})
    done = run(path, "--out", tmp_path / "my own.yaml")
    assert f"--data-dir '{path}' --manifest '{tmp_path}/my own.yaml'" in done.output
