"""What an evaluation says of images that the model was trained on, and where it may put what it finds."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace

import numpy as np
import pytest
from builders import IMAGES
from typer.testing import CliRunner

from fedskew.cli.main import app
from fedskew.files import file_sha256
from fedskew.runs.predictions import PredictionsError, encode_predictions, read_predictions
from fedskew.runs.reading import PREDICTIONS
from fedskew.runs.report import evaluation_text
from fedskew.tools import evaluate as evaluation
from fedskew.tools.compare import read_runs
from fedskew.tools.evaluate import evaluate_run
from fedskew.tools.pairing import paired


@pytest.fixture(scope="module")
def fewer(generated, tmp_path_factory):
    """The generated data set without its first 30 rows: it splits otherwise."""
    folder = tmp_path_factory.mktemp("fewer") / "data"
    shutil.copytree(generated, folder)
    table = next(folder.glob("*metadata*"))
    head, *rows = table.read_text().splitlines(keepends=True)
    table.write_text(head + "".join(rows[30:]))
    return folder


@pytest.fixture
def two_runs(finished_run, dense_run, tmp_path):
    """Copies of two runs: `pruned` and `dense`."""
    shutil.copytree(finished_run.path, tmp_path / "pruned")
    shutil.copytree(dense_run.path, tmp_path / "dense")
    return tmp_path / "pruned", tmp_path / "dense"


def told(found):
    return " ".join(evaluation_text(found).split())


def trained_ids(run):
    ids = json.loads((run / "split.json").read_text())["ids"]
    return {*ids["open"], *(image for part in ids["parts"] for image in part)}


def test_a_subset_of_the_data_is_not_called_the_runs_test_set(finished_run, fewer, tmp_path):
    """Patients were taken out of the manifest, and training images were called test images."""
    found = evaluate_run(finished_run.path, fewer, everything=False, predictions=tmp_path / "x.npz")
    assert found["split_as_in_run"] is False
    images = read_predictions(tmp_path / "x.npz").images.tolist()
    expected = len(trained_ids(finished_run.path) & set(images))
    assert 0 < expected < len(images), "the fixture: some, not all"
    assert found["seen_in_training"] == expected
    assert "another split than the run's" in told(found)
    assert f"{expected} of {len(images)} images that were in the run's training or open part" in told(found)
    assert "WARNING: this is not the test set of the run" in told(found)


def test_the_runs_own_test_set_needs_no_warning(finished_run, generated):
    found = evaluate_run(finished_run.path, generated, everything=False)
    assert (found["split_as_in_run"], found["seen_in_training"], found["warnings"]) == (True, 0, [])
    assert "test images of the run's split" in told(found)
    assert "WARNING" not in told(found)


@pytest.mark.parametrize("best", [False, True])
def test_all_images_of_the_runs_data_include_those_of_its_training(finished_run, generated, best):
    found = evaluate_run(finished_run.path, generated, everything=True, best=best)
    count = len(trained_ids(finished_run.path))
    assert 0 < count < 160
    assert f"WARNING: these figures include {count} of 160 images that were in the run's training" in told(found)


def test_a_bare_file_tells_as_much_as_its_split_hash_does(finished_run, generated, fewer, tmp_path):
    shutil.copy(finished_run.path / "model.safetensors", bare := tmp_path / "bare.safetensors")
    other = told(evaluate_run(bare, fewer, everything=False))
    assert "not the test set of the run" in other
    assert "some of these images may have been trained on" in other
    own = evaluate_run(bare, generated, everything=False)
    assert own["warnings"] == []
    everything = told(evaluate_run(bare, generated, everything=True))
    assert f"{len(trained_ids(finished_run.path))} of 160 images were in its training or open part" in everything
    assert evaluate_run(bare, fewer, everything=True)["warnings"] == [], "perhaps another hospital's"


def test_the_notes_on_the_data_are_told_to_people_too(finished_run, generated, tmp_path):
    folder = tmp_path / "data"
    shutil.copytree(generated, folder)
    table = next(folder.glob("*metadata*"))
    table.write_text(table.read_text().replace(",male,", ",mael,"))
    broken = next(path for path in sorted(folder.rglob("*.jpg")))
    broken.write_bytes(b"\xff\xd8 not an image")
    text = told(evaluate_run(finished_run.path, folder, everything=True))
    assert "data: sex 'mael' is not in the vocabulary" in text
    assert f"data: 1 of {IMAGES} images cannot be read and are skipped; {broken.stem}" in text
    assert ", 1 unreadable" in text


def test_predictions_name_their_model(finished_run, generated, tmp_path):
    for folder in (finished_run.path, finished_run.path / "best"):
        assert read_predictions(folder).model == file_sha256(folder / "model.safetensors")
    evaluate_run(finished_run.path, generated, everything=True, predictions=tmp_path / "all.npz")
    assert read_predictions(tmp_path / "all.npz").model == file_sha256(finished_run.path / "model.safetensors")


def test_a_runs_own_predictions_never_become_those_of_another_model(two_runs, generated):
    """`compare` then printed two results that contradicted each other."""
    pruned, dense = two_runs
    target = dense / PREDICTIONS
    before = target.read_bytes()
    for other in (pruned, pruned / "model.safetensors"):
        with pytest.raises(PredictionsError, match=r"keeps what its own model says.*Name another place"):
            evaluate_run(other, generated, everything=False, predictions=target)
    with pytest.raises(PredictionsError, match="holds what the run's model says of the run's test set"):
        evaluate_run(dense, generated, everything=True, predictions=target)
    with pytest.raises(PredictionsError, match="is a checkpoint"):
        evaluate_run(dense, generated, everything=False, predictions=dense / "checkpoints" / "round-0002" / PREDICTIONS)
    assert target.read_bytes() == before
    evaluate_run(dense, generated, everything=False, predictions=target)
    assert read_predictions(target).model == file_sha256(dense / "model.safetensors")
    assert len(paired(read_runs([pruned, dense]))[0]) == 1, "its own may be made anew"


@pytest.mark.parametrize("with_hash", [True, False])
def test_compare_refuses_predictions_of_another_model(two_runs, with_hash):
    """Those of earlier versions have no hash, and are told by their accuracy."""
    pruned, dense = two_runs
    found = read_predictions(dense)
    assert not paired(read_runs([pruned, dense]))[1]
    wrong = np.roll(found.probabilities, 1, axis=1)
    (dense / PREDICTIONS).write_bytes(encode_predictions(replace(found, probabilities=wrong, model="")))
    if with_hash:
        (dense / PREDICTIONS).write_bytes(encode_predictions(replace(found, model="0" * 64)))
    differences, reasons = paired(read_runs([pruned, dense]))
    assert differences == {}
    assert "are not those of its model" in reasons[0]
    assert f"--predictions {dense / PREDICTIONS}" in reasons[0]


@pytest.mark.parametrize(
    ("name", "words"),
    [("missing/x.npz", "there is no folder"), (".", "is a folder; name a file in it"), ("x.txt", "an .npz file")],
)
def test_a_place_for_predictions_that_cannot_be_is_told_before_anything_is_computed(
    finished_run, tmp_path, monkeypatch, name, words
):
    monkeypatch.setattr(evaluation, "open_data", lambda *_, **__: pytest.fail("data were opened"))
    done = CliRunner().invoke(app, ["evaluate", str(finished_run.path), "--predictions", str(tmp_path / name)])
    assert done.exit_code == 2
    assert words in done.stderr
    assert done.stderr.count("\n") == 1
