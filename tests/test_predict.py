"""What a model says of a picture: the same for torch and ONNX, and one clear line for whatever is wrong."""

from __future__ import annotations

import csv
import io
import json
import os
import shutil
import subprocess
import sys
import tarfile

import numpy as np
import onnx
import pytest
import torch
from PIL import Image
from typer.testing import CliRunner

import fedskew
from fedskew.cli.main import app
from fedskew.data.batches import ImageBatches
from fedskew.data.preprocessing import Preprocessing
from fedskew.data.samples import DataError
from fedskew.export.graph import encode, to_onnx
from fedskew.model.modelfile import load_model, read_about
from fedskew.model.signature import ModelFileError
from fedskew.tools.onnx_file import ABOUT, ARCHITECTURE, EXPORT, IMAGES, SEAL, seal

# all that may be imported beside the standard library where an ONNX file is used
DEVICE = ("fedskew", "onnxruntime", "numpy", "PIL", "yaml", "_yaml", "flatbuffers", "google", "typer", "click", "rich",
          "typing_extensions", "annotated_doc", "shellingham", "defusedxml", "olefile")  # fmt: skip
BARRED = f"""
import sys
class Barred:
    def find_spec(self, name, path=None, target=None):
        if name.partition('.')[0] not in {DEVICE!r} and name.partition('.')[0] not in sys.stdlib_module_names:
            raise ImportError(f'no {{name}} on this device')
sys.meta_path.insert(0, Barred())
"""


@pytest.fixture(scope="module")
def model(finished_run):
    return fedskew.load(finished_run.path)


@pytest.fixture(scope="module")
def exported(finished_run, tmp_path_factory):
    """The model of the finished run as an ONNX file."""
    file = finished_run.path / "model.safetensors"
    model, target = load_model(file), tmp_path_factory.mktemp("exported") / "model.onnx"
    said = {ARCHITECTURE: model.architecture.to_json(), ABOUT: json.dumps(read_about(file)), EXPORT: "{}"}
    target.write_bytes(encode(to_onnx(model), said))
    return target


@pytest.fixture(scope="module")
def pictures(generated):
    return sorted(generated.rglob("*.jpg"))[:6]


@pytest.fixture
def changed(exported, tmp_path):
    """A copy of the file whose metadata say something else; `sealed`: as if it had been exported so."""

    def change(*, sealed: bool = False, **said: str):
        told = said_of(exported) | {f"fedskew-{key}": value for key, value in said.items()}
        told |= {SEAL: seal(told)} if sealed else {}
        file = onnx.load(exported)
        onnx.helper.set_model_props(file, told)
        onnx.save(file, tmp_path / "changed.onnx")
        return tmp_path / "changed.onnx"

    return change


def said_of(file):
    return {entry.key: entry.value for entry in onnx.load(file).metadata_props}


def call(*words):
    return CliRunner().invoke(app, ["predict", *map(str, words)])


def answers(*words):
    """What `--json` says, of a command that must succeed."""
    done = call(*words, "--json")
    assert done.exit_code == 0, done.output
    return json.loads(done.stdout)


@pytest.mark.parametrize(("size", "edge"), [(32, 36), (31, 36), (32, 32)])
def test_pixels_are_those_of_training(size, edge):
    """To rounding: a product of matrices there, one of numbers here."""
    pixels = np.random.default_rng(0).integers(0, 256, (edge, edge, 3), dtype=np.uint8)
    prepared = Preprocessing(size, edge, "squash", mean=(0.1, 0.5, 0.7), deviation=(0.2, 0.3, 0.9))
    none = np.zeros(1, dtype=np.int64)
    batch = next(iter(ImageBatches(pixels[None], none, np.zeros((1, 0), dtype=np.int64), none, batch_size=1,
                                   image_size=size, statistics=prepared.statistics)))  # fmt: skip
    found = prepared.prepared(pixels)
    assert found.dtype == np.float32
    assert found.shape == (1, 3, size, size)
    assert np.abs(found - batch.images.numpy()).max() < 1e-6
    back = (found[0].transpose(1, 2, 0) * prepared.deviation + prepared.mean) * 255
    start = (edge - size) // 2
    assert np.array_equal(back.round().astype(np.uint8), pixels[start : start + size, start : start + size])


def test_an_exported_file_says_what_the_run_says(model, exported, pictures):
    same = fedskew.load(exported)
    assert same.classes == model.classes
    assert same.vocabularies == model.vocabularies
    for path in pictures:
        assert np.array_equal(same.preprocess(path), model.preprocess(path).numpy()), "the same code, the same bits"
        for words in ({}, {"age": 61.5, "sex": "female", "site": "back"}, {"sex": "diverse"}):
            theirs, ours = model.predict(path, **words), same.predict(path, **words)
            assert list(ours.probabilities.values()) == pytest.approx(list(theirs.probabilities.values()), abs=1e-5)
            assert (ours.decision, ours.unknown, ours.notes) == (theirs.decision, theirs.unknown, theirs.notes)
    assert model.predict(path.read_bytes()) == model.predict(path)


def test_on_a_device_without_torch_the_command_and_python_work(exported, pictures, tmp_path):
    shutil.copytree(pictures[0].parent, tmp_path / "folder")
    code = (
        BARRED
        + f"""
import fedskew
print(fedskew.load({str(exported)!r}).predict({str(pictures[0])!r}, age=60).decision)
from fedskew.cli.main import app
app(['predict', {str(exported)!r}, {str(tmp_path / "folder")!r}, '--sex', 'male', '--csv', 'a.csv'])
"""
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[0] in fedskew.load(exported).classes
    assert (tmp_path / "a.csv").read_text().startswith("image,decision,p_akiec")
    refused = subprocess.run(
        [sys.executable, "-c", "import sys; sys.modules['torch'] = None; import fedskew; fedskew.load('a.st')"],
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert "a.st needs torch, which is not installed" in refused.stderr


def test_the_answer_of_an_onnx_file_takes_less_than_a_second_of_computing(exported, pictures):
    """CPU seconds, which other work on the machine does not lengthen much; docs/predict.md has the measured ones."""
    before = os.times()
    subprocess.run([sys.executable, "-m", "fedskew", "predict", exported, pictures[0]], check=True, capture_output=True)
    after = os.times()
    assert after.children_user + after.children_system - before.children_user - before.children_system < 2


@pytest.mark.parametrize(
    ("said", "told"),
    [
        ({"about": "{}"}, "were changed after the export"),
        ({"sha256": "0"}, "were changed after the export"),
        ({"export": '{"precision": "int8"}'}, "were changed after the export"),
        ({"sealed": True, "about": "{}"}, "does not say how pictures are prepared"),
        ({"sealed": True, "about": "[]"}, "is no mapping"),
        ({"sealed": True, "architecture": "{}"}, "missing or unknown keys"),
        ({"sealed": True, "architecture": '{"version": 2, "classes": ["a", "b"], "vocabularies": []}'},
         r"its inputs are .*'metadata'.* must be"),
    ],
)  # fmt: skip
def test_an_onnx_file_that_was_changed_is_refused(changed, said, told):
    with pytest.raises(ModelFileError, match=told):
        fedskew.load(changed(**said))


def test_an_onnx_file_of_another_size_than_it_says_is_refused(exported, changed):
    about = json.loads(said_of(exported)[ABOUT])
    about["preprocessing"] |= {"image_size": 31}
    with pytest.raises(ModelFileError, match=r"its inputs are .*32, 32.* must be .*31, 31"):
        fedskew.load(changed(sealed=True, about=json.dumps(about)))


def test_a_file_that_is_no_model_of_ours_is_refused(exported, tmp_path):
    (tmp_path / "text.onnx").write_text("no model")
    with pytest.raises(ModelFileError, match=r"text\.onnx cannot be read as an ONNX model"):
        fedskew.load(tmp_path / "text.onnx")
    file = onnx.load(exported)
    del file.metadata_props[:]
    onnx.save(file, tmp_path / "other.onnx")
    with pytest.raises(ModelFileError, match=f"no model that fedskew exported: its metadata hold no {ARCHITECTURE}"):
        fedskew.load(tmp_path / "other.onnx")
    with pytest.raises(ModelFileError, match=r"gone\.onnx does not exist"):
        fedskew.load(tmp_path / "gone.onnx")
    assert IMAGES in str(file.graph.input)


def test_the_command_says_what_python_says(model, exported, pictures):
    words = ("--age", "60", "--sex", "Female", "--site", "back")
    expected = [model.predict(path, age=60, sex="female", site="back") for path in pictures]
    found = answers(exported, *pictures, *words)
    assert found["classes"] == list(model.classes)
    assert (found["failed"], len(found["images"])) == (0, len(pictures))
    for path, answer, said in zip(pictures, found["images"], expected, strict=True):
        assert (answer["image"], answer["decision"], answer["unknown"]) == (str(path), said.decision, [])
        assert answer["probabilities"] == pytest.approx(dict(said.probabilities), abs=1e-5)


def test_the_table_for_people_shows_percent_and_the_next_step(finished_run, model, pictures):
    done = call(finished_run.path, pictures[0])
    said = model.predict(pictures[0])
    lines = done.stdout.splitlines()
    assert lines[0].split() == ["image", "decision", *model.classes]
    assert lines[1].split() == [str(pictures[0]), said.decision, *(f"{x:.1%}" for x in said.probabilities.values())]
    assert "research software, not a medical device" in done.stderr
    assert "the model does not say what pictures it was trained on" in done.stderr
    assert f"next: fedskew serve {finished_run.path}" in done.stderr


def test_errors_of_one_image_do_not_end_the_others(exported, pictures, tmp_path):
    (tmp_path / "text.jpg").write_text("no picture")
    done = call(
        exported, pictures[0], tmp_path / "text.jpg", tmp_path / "gone.jpg", pictures[1], "--csv", tmp_path / "a.csv"
    )
    assert done.exit_code == 1
    assert f"fedskew: {tmp_path / 'text.jpg'}: UnidentifiedImageError: no JPEG or PNG" in done.stderr
    assert "gone.jpg cannot be read: No such file or directory; give the path of an image" in done.stderr
    rows = list(csv.DictReader(io.StringIO((tmp_path / "a.csv").read_text())))
    assert [bool(row["error"]) for row in rows] == [False, True, True, False]
    for row in rows:
        numbers = [float(value) for key, value in row.items() if key.startswith("p_") and value]
        assert sum(numbers) == pytest.approx(0 if row["error"] else 1, abs=1e-5)
        assert row["decision"] in ("", *fedskew.load(exported).classes)
    assert json.loads(call(exported, tmp_path / "text.jpg", pictures[0], "--json").stdout)["failed"] == 1
    assert call(exported, tmp_path / "text.jpg").exit_code == 2, "nothing was done"


def test_a_csv_that_cannot_be_written_is_one_line(exported, pictures, tmp_path):
    done = call(exported, pictures[0], "--csv", tmp_path / "nowhere" / "a.csv")
    assert done.exit_code == 2
    assert "a.csv cannot be written: No such file or directory" in done.stderr


def encoded(picture, kind="PNG", **options):
    out = io.BytesIO()
    picture.save(out, kind, **options)
    return out.getvalue()


def _newer(run):
    """A model file of which the header says that a later version wrote it."""
    content = (run / "model.safetensors").read_bytes()
    assert content.count(b'\\"version\\":2') == 1
    (run / "model.safetensors").write_bytes(content.replace(b'\\"version\\":2', b'\\"version\\":9'))


@pytest.mark.parametrize(
    ("change", "told"),
    [
        (lambda run: (run / "model.safetensors").unlink(), "neither a model file nor a run folder with a model"),
        (lambda run: (run / "model.safetensors").write_bytes(b"x" * 50), "cannot be read as a model"),
        (lambda run: os.truncate(run / "model.safetensors", 5000), "cannot be read as a model"),
        (_newer, "version"),
    ],
    ids=["no round yet", "damaged", "cut", "of a later version"],
)
@pytest.mark.parametrize("command", ["predict", "serve"])
def test_a_run_that_cannot_be_asked_is_one_clear_line(finished_run, pictures, tmp_path, command, change, told):
    run = tmp_path / "run"
    shutil.copytree(finished_run.path, run)
    change(run)
    words = [run, pictures[0]] if command == "predict" else [run, "--port", "0"]
    done = CliRunner().invoke(app, [command, *map(str, words)])
    assert done.exit_code == 2
    (line,) = done.stderr.splitlines()
    assert str(run) in line
    assert told in line


def test_a_run_that_is_not_finished_is_answered_with_its_newest_model(finished_run, model, pictures, tmp_path):
    shutil.copytree(finished_run.path, tmp_path / "run")
    (tmp_path / "run" / "summary.json").unlink()
    answer = call(tmp_path / "run", pictures[0], "--json")
    assert answer.exit_code == 0, answer.output
    assert fedskew.load(tmp_path / "run").predict(pictures[0]) == model.predict(pictures[0])


NOISE = Image.fromarray(np.random.default_rng(0).integers(0, 256, (60, 80, 3), dtype=np.uint8))
BAD = {
    "huge": (encoded(Image.new("1", (10_000, 9_000))), "10000 x 9000 pixels are more than 80,000,000"),
    "16 bits": (encoded(Image.fromarray(np.full((8, 8), 40_000, np.uint16))), "expected 8 bits per channel"),
    "truncated": (encoded(NOISE, "JPEG")[:900], "truncated"),
    "truncated PNG": (encoded(NOISE)[:2000], "truncated"),
    "empty": (b"", "empty file"),
    "TIFF": (encoded(NOISE, "TIFF"), "TIFF and not JPEG or PNG; convert it to PNG"),
    "text": (b"#!/bin/sh\n", "no JPEG or PNG"),
}


@pytest.mark.parametrize("kind", BAD)
def test_a_picture_that_cannot_be_used_is_one_clear_line(exported, tmp_path, kind):
    content, told = BAD[kind]
    (tmp_path / "a.jpg").write_bytes(content)
    done = call(exported, tmp_path / "a.jpg")
    assert done.exit_code == 2
    (line,) = [line for line in done.stderr.splitlines() if "a.jpg" in line]
    assert told in line
    assert "Traceback" not in done.output


@pytest.mark.parametrize("mode", ["L", "P", "CMYK", "RGBA", "1"])
def test_a_picture_of_any_common_kind_is_answered(exported, tmp_path, mode):
    kind = "JPEG" if mode == "CMYK" else "PNG"
    (tmp_path / f"a.{kind.lower()}").write_bytes(encoded(NOISE.convert(mode), kind))
    assert call(exported, tmp_path / f"a.{kind.lower()}").exit_code == 0


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (("--age", "200"), "age is 200, expected years from 0 to 130; leave it out where it is not known"),
        (("--age=-1",), "age is -1, expected years from 0 to 130"),
        (("--age", "sixty"), "age 'sixty' is no number; leave out what is not known"),
        (("--sex", "femal"), "sex 'femal' is none of female, male (did you mean 'female'?)"),
        (("--site", "bakc"), "localization 'bakc' is none of abdomen, acral, back,"),
        (("--set-metadata", "skin=II"), "this model has no metadata 'skin'; it has: sex, age, localization"),
        (("--set-metadata", "agee=3"), "no metadata 'agee'; did you mean age?"),
        (("--set-metadata", "age"), "--set-metadata 'age': expected NAME=VALUE"),
        (("--set-metadata", "age=3", "--age", "4"), "age is given twice"),
    ],
)
def test_metadata_that_a_person_mistyped_are_one_clear_line(exported, pictures, words, told):
    done = call(exported, pictures[0], *words)
    assert (done.exit_code, done.stdout) == (2, "")
    assert told in done.stderr


def test_what_is_not_known_can_be_said_in_words(model, pictures):
    said = model.predict(pictures[0], age=float("nan"), sex="unknown", site="n/a")
    assert said == model.predict(pictures[0])
    assert (said.unknown, said.notes) == (("sex", "age", "localization"), ())
    note = "localization 'nose' is none of abdomen, acral, back, chest"
    assert model.predict(pictures[0], site="nose").notes[0].startswith(note)
    assert model.predict(pictures[0], age=0).unknown == ("sex", "localization"), "0 is an age"
    for age in (-0.5, 131, "131"):
        with pytest.raises(DataError, match=r"expected years from 0 to 130"):
            model.predict(pictures[0], age=age)


def test_a_data_set_is_answered_with_its_own_metadata(model, exported, generated):
    """The layout of HAM10000, in a folder and in an archive; options fill in what the table does not tell."""
    table = list(csv.DictReader(next(generated.glob("*.csv")).open()))
    found = answers(exported, generated)["images"]
    assert [answer["image"] for answer in found] == sorted(row["image_id"] for row in table)
    by_name = {answer["image"]: answer for answer in found}
    files = {path.stem: path for path in generated.rglob("*.jpg")}
    for row in table[:10]:
        said = model.predict(files[row["image_id"]], age=row["age"], sex=row["sex"], site=row["localization"])
        assert by_name[row["image_id"]]["probabilities"] == pytest.approx(dict(said.probabilities), abs=1e-5)


def test_options_fill_in_what_a_table_does_not_tell(exported, model, pictures, tmp_path):
    for path in pictures[:3]:
        shutil.copy(path, tmp_path)
    names = [path.name for path in pictures[:3]]
    (tmp_path / "list.csv").write_text(
        f"Image;AGE;sex;colour\n{names[0]};61,5;male;x\n{names[1]};;n/a;\n{names[2]};;;\n"
    )
    done = call(exported, tmp_path / "list.csv", "--sex", "female", "--json")
    assert done.exit_code == 0, done.output
    found = json.loads(done.stdout)
    assert [answer["image"] for answer in found["images"]] == names
    expected = [
        model.predict(pictures[0], age=61.5, sex="male"),
        *(model.predict(p, sex="female") for p in pictures[1:3]),
    ]
    for answer, said in zip(found["images"], expected, strict=True):
        assert answer["probabilities"] == pytest.approx(dict(said.probabilities), abs=1e-5)
        assert answer["unknown"] == list(said.unknown)
    assert "list.csv: columns that this model does not take: colour" in done.stderr


def test_a_table_of_ones_own_needs_no_diagnosis(exported, model, pictures, tmp_path):
    shutil.copy(pictures[0], tmp_path / "a.jpg")
    (tmp_path / "t.csv").write_text("Bild;Ort\na;Rücken\n", encoding="cp1252")
    manifest = "file: t.csv\nimage: Bild\nlocalization: Ort\nlocalization_values: {Rücken: back}\n"
    (tmp_path / "manifest.yaml").write_text(manifest, encoding="utf-8")
    expected = model.predict(pictures[0], site="back")
    for place in (tmp_path, tmp_path / "manifest.yaml"):
        (answer,) = answers(exported, place)["images"]
        assert answer["image"] == "a"
        assert answer["probabilities"] == pytest.approx(dict(expected.probabilities), abs=1e-5)
    (tmp_path / "manifest.yaml").write_text("file: t.csv\nimage: Bild\nage: Alter\n")
    done = call(exported, tmp_path)
    assert done.exit_code == 2
    assert "t.csv has no column alter; its columns are bild, ort" in done.stderr


def test_folders_and_archives_of_nothing_but_images_are_answered(exported, pictures, tmp_path):
    (tmp_path / "set" / "mel").mkdir(parents=True)
    for path in pictures[:2]:
        shutil.copy(path, tmp_path / "set" / "mel")
    (tmp_path / "set" / "x.csv").write_text("a,b\n1,2\n")
    done = call(exported, tmp_path / "set", "--json")
    found = json.loads(done.stdout)
    assert [answer["image"] for answer in found["images"]] == [
        str(tmp_path / "set" / "mel" / p.name) for p in pictures[:2]
    ]
    assert "x.csv is not read: no manifest.yaml says what its columns mean" in done.stderr
    with tarfile.open(tmp_path / "set.tar.gz", "w:gz") as archive:
        archive.add(tmp_path / "set" / "mel", "mel")
    packed = answers(exported, tmp_path / "set.tar.gz")["images"]
    assert [answer["probabilities"] for answer in packed] == [answer["probabilities"] for answer in found["images"]]
    (tmp_path / "none").mkdir()
    (tmp_path / "none" / "readme.md").write_text("x")
    assert call(exported, tmp_path / "none").exit_code == 2


@pytest.mark.parametrize(
    ("table", "told"),
    [
        ("bild,age\na.jpg,3\n", "has no column with the images; call it image or image_id, or say in a manifest.yaml"),
        ("image,age\na.jpg,161\n", "line 2: age '161' is not a number of years from 0 to 130"),
        ("image,age\n", "holds no rows"),
    ],
)
def test_a_faulty_table_is_told_before_anything_is_done(exported, pictures, tmp_path, table, told):
    (tmp_path / "t.csv").write_text(table)
    done = call(exported, tmp_path / "t.csv")
    assert (done.exit_code, done.stdout) == (2, "")
    assert told in done.stderr


def test_rows_without_a_file_are_errors_of_their_own(exported, pictures, tmp_path):
    shutil.copy(pictures[0], tmp_path / "a.jpg")
    (tmp_path / "t.csv").write_text("image\na\nb\n")
    done = call(exported, tmp_path / "t.csv")
    assert done.exit_code == 1
    assert f"fedskew: b: no file b in {tmp_path}" in done.stderr


def test_a_model_that_sees_images_alone_takes_no_metadata(exported, tmp_path):
    """Own classes and no second input, from a model that torch never saw: the contract of the file is all it needs."""
    size, names = 4, ["one", "two"]
    node = onnx.helper.make_node("ReduceMean", [IMAGES, "axes"], ["means"], keepdims=0)
    gemm = onnx.helper.make_node("MatMul", ["means", "weight"], ["logits"])
    weight = onnx.numpy_helper.from_array(np.array([[1, 0], [0, 0], [0, 1]], np.float32), "weight")
    axes = onnx.numpy_helper.from_array(np.array([2, 3]), "axes")
    ends = [onnx.helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, shape)
            for name, shape in ((IMAGES, ["n", 3, size, size]), ("logits", ["n", 2]))]  # fmt: skip
    graph = onnx.helper.make_graph([node, gemm], "means", ends[:1], ends[1:], [weight, axes])
    file = onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", 18)], ir_version=9)
    prepared = Preprocessing(size, size, "squash", mean=(0, 0, 0), deviation=(0.5, 1, 0.25)).to_mapping()
    said = {ARCHITECTURE: json.dumps({"version": 2, "classes": names, "vocabularies": []}),
            ABOUT: json.dumps({"preprocessing": prepared})}  # fmt: skip
    (tmp_path / "means.onnx").write_bytes(encode(file, said))
    model = fedskew.load(tmp_path / "means.onnx")
    found = model.predict(Image.new("RGB", (8, 8), (51, 7, 102)))  # logits .2 / .5 and .4 / .25
    assert found.probabilities["two"] == pytest.approx(1 / (1 + np.exp(0.4 - 1.6)), abs=1e-6)
    assert found.decision == "two"
    with pytest.raises(DataError, match="no metadata 'age'; it has: none: it sees images alone"):
        model.predict(Image.new("RGB", (8, 8)), age=3)


def test_the_mode_of_the_module_stays_as_it_was(model, pictures):
    before = model.predict(pictures[0])
    model.module.train()
    try:
        assert model.predict(pictures[0]) == before
        assert model.module.training
    finally:
        model.module.eval()
    assert not any(parameter.grad_fn for parameter in model.module.parameters())
    assert torch.is_grad_enabled()
