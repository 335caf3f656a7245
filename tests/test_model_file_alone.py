"""The model file alone suffices: what it says of itself, its bytes, and evaluation by nothing else."""

import hashlib
import json
import logging
import os
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from builders import architecture, lively_model, run_here, tiny_config
from PIL import Image
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from test_data_sources import folder, jpeg

import fedskew
from fedskew.data.preprocessing import (
    IMAGENET_MEAN,
    IMAGENET_STD,
    Preprocessing,
    preprocessing_from,
    training_preprocessing,
)
from fedskew.data.samples import DataError
from fedskew.learning.datasets import open_data, split_hash, split_server
from fedskew.model.modelfile import (
    ABOUT,
    ARCHITECTURE,
    ModelFileError,
    encode_model,
    load_model,
    read_about,
    read_model,
    read_preprocessing,
)
from fedskew.runs import lineage
from fedskew.runs.predictions import read_predictions
from fedskew.tools.evaluate import evaluate_run

ARCH = architecture(image_size=32, stages=2, depth=1, classes=2)
ROOT = Path(__file__).resolve().parents[1]


@pytest.fixture(scope="module")
def cropped(tmp_path_factory, generated):
    """A run that crops its pictures and splits otherwise than by default."""
    return run_here(
        tiny_config(
            data={"fit": "crop", "test": 0.3, "split_seed": 0, "split_by": "image"},
            federation={"rounds": 1},
            run={"output_dir": str(tmp_path_factory.mktemp("runs")), "seed": 4, "name": "named"},
        )
    )


@pytest.fixture
def alone(cropped, tmp_path):
    """A copy of its model file, with nothing beside it."""
    return Path(shutil.copy(cropped.path / "model.safetensors", tmp_path / "model.safetensors"))


def without_about(path, target):
    """The same file as versions before wrote it."""
    arch, weights = read_model(path)
    target.write_bytes(encode_model(arch, weights))
    assert read_about(target) == {}
    return target


def saying(path, target, about):
    arch, weights = read_model(path)
    target.write_bytes(encode_model(arch, weights, about))
    return target


def test_the_file_says_what_it_is_and_where_it_comes_from(cropped, alone):
    config = tiny_config(data={"fit": "crop", "test": 0.3, "split_seed": 0, "split_by": "image"})
    data = open_data(config.data, 32)
    expected = split_hash(data, split_server(data, config.data))
    assert read_about(alone) == {
        "format": 1,
        "preprocessing": {"image_size": 32, "edge": 36, "fit": "crop", "mean": [0.485, 0.456, 0.406],
                          "deviation": [0.229, 0.224, 0.225]},
        "split": {"clients": "partition", "test": 0.3, "open": 0.2, "split_by": "image", "split_seed": 0},
        "lineage": {"preset": "tiny", "method": "skewness", "seed": 4, "round": 1, "split_hash": expected,
                    "fedskew": fedskew.__version__, "code": lineage.code_hash()},
    }  # fmt: skip
    first = read_about(cropped.path / "checkpoints/round-0000/model.safetensors")
    assert first["lineage"]["round"] == 0
    arch = load_model(alone).architecture
    assert (arch.classes[:2], [name for name, _ in arch.vocabularies]) == (
        ("akiec", "bcc"), ["sex", "age", "localization"])  # fmt: skip


def test_others_can_read_the_file(alone):
    with safe_open(alone, framework="pt") as file:
        assert set(file.metadata()) == {ARCHITECTURE, ABOUT}
    ours, theirs = read_model(alone)[1], load_file(alone)
    assert all(torch.equal(theirs[name], tensor) for name, tensor in ours.items())
    length = int.from_bytes(alone.read_bytes()[:8], "little")
    assert length % 8 == 0, "tensors are aligned, as the format asks"


WRITE = """
import hashlib, sys
sys.path.insert(0, "tests")
from builders import architecture, lively_model
from fedskew.model.modelfile import encode_model
arch = architecture(image_size=32, stages=2, depth=1, classes=2)
about = {"b": 1, "a": {"z": "ü", "y": 2}}
print(hashlib.sha256(encode_model(arch, lively_model(arch).state_dict(), about)).hexdigest())
"""


def test_the_bytes_are_the_same_in_every_process():
    """safetensors keeps metadata in a hash map, whose order changes from process to process and from call to call."""
    here = {
        hashlib.sha256(encode_model(ARCH, lively_model(ARCH).state_dict(), about)).hexdigest()
        for about in ({"a": {"y": 2, "z": "ü"}, "b": 1}, {"b": 1, "a": {"z": "ü", "y": 2}})
        for _ in range(8)
    }
    environment = os.environ | {"PYTHONPATH": str(ROOT), "PYTHONHASHSEED": "77", "OMP_NUM_THREADS": "1"}
    other = subprocess.run([sys.executable, "-c", WRITE], env=environment, cwd=ROOT, capture_output=True, text=True,
                           check=True)  # fmt: skip
    assert here == {other.stdout.strip()}


def test_another_name_and_place_of_a_run_change_no_byte(cropped, tmp_path, generated):
    again = run_here(
        tiny_config(
            data={"fit": "crop", "test": 0.3, "split_seed": 0, "split_by": "image"},
            federation={"rounds": 1},
            run={"output_dir": str(tmp_path), "seed": 4, "name": "another-name"},
        )
    )
    one, other = ((run.path / "model.safetensors").read_bytes() for run in (cropped, again))
    assert one == other


def test_the_hash_of_the_code_is_of_names_and_contents(tmp_path, monkeypatch):
    package = tmp_path / "fedskew"
    for name, content in {"b.py": b"x = 1\n", "a/c.py": b"", "notes.txt": b"no code"}.items():
        (package / name).parent.mkdir(parents=True, exist_ok=True)
        (package / name).write_bytes(content)
    monkeypatch.setattr(fedskew, "__file__", str(package / "__init__.py"))
    expected = hashlib.sha256(b"a/c.py\0" + b"0\0" + b"b.py\0" + b"6\0" + b"x = 1\n").hexdigest()
    assert lineage.code_hash.__wrapped__() == expected


# Evaluation


def test_a_bare_file_evaluates_as_the_run_did(cropped, alone, generated):
    found = evaluate_run(alone, generated, everything=False)
    last = cropped.records()[-1]
    for key in ("accuracy", "balanced_accuracy", "recall", "examples", "parameters"):
        assert found[key] == last[key], key
    assert found["loss"] == pytest.approx(last["loss"], rel=1e-5)
    assert (found["split"], found["split_as_in_run"], found["assumed"]) == ("test", True, [])
    assert found["lineage"]["round"] == 1
    assert evaluate_run(alone, generated, everything=True)["split_as_in_run"] is None


def test_another_split_than_the_runs_is_told(alone, generated, tmp_path):
    about = read_about(alone)
    about["split"]["split_seed"] = 5
    other = saying(alone, tmp_path / "other.safetensors", about)
    assert evaluate_run(other, generated, everything=False)["split_as_in_run"] is False


def test_a_file_of_an_earlier_version_names_what_is_assumed(cropped, alone, generated, tmp_path, caplog, monkeypatch):
    old = without_about(alone, tmp_path / "old.safetensors")
    monkeypatch.setattr(logging.getLogger("flwr"), "propagate", True)
    with caplog.at_level(logging.WARNING, "flwr.fedskew.runs"):
        found = evaluate_run(old, generated, everything=False)
    assert found["preprocessing"] == training_preprocessing(32, "squash").to_mapping()
    assert found["split_as_in_run"] is None
    split, prepared = found["assumed"]
    assert split == "nothing says how the run split its data: split by the default settings of data.*"
    assert "assumed fit squash as is the default, 32 pixels out of 36, ImageNet's mean and deviation" in prepared
    assert all(any(line in record.getMessage() for record in caplog.records) for line in found["assumed"])
    inside = Path(shutil.copytree(cropped.path, tmp_path / "run"))
    without_about(alone, inside / "model.safetensors.new").replace(inside / "model.safetensors")
    beside = evaluate_run(inside, generated, everything=False)
    assert beside["preprocessing"]["fit"] == "crop"
    assert ["of config.yaml beside it" in line for line in beside["assumed"]] == [True]
    assert beside["accuracy"] == cropped.records()[-1]["accuracy"]


def test_the_files_own_preprocessing_comes_before_the_configuration_beside_it(cropped, alone, generated, tmp_path):
    inside = Path(shutil.copytree(cropped.path, tmp_path / "run"))
    about = read_about(alone)
    about["preprocessing"] |= {"fit": "squash", "edge": 50}
    saying(alone, inside / "model.safetensors.new", about).replace(inside / "model.safetensors")
    found = evaluate_run(inside, generated, everything=True)
    assert (found["preprocessing"]["fit"], found["preprocessing"]["edge"]) == ("squash", 50)
    assert found["loss"] != evaluate_run(cropped.path, generated, everything=True)["loss"]


@pytest.mark.parametrize("fit", ["squash", "crop"])
def test_pictures_are_prepared_as_the_document_says(tmp_path, fit):
    """Against Pillow and plain arithmetic, with an edge, mean and deviation of the file's own."""
    pixels = np.random.default_rng(3).integers(0, 256, (60, 80, 3), dtype=np.uint8)
    names = ["mel/a.png", "nv/b.png"]
    for name, turned in zip(names, (pixels, pixels[:, ::-1]), strict=True):
        (tmp_path / "d" / name).parent.mkdir(parents=True)
        Image.fromarray(turned).save(tmp_path / "d" / name)
    mean, deviation = (0.1, 0.2, 0.3), (0.5, 0.6, 0.9)
    prepared = Preprocessing(32, 40, fit, mean, deviation)
    arch = architecture(image_size=32, stages=2, depth=1, classes=2, multimodal=False)
    arch = replace(arch, classes=("mel", "nv"))
    model = lively_model(arch)
    path = tmp_path / "m.safetensors"
    path.write_bytes(encode_model(arch, model.state_dict(), {"preprocessing": prepared.to_mapping()}))
    evaluate_run(path, tmp_path / "d", everything=True, predictions=tmp_path / "p.npz")
    inputs = []
    for name in names:
        image = Image.open(tmp_path / "d" / name)
        if fit == "crop":
            image = image.crop((10, 0, 70, 60))
        square = np.asarray(image.resize((40, 40), Image.Resampling.LANCZOS))[4:36, 4:36].astype(np.float64)
        inputs.append(((square / 255 - mean) / deviation).transpose(2, 0, 1))
    with torch.no_grad():
        logits = model(torch.tensor(np.stack(inputs), dtype=torch.float32), torch.zeros(2, 0, dtype=torch.long))
    found = read_predictions(tmp_path / "p.npz")
    assert found.images.tolist() == names
    np.testing.assert_allclose(found.probabilities, logits.softmax(-1).numpy(), atol=2e-4)
    imagenet = training_preprocessing(32, fit)
    assert (imagenet.mean, imagenet.deviation) == (IMAGENET_MEAN, IMAGENET_STD)


# Files that cannot be used


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"fit": "stretch"}, "fit is 'stretch', expected squash or crop"),
        ({"edge": 31}, "1 <= image_size <= edge"),
        ({"edge": 10**6}, "1 <= image_size <= edge"),
        ({"edge": 36.0}, "must be whole numbers"),
        ({"image_size": 16}, "prepares pictures of 16 pixels for a model of 32"),
        ({"mean": [0.1, 0.2]}, "mean must be three numbers"),
        ({"mean": [0.1, 0.2, "x"]}, "mean must be three numbers"),
        ({"deviation": [0.1, 0.0, 0.2]}, "deviation must be above 0"),
        ({"gamma": 2}, "must hold deviation, edge, fit, image_size, mean"),
    ],
)
def test_what_cannot_be_done_is_refused_with_the_file(alone, generated, tmp_path, change, words):
    about = read_about(alone)
    about["preprocessing"] |= change
    path = saying(alone, tmp_path / "odd.safetensors", about)
    with pytest.raises(ModelFileError, match=r"odd\.safetensors") as error:
        evaluate_run(path, generated, everything=True)
    assert words in str(error.value)


@pytest.mark.parametrize(
    "about", ["[]", "no json", '{"split": 3}', '{"lineage": []}', "[" * 100_000, '{"a": "' + 100_000 * "x" + '"}']
)
def test_what_a_file_says_of_itself_is_not_trusted(tmp_path, about):
    save_file({"x": torch.zeros(1)}, tmp_path / "m.safetensors", metadata={ARCHITECTURE: "{}", ABOUT: about})
    with pytest.raises(ModelFileError, match=r"m\.safetensors"):
        read_about(tmp_path / "m.safetensors")
    with pytest.raises(ModelFileError, match="cannot be read"):
        read_about(tmp_path / "absent.safetensors")


def test_a_split_that_is_none_is_refused(alone, generated, tmp_path):
    about = read_about(alone)
    about["split"]["test"] = 7
    with pytest.raises(ModelFileError, match=r"odd\.safetensors \(split\): data\.test is 7\.0, expected at most 0\.98"):
        evaluate_run(saying(alone, tmp_path / "odd.safetensors", about), generated, everything=False)


def test_preprocessing_comes_back_from_json():
    prepared = Preprocessing(64, 72, "crop", (0.1, 0.2, 0.3), (1.0, 2.0, 3.0))
    assert preprocessing_from(json.loads(json.dumps(prepared.to_mapping()))) == prepared
    with pytest.raises(DataError, match="preprocessing must hold"):
        preprocessing_from(None)


def test_a_file_that_does_not_say_has_none(tmp_path):
    (tmp_path / "m.safetensors").write_bytes(encode_model(ARCH, lively_model(ARCH).state_dict()))
    assert read_preprocessing(tmp_path / "m.safetensors") is None


def test_labels_that_the_model_does_not_know_name_the_nearest(alone, tmp_path):
    path = folder(tmp_path / "d", {"Mel/a.jpg": jpeg(1), "nevus/b.jpg": jpeg(2), "nevus/c.jpg": jpeg(3)})
    with pytest.raises(DataError) as error:
        evaluate_run(alone, path, everything=True)
    text = str(error.value)
    assert "'Mel' (1 images, nearest class 'mel'), 'nevus' (2 images" in text
    assert "(model.classes)" in text
