"""`fedskew export`: a file is written only after its checks; it says what it is; what fails leaves nothing behind."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from builders import lively_model
from safetensors.torch import load_file, save_file
from typer.testing import CliRunner

import fedskew.export
from fedskew.cli.main import app
from fedskew.config import ConfigError
from fedskew.data.samples import DataError
from fedskew.export import MissingExtra, check_installed, export
from fedskew.export.card import escaped
from fedskew.export.checking import ExportError
from fedskew.export.checks import Gate, Parity, gate, parity
from fedskew.export.export import export_model
from fedskew.export.graph import to_onnx
from fedskew.export.images import check_images
from fedskew.export.session import logits_of, open_session
from fedskew.model.modelfile import ModelFileError, encode_model, load_model, read_about, read_model
from fedskew.runs.folder import RunFolderError
from fedskew.runs.predictions import read_predictions
from fedskew.tools.evaluate import setting_of
from fedskew.tools.onnx_file import ABOUT, ARCHITECTURE, EXPORT, SEAL, seal


@pytest.fixture(scope="module")
def graph(finished_run):
    """The graph of the run's model, traced once for all tests here."""
    return to_onnx(load_model(finished_run.path / "model.safetensors"))


@pytest.fixture
def traced(graph, monkeypatch):
    """Exports take this graph and do not trace."""

    def give(_):
        copy = onnx.ModelProto()
        copy.CopyFrom(graph)
        return copy

    monkeypatch.setattr(export, "to_onnx", give)


@pytest.fixture
def run(finished_run, tmp_path):
    """A copy of a finished run that a test may change."""
    place = tmp_path / "clinic-run"
    shutil.copytree(finished_run.path, place)
    return place


def told(file):
    return {entry.key: entry.value for entry in onnx.load(file).metadata_props}


def opened(run):
    """How many open images a run has."""
    return len(json.loads((run / "split.json").read_text())["ids"]["open"])


def checked(run):
    """On how many of them an export is checked: those that are not needed for calibration."""
    return opened(run) - opened(run) // 2


def written(folder):
    return sorted(path.name for path in folder.rglob("*") if path.suffix in (".onnx", ".tmp") or path.name == "export")


def test_an_exported_file_holds_all_that_a_device_needs_and_no_path(run, traced):
    found = export_model(run)
    assert found.file == run / "export" / "model.onnx"
    said = told(found.file)
    assert set(said) == {ARCHITECTURE, ABOUT, EXPORT, SEAL}
    assert said[SEAL] == seal(said)
    assert said[SEAL] != seal(said | {ABOUT: said[ABOUT].replace("0.485", "0.5")})
    arch, _ = read_model(run / "model.safetensors")
    assert said[ARCHITECTURE] == arch.to_json()
    about, export_said = json.loads(said[ABOUT]), json.loads(said[EXPORT])
    assert about == read_about(run / "model.safetensors")
    assert about["lineage"]["split_hash"]
    assert export_said["run"] == "clinic-run"
    assert export_said["precision"] == "fp32"
    assert export_said["opset"] == onnx.load(found.file).opset_import[0].version >= 17
    assert export_said["parity"]["images"] == checked(run), "half of the open images, which are not test images"
    assert export_said["parity"]["difference"] <= 1e-4
    for word in (str(run), str(run.parent), "/tmp", "/home"):
        assert word.encode() not in found.file.read_bytes(), word


def test_the_same_model_gives_the_same_bytes(run, traced):
    first = export_model(run, precision="int8").file.read_bytes()
    (run / "export" / "model-int8.onnx").unlink()
    assert export_model(run, precision="int8").file.read_bytes() == first


def test_int8_says_what_it_lost_and_is_smaller(run, traced):
    found = export_model(run, precision="int8")
    assert found.bytes == found.file.stat().st_size < (run / "model.safetensors").stat().st_size
    said = found.said
    assert set(said["tried"]) == {"static", "dynamic"}
    assert said["gate"] == said["tried"][said["method"]]
    assert said["gate"]["same"] == max(one["same"] for one in said["tried"].values())
    assert said["checked_on"] == {
        "images": checked(run), "calibration": opened(run) // 2, "what": "open images of the run",
    }  # fmt: skip
    assert said["test"]["images"] == len(read_predictions(run).images)
    assert any(f"checked on {checked(run)} images only" in line for line in found.warnings)


def test_on_the_test_images_it_gives_the_probabilities_that_the_run_recorded(run, traced, generated):
    file = export_model(run).file
    model = run / "model.safetensors"
    arch, _ = read_model(model)
    images = check_images(model, arch, setting_of(model, arch, best=False, everything=True), None, best=False)
    session = open_session(file.read_bytes())
    logits = np.concatenate([logits_of(session, batch.images.numpy(), batch.metadata.numpy())
                             for batch in images.batches(images.test, arch)])  # fmt: skip
    recorded = read_predictions(run)
    assert [images.data.samples[i].image_id for i in images.test] == recorded.images.tolist()
    assert np.abs(torch.from_numpy(logits).softmax(-1).numpy() - recorded.probabilities).max() < 1e-5
    assert not set(images.calibration) & set(images.checked)
    assert not set(images.test) & {*images.calibration, *images.checked}


def outlier_model(run):
    """Give the run a model with a weight of 10⁶ in each row of its MLPs, which changes nothing in float32.

    It meets a channel that is 0 for every image. In int8 the other weights of the row are rounded to 0 beside it.
    """
    path = run / "model.safetensors"
    arch, _ = read_model(path)
    state = lively_model(arch).state_dict()
    for name in [name for name in state if name.endswith("mlp.fc2.weight")]:
        before = name.replace("fc2", "fc1")
        state[before][0] = 0.0
        state[before.replace("weight", "bias")][0] = -100.0  # GELU makes 0 of it
        state[name][:, 0] = 1e6
    path.write_bytes(encode_model(arch, state, read_about(path)))


def test_what_fails_the_gate_is_named_and_leaves_nothing(run):
    outlier_model(run)
    (run / "predictions.npz").unlink()
    with pytest.raises(ExportError) as error:
        export_model(run, precision="int8")
    text = str(error.value)
    count = checked(run)
    assert text.startswith(f"nothing was written: int8 does not pass on {count} open images of the run: static: ")
    assert "; dynamic: " in text
    assert re.search(r"[\d.]+ % of the images get the same class, at least 99 % are taken", text)
    assert written(run) == []
    assert export_model(run).file.is_file(), "in float32 it is as good as before"


def test_a_graph_that_is_not_the_model_is_not_written(run, graph, monkeypatch):
    wrong = onnx.ModelProto()
    wrong.CopyFrom(graph)
    bias = next(tensor for tensor in wrong.graph.initializer if tensor.name.endswith("classifier.bias"))
    bias.CopyFrom(onnx.numpy_helper.from_array(onnx.numpy_helper.to_array(bias) + np.float32(2e-3), bias.name))
    monkeypatch.setattr(export, "to_onnx", lambda _: wrong)
    with pytest.raises(ExportError, match=r"the ONNX graph is not the model: on \d+ real images its logits differ from "
                                          r"PyTorch's by up to 0\.002 .* at most 0\.0001 is taken"):  # fmt: skip
        export_model(run)
    assert written(run) == []


def test_a_model_file_alone_needs_data_to_be_checked_on(run, traced, generated, tmp_path):
    file = shutil.copy(run / "model.safetensors", tmp_path / "lone.safetensors")
    with pytest.raises(RunFolderError, match=r"an export is checked on real images before it is kept: give --data-dir"):
        export_model(Path(file))
    assert written(tmp_path / "export") == []
    found = export_model(Path(file), data=generated)
    assert found.file == tmp_path / "export" / "lone.onnx"
    assert found.said["run"] == ""
    assert found.said["checked_on"]["what"] == "open images of the run", "by the split hash these are the run's images"
    card = found.card.read_text()
    assert "Whose data is in this model is not on record." in card
    assert "Not on record for this model: no run folder was given." in card


@pytest.mark.parametrize(
    ("change", "error", "words"),
    [
        (lambda run: (run / "model.safetensors").unlink(), RunFolderError, "neither a model file nor a run folder"),
        (lambda run: (run / "model.safetensors").write_bytes(b"x" * 50), ModelFileError, "cannot be read as a model"),
        (lambda run: _cut(run / "model.safetensors"), ModelFileError, "cannot be read as a model"),
        (lambda run: _strip(run / "model.safetensors"), ModelFileError, "is not a fedskew model"),
        (lambda run: _newer(run / "model.safetensors"), ModelFileError, "version"),
        (lambda run: (run / "metrics.jsonl").write_text("{damaged\n"), RunFolderError, "metrics.jsonl is damaged"),
        (lambda run: (run / "metrics.jsonl").write_text(""), RunFolderError, "holds no finished round"),
        (lambda run: (run / "split.json").unlink(), RunFolderError, "split.json is damaged or missing"),
        (lambda run: (run / "config.yaml").write_text("model: {nme: x}\n"), ConfigError, "nme"),
    ],
    ids=["no round yet", "no model", "cut", "not ours", "newer", "record", "empty record", "split", "configuration"],
)
def test_a_run_that_cannot_be_exported_is_named_and_nothing_is_left(run, traced, change, error, words):
    change(run)
    with pytest.raises(error) as found:
        export_model(run)
    assert words in str(found.value)
    assert len(str(found.value).splitlines()) == 1
    assert written(run) == []


def _cut(file):
    file.write_bytes(file.read_bytes()[:-1000])


def _strip(file):
    save_file(load_file(file), file)


def _newer(file):
    content = file.read_bytes()
    assert content.count(b'\\"version\\":2') == 1
    file.write_bytes(content.replace(b'\\"version\\":2', b'\\"version\\":9'))


def test_a_place_that_cannot_be_written_is_refused_before_any_work(run, monkeypatch):
    monkeypatch.setattr(export, "load_model", lambda _: pytest.fail("it began to work"))
    for out, words in ((run, "is a folder; name a file in it"), (run / "model.tflite", "is named otherwise"),
                       (run / "no" / "x.onnx", "there is no folder")):  # fmt: skip
        with pytest.raises(ExportError, match=words):
            export_model(run, out=out)


def test_too_few_images_to_check_on(run, traced, tmp_path, generated):
    rows = (generated / "HAM10000_metadata.csv").read_text().splitlines()
    few = tmp_path / "few"
    few.mkdir()
    (few / "HAM10000_metadata.csv").write_text("\n".join(rows[:8]) + "\n")
    for row in rows[1:8]:
        name = row.split(",")[1]
        shutil.copy(next(generated.rglob(f"{name}.jpg")), few)
    with pytest.raises(DataError, match=r"leaves \d images of \d classes to check an export on, and at least 8"):
        export_model(run, data=few)


def test_the_card_tells_counts_coverage_gate_and_lineage(run, traced):
    export_model(run, precision="fp16")
    found = export_model(run, precision="int8")
    assert found.card == run / "export" / "MODEL_CARD.md"
    card = found.card.read_text()
    assert "not a medical device" in card.split("##")[0]
    for file in ("model-fp16.onnx", "model-int8.onnx"):
        assert re.search(rf"^\| {file} \| (fp16|int8) \| ", card, re.MULTILINE)
    recorded = read_predictions(run)
    for i, name in enumerate(recorded.classes):
        own = recorded.labels == i
        right = int((recorded.probabilities[own].argmax(1) == i).sum())
        assert re.search(rf"^\| {name} \| {own.sum()} \| {right} \| ", card, re.MULTILINE), name
    assert "The data of 3 of 3 sites are in this model, in every one of its 2 rounds." in card
    assert re.search(r"^\| partition-1 \| 2 of 2 \| – \|$", card, re.MULTILINE)
    sexes = re.findall(r"^\| sex: \w+ \| (\d+) \| ", card, re.MULTILINE)
    assert sum(map(int, sexes)) == len(recorded.images)
    lineage = read_about(run / "model.safetensors")["lineage"]
    assert f"| split | {lineage['split_hash']} |" in card
    assert str(run.parent) not in card
    for line in card.splitlines():
        if line.startswith("|"):
            assert line.endswith("|"), line


def test_an_unfinished_run_is_exported_and_said_to_be_one(run, traced):
    text = (run / "config.yaml").read_text()
    (run / "config.yaml").write_text(text.replace("rounds: 2", "rounds: 9"))
    found = export_model(run)
    words = "the run is unfinished, 2 of 9 rounds: this model has not been trained to its end"
    assert words in found.warnings
    assert f"> **Note:** {words}" in found.card.read_text()


def test_names_that_look_like_html_or_markdown_are_shown_as_they_are(run, traced):
    evil = "<img src=x onerror=alert(1)>|`*_[nv](http://x)\n# big"
    assert escaped(evil) == ("&lt;img src=x onerror=alert(1)&gt;\\|\\`\\*\\_\\[nv\\](http://x) \\# big")
    place = run.with_name("<b>run")
    run.rename(place)
    card = export_model(place).card.read_text()
    assert card.startswith("# Model card: &lt;b&gt;run\n")
    assert "<b>" not in card


@pytest.mark.parametrize(
    ("difference", "passes"), [(1e-4, True), (1.001e-4, False), (float("nan"), False)], ids=["limit", "above", "nan"]
)
def test_parity_has_a_limit(difference, passes):
    assert (Parity(10, difference, 3.0).failure == "") is passes


def test_what_a_gate_measures():
    labels = np.array([0, 0, 0, 1, 1, 2])
    reference = np.eye(3)[[0, 0, 1, 1, 1, 2]] * 4.0
    found = reference.copy()
    found[3] = [5.0, 1.0, 0.0]  # one image of class 1 is lost
    got = gate(labels, ("a", "b", "c"), reference, found)
    assert got.images == 6
    assert got.reference == pytest.approx((2 / 3 + 1 + 1) / 3)
    assert got.found == pytest.approx((2 / 3 + 1 / 2 + 1) / 3)
    assert got.same == pytest.approx(5 / 6)
    assert got.difference == 5.0
    assert parity(reference, found) == Parity(6, 5.0, 4.0)


@pytest.mark.parametrize(
    ("reference", "found", "same", "words"),
    [
        (0.8, 0.795, 0.99, ()),
        (0.8, 0.9, 1.0, ()),
        (0.8, 0.7949, 0.99, ("balanced accuracy falls by 0.51 points, from 80.00 to 79.49 %, at most 0.5 are taken",)),
        (0.8, 0.8, 0.9899, ("98.99 % of the images get the same class, at least 99 % are taken",)),
        (0.8, 0.1, 0.2, ("falls by 70.00 points", "20.00 % of the images")),
        (0.8, float("nan"), float("nan"), ("balanced accuracy", "of the images")),
    ],
)
def test_a_gate_names_each_limit_that_is_missed(reference, found, same, words):
    failure = Gate(1000, reference, found, same, 0.1).failure
    assert all(word in failure for word in words)
    assert bool(failure) is bool(words)


def test_the_command(run, traced):
    found = CliRunner().invoke(app, ["export", str(run), "--fp16"])
    assert found.exit_code == 0, found.output
    assert "fp16, ONNX opset" in found.stdout
    assert re.search(r"logits differ from PyTorch's by at most \d\.\de-0\d on \d+ open images of the run", found.stdout)
    assert "next: fedskew bench " in found.stderr
    as_json = CliRunner().invoke(app, ["export", str(run), "--json"])
    assert json.loads(as_json.stdout)["precision"] == "fp32"
    both = CliRunner().invoke(app, ["export", str(run), "--fp16", "--int8"])
    assert both.exit_code == 2
    assert "give one of them" in both.stderr


def test_what_is_not_installed_is_named_with_the_way_to_it(monkeypatch):
    check_installed()
    monkeypatch.setattr(fedskew.export, "NEEDED", ("json", "onnx_of_nowhere"))
    with pytest.raises(MissingExtra, match=r"exports need onnx_of_nowhere: pip install 'fedskew\[export\]'"):
        check_installed()
