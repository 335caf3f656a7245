"""The run folder: whole after a crash at any step, resumed from what is whole, compared and evaluated afterwards."""

import json
import logging
import shutil
from dataclasses import replace

import numpy as np
import pytest
import torch
from builders import architecture, lively_model, tiny_config

from fedskew import files as atomic
from fedskew.apps import make_client_app
from fedskew.federation.grids import LocalGrid
from fedskew.federation.server import FederatedRun
from fedskew.metrics import Predictions
from fedskew.model.modelfile import read_model
from fedskew.runs import folder as folder_module
from fedskew.runs.checkpoint import digest, read_checkpoint
from fedskew.runs.folder import RunFolder, RunFolderError
from fedskew.runs.predictions import PredictionsError, encode_predictions, read_predictions
from fedskew.runs.resume import differences, open_checkpoint, resume_config

ARCH = architecture(stages=1, depth=1)


def state_of(number):
    """A model that can be told from others by its first weight."""
    model = lively_model(ARCH)
    with torch.no_grad():
        model.classifier.weight.fill_(number)
    return model.state_dict()


def predictions_of(number):
    """Predictions that can be told from others by their round."""
    probabilities = np.full((3, 2), 0.5, dtype=np.float32)
    names = np.array(["a", "b", "c"])
    return Predictions(names, names, np.array([0, 1, 1]), ("nv", "mel"), probabilities, number)


def finish(folder, number, *, best=False, keep=2, evaluated=True):
    record, progress = {"round": number, "accuracy": 0.5}, {"best": {"round": number} if best else None}
    folder.finish_round(
        number, ARCH, state_of(number), record, progress,
        is_best=best, keep=keep, predictions=predictions_of(number) if evaluated else None,
    )  # fmt: skip


def number_in(path):
    return read_model(path)[1]["classifier.weight"][0, 0].item()


def round_predicted(path):
    """The round of a folder's predictions; None if it has none."""
    return read_predictions(path).round_number if (path / "predictions.npz").exists() else None


@pytest.fixture
def folder(tmp_path):
    return RunFolder.create(tmp_path, "run")


def test_folders_of_one_name_are_numbered(tmp_path):
    names = [RunFolder.create(tmp_path / "deep" / "er", "run").path.name for _ in range(3)]
    assert names == ["run", "run-2", "run-3"]


def test_a_chosen_name_is_never_changed(tmp_path):
    RunFolder.create(tmp_path, "mine", numbered=False)
    with pytest.raises(RunFolderError, match=r'mine is there already; .*resume=".*mine".*run\.name'):
        RunFolder.create(tmp_path, "mine", numbered=False)
    assert [path.name for path in tmp_path.iterdir()] == ["mine"], "nothing else stays"


@pytest.mark.parametrize("there", ["file", "folder"])
def test_what_is_not_a_run_keeps_its_name_too(tmp_path, there):
    (tmp_path / "run").write_text("notes") if there == "file" else (tmp_path / "run").mkdir()
    assert RunFolder.create(tmp_path, "run").path.name == "run-2"


def test_two_runs_that_start_at_the_same_time_get_a_folder_each(tmp_path, monkeypatch):
    real = folder_module.Path.exists
    first = RunFolder.create(tmp_path, "run", {"a.txt": "first"})
    monkeypatch.setattr(folder_module.Path, "exists", lambda path: path.name != "run" and real(path))
    second = RunFolder.create(tmp_path, "run", {"a.txt": "second"})
    assert [(folder.path.name, (folder.path / "a.txt").read_text()) for folder in (first, second)] == [
        ("run", "first"), ("run-2", "second"),
    ]  # fmt: skip


def test_a_folder_is_there_with_its_first_files_or_not_at_all(tmp_path, monkeypatch):
    real, calls = folder_module.write_bytes, []

    def full(path, content):
        calls.append(path)
        if len(calls) == 2:
            raise OSError(28, "No space left on device")
        real(path, content)

    monkeypatch.setattr(folder_module, "write_bytes", full)
    (tmp_path / "there").mkdir()
    with pytest.raises(RunFolderError, match=r"no run folder can be made in .*deep.*No space left.*run\.output-dir"):
        RunFolder.create(tmp_path / "there" / "deep" / "er", "run", {"a": "1", "b": "2"})
    assert len(calls) == 2
    assert list((tmp_path / "there").iterdir()) == [], "not even the folders above it"


def test_discarding_a_run_leaves_its_neighbours(tmp_path):
    first, second = (RunFolder.create(tmp_path / "deep", name) for name in ("a", "b"))
    first.discard()
    assert [path.name for path in (tmp_path / "deep").iterdir()] == ["b"]
    second.discard()
    assert (tmp_path / "deep").exists(), "the first made it, and it was not empty then"


def test_the_last_and_the_best_round_are_published(folder):
    for number in range(4):
        finish(folder, number, best=number == 1)
    assert number_in(folder.path / "model.safetensors") == round_predicted(folder.path) == 3
    assert number_in(folder.path / "best" / "model.safetensors") == round_predicted(folder.path / "best") == 1
    assert json.loads((folder.path / "architecture.json").read_text()) == json.loads(ARCH.to_json())
    assert [path.name for path in folder.checkpoints()] == ["round-0002", "round-0003"], "older ones are forgotten"
    latest = folder.latest()
    assert (latest.round_number, latest.progress) == (3, {"best": None})
    assert all(torch.equal(tensor, state_of(3)[name]) for name, tensor in latest.weights.items())
    assert folder.records()[2]["model_bytes"] == (folder.path / "model.safetensors").stat().st_size


def test_rounds_beyond_9999_are_still_in_order(folder):
    for number in (9998, 9999, 10000, 10001):
        finish(folder, number)
    assert folder.latest().round_number == 10001
    assert [path.name for path in folder.checkpoints()] == ["round-10000", "round-10001"]


class Killed(BaseException):
    """A process that is ended here; not an error that code would handle."""


STEPS = [("encode_model", 1), ("encode_predictions", 1), *(("write_bytes", call) for call in (1, 2, 3, 4)),
         ("write_json", 1), ("sync_directory", 1), *(("link", call) for call in (1, 2, 3, 4))]  # fmt: skip


def kill_at(monkeypatch, step, call):
    """Raise inside a step of saving, at its n-th call from now on."""
    real, calls = getattr(folder_module, step), []

    def maybe(*args, **kwargs):
        calls.append(1)
        if len(calls) == call:
            raise Killed
        return real(*args, **kwargs)

    monkeypatch.setattr(folder_module, step, maybe)


@pytest.mark.parametrize(("step", "call"), STEPS)
def test_a_process_killed_at_any_step_leaves_a_folder_to_go_on_in(folder, monkeypatch, step, call):
    for number in range(2):
        finish(folder, number, best=True)
    with monkeypatch.context() as patch:
        kill_at(patch, step, call)
        with pytest.raises(Killed):
            finish(folder, 2, best=True)
    after = RunFolder(folder.path)
    latest = after.latest()
    assert latest.round_number in (1, 2)
    assert latest.weights["classifier.weight"][0, 0] == latest.round_number
    assert number_in(folder.path / "model.safetensors") in (1, 2), "never half a model"
    for place in (folder.path, folder.path / "best"):
        assert round_predicted(place) in (None, number_in(place / "model.safetensors")), "never of another model"
    after.republish(latest)
    for place in (folder.path, folder.path / "best"):
        assert round_predicted(place) == number_in(place / "model.safetensors") == latest.round_number
    kept = after.rewind(latest.round_number)
    assert [record["round"] for record in kept] == list(range(latest.round_number + 1))
    finish(after, latest.round_number + 1, best=True)
    assert number_in(folder.path / "model.safetensors") == latest.round_number + 1
    assert [record["round"] for record in after.records()] == list(range(latest.round_number + 2))


def test_a_write_that_fails_leaves_the_old_file(tmp_path, monkeypatch):
    path = tmp_path / "file.json"
    atomic.write_json(path, {"a": 1})

    def fail(_):
        raise OSError("disk full")

    monkeypatch.setattr(atomic.os, "fsync", fail)
    with pytest.raises(OSError, match="disk full"):
        atomic.write_json(path, {"a": 2})
    assert json.loads(path.read_text()) == {"a": 1}
    assert [entry.name for entry in tmp_path.iterdir()] == ["file.json"], "nothing else stays"


def test_a_full_disk_is_said_with_the_way_to_go_on(folder, monkeypatch):
    finish(folder, 0)

    def fail(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("fedskew.runs.folder.write_bytes", fail)
    with pytest.raises(RunFolderError, match=r"round 1 .*No space left.*resume="):
        finish(folder, 1)
    monkeypatch.undo()
    assert folder.latest().round_number == 0


@pytest.mark.parametrize("step", [lambda folder: folder.write_text("config.yaml", "x"),
                                  lambda folder: folder.write_json("summary.json", {}),
                                  lambda folder: folder.rewind(0)])  # fmt: skip
def test_every_file_that_cannot_be_written_is_one_message(folder, monkeypatch, step):
    finish(folder, 0)

    def fail(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("fedskew.files.os.fsync", fail)
    with pytest.raises(RunFolderError, match=r"could not be saved in .*No space left.*resume="):
        step(folder)


def test_a_file_system_without_hard_links_gets_copies(folder, monkeypatch):
    def fail(*_):
        raise OSError("not supported")

    monkeypatch.setattr(atomic.os, "link", fail)
    finish(folder, 0, best=True)
    assert number_in(folder.path / "best" / "model.safetensors") == 0


def damage_truncated_model(path):
    content = (path / "model.safetensors").read_bytes()
    (path / "model.safetensors").write_bytes(content[: len(content) // 2])


def damage_one_bit(path):
    content = bytearray((path / "model.safetensors").read_bytes())
    content[-5] ^= 1
    (path / "model.safetensors").write_bytes(content)


def damage_progress(path):
    state = (path / "state.json").read_text()
    assert '"best": null' in state
    (path / "state.json").write_text(state.replace('"best": null', '"best": 9'))


def damage_predictions(path):
    (path / "predictions.npz").write_bytes((path / "predictions.npz").read_bytes()[:-1])


DAMAGE = {
    "truncated": damage_truncated_model,
    "one bit": damage_one_bit,
    "progress": damage_progress,
    "predictions": damage_predictions,
    "no predictions": lambda path: (path / "predictions.npz").unlink(),
    "no model": lambda path: (path / "model.safetensors").unlink(),
    "no state": lambda path: (path / "state.json").unlink(),
    "empty": lambda path: [entry.unlink() for entry in path.iterdir()],
    **{
        f"state {text!r}": (lambda path, text=text: (path / "state.json").write_text(text))
        for text in ("", "{", "[]", "null", "7", '"x"', "{}", "\x00")
    },
}


@pytest.mark.parametrize("kind", DAMAGE)
def test_a_damaged_checkpoint_is_recognised_and_the_one_before_used(folder, kind, caplog):
    for number in range(3):
        finish(folder, number)
    DAMAGE[kind](folder.checkpoints()[-1])
    assert folder.latest().round_number == 1
    assert "round-0002 is damaged" in caplog.text
    finish(folder, 2)
    assert folder.latest().round_number == 2, "it is written over"


def test_without_a_whole_checkpoint_the_remedy_is_told(folder):
    with pytest.raises(RunFolderError, match="start the run anew"):
        folder.latest()


def test_a_half_line_of_metrics_is_dropped_and_later_lines_rewound(folder):
    for number in range(4):
        finish(folder, number)
    with (folder.path / "metrics.jsonl").open("a") as file:
        file.write('{"round": 4, "accur')
    assert [record["round"] for record in folder.records()] == [0, 1, 2, 3]
    assert [record["round"] for record in folder.rewind(2)] == [0, 1, 2]
    finish(folder, 3)
    assert [record["round"] for record in folder.records()] == [0, 1, 2, 3]


def test_a_folder_is_used_by_one_run_at_a_time(folder):
    second = RunFolder(folder.path)
    with folder.locked(), pytest.raises(RunFolderError, match="another run is using"), second.locked():
        pass
    with second.locked():
        pass


def test_a_round_without_evaluation_leaves_no_predictions_beside_its_model(folder):
    finish(folder, 0, best=True)
    finish(folder, 1, evaluated=False)
    assert (number_in(folder.path / "model.safetensors"), round_predicted(folder.path)) == (1, None)
    assert round_predicted(folder.path / "best") == 0
    finish(folder, 2)
    assert round_predicted(folder.path) == 2


def test_resuming_before_a_damaged_checkpoint_brings_its_own_predictions_back(folder):
    finish(folder, 0)
    finish(folder, 1)
    damage_one_bit(folder.checkpoints()[-1])
    folder.republish(folder.latest())
    assert number_in(folder.path / "model.safetensors") == round_predicted(folder.path) == 0


def test_a_checkpoint_of_an_earlier_version_is_still_read(folder):
    finish(folder, 0, evaluated=False)
    path = folder.checkpoints()[0] / "state.json"
    state = json.loads(path.read_text())
    del state["sha256"]
    state["model_sha256"] = state.pop("files_sha256")["model.safetensors"]
    state["progress"] = {"best": 0.31, "best_round": 0}
    path.write_text(json.dumps(state | {"sha256": digest(state)}))
    checkpoint = folder.latest()
    assert (checkpoint.round_number, checkpoint.progress) == (0, {"best": None})
    folder.republish(checkpoint)
    damage_one_bit(path.parent)
    with pytest.raises(RunFolderError, match="no whole checkpoint"):
        folder.latest()


def test_predictions_are_the_same_after_a_file_and_the_same_bytes_again(tmp_path):
    given = replace(predictions_of(7), images=np.array(["ISIC_1", "é", "x y"]), classes=("nv", "mélanome"))
    content = encode_predictions(given)
    (tmp_path / "predictions.npz").write_bytes(content)
    for path in (tmp_path, tmp_path / "predictions.npz"):
        found = read_predictions(path)
        assert (found.classes, found.round_number) == (given.classes, 7)
        for name in ("images", "lesions", "labels", "probabilities"):
            assert np.array_equal(getattr(found, name), getattr(given, name))
            assert getattr(found, name).dtype.kind == getattr(given, name).dtype.kind
        assert encode_predictions(found) == content


@pytest.mark.parametrize("content", [None, b"", b"garbage", encode_predictions(predictions_of(1))[:300]])
def test_predictions_that_cannot_be_read_name_the_file_and_the_way_to_make_them(tmp_path, content):
    if content is not None:
        (tmp_path / "predictions.npz").write_bytes(content)
    with pytest.raises(PredictionsError, match=r"predictions\.npz .*fedskew evaluate"):
        read_predictions(tmp_path)


def test_predictions_take_little_room():
    count, generator = 1700, np.random.default_rng(0)
    raw = generator.random((count, 7)).astype(np.float32)
    names = np.array([f"ISIC_{i:07d}" for i in generator.permutation(10_000)[:count]])
    given = Predictions(names, names, generator.integers(0, 7, count), tuple("abcdefg"), raw / raw.sum(1)[:, None])
    assert len(encode_predictions(given)) < 70_000


@pytest.fixture
def interrupted(generated, tmp_path, monkeypatch):
    """A run that was killed while it published its last round, after the checkpoint was whole."""
    config = tiny_config(run={"output_dir": str(tmp_path)})
    real = RunFolder._publish

    def dies(self, checkpoint, arch, target):
        if checkpoint.name == "round-0002":
            raise Killed
        real(self, checkpoint, arch, target)

    folder = RunFolder.create(tmp_path, "run")
    with monkeypatch.context() as patch:
        patch.setattr(RunFolder, "_publish", dies)
        with pytest.raises(Killed):
            FederatedRun(LocalGrid(make_client_app(), 3), config, folder).run()
    return folder.path, config


def test_a_run_that_resumes_after_its_last_round_publishes_it(interrupted, finished_run):
    path, config = interrupted
    folder, checkpoint = open_checkpoint(path)
    assert checkpoint.round_number == 2
    FederatedRun(LocalGrid(make_client_app(), 3), config, folder, checkpoint).run()
    expected = finished_run.path / "model.safetensors"
    assert (path / "model.safetensors").read_bytes() == expected.read_bytes()
    architectures = [json.loads((place / "architecture.json").read_text()) for place in (path, finished_run.path)]
    assert architectures[0] == architectures[1]
    assert json.loads((path / "summary.json").read_text())["rounds"] == 2


def test_a_run_resumed_in_the_middle_ends_with_the_same_model(finished_run, tmp_path):
    path = tmp_path / "run"
    shutil.copytree(finished_run.path, path)
    shutil.rmtree(path / "checkpoints" / "round-0002")
    folder, checkpoint = open_checkpoint(path)
    FederatedRun(LocalGrid(make_client_app(), 3), resume_config(path), folder, checkpoint).run()
    assert (path / "model.safetensors").read_bytes() == (finished_run.path / "model.safetensors").read_bytes()
    lines = [record["round"] for record in folder.records()]
    assert lines == [0, 1, 2], "no round is recorded twice"
    totals = [f.records()[-1]["bytes_up_total"] for f in (folder, finished_run)]
    assert totals[0] == totals[1], "the running sums go on"
    for name in ("predictions.npz", "best/model.safetensors", "best/predictions.npz"):
        assert (path / name).read_bytes() == (finished_run.path / name).read_bytes(), name
    summaries = [json.loads((f.path / "summary.json").read_text()) for f in (folder, finished_run)]
    assert summaries[0]["best"] == summaries[1]["best"]


def test_what_may_not_change_in_a_resumed_run_is_named(finished_run):
    path = finished_run.path
    assert resume_config(path, overrides="federation.rounds=9").federation.rounds == 9
    assert differences(tiny_config(), tiny_config()) == []
    with pytest.raises(RunFolderError, match="no run folder there"):
        resume_config(path / "best")


def test_the_checkpoint_of_another_round_is_whole_by_itself(folder):
    finish(folder, 5)
    assert read_checkpoint(folder.checkpoints()[0]).round_number == 5


@pytest.mark.parametrize("number", [-5, 4, "5", True, None])
def test_a_checkpoint_that_says_another_round_than_its_name_is_damaged(folder, caplog, number, monkeypatch):
    """`round: -5` in a tampered state, hashes put right, ended in a FileNotFoundError."""
    monkeypatch.setattr(logging.getLogger("flwr"), "propagate", True)
    finish(folder, 5)
    file = folder.checkpoints()[0] / "state.json"
    state = {key: value for key, value in json.loads(file.read_text()).items() if key != "sha256"} | {"round": number}
    file.write_text(json.dumps(state | {"sha256": digest(state)}))
    with pytest.raises(RunFolderError, match="holds no whole checkpoint to resume from"):
        open_checkpoint(folder.path)
    assert f"state.json is of round {number!r}, and this is the checkpoint round-0005" in caplog.text


def test_what_is_recorded_is_the_resolved_configuration(finished_run):
    config = resume_config(finished_run.path)
    assert replace(config, run=replace(config.run, output_dir="")) == tiny_config()


@pytest.mark.parametrize(
    "wrong",
    [
        {"files_sha256": []},
        {"files_sha256": "x"},
        {"files_sha256": {}},
        {"files_sha256": {"model.safetensors": 3}},
        {"files_sha256": {"../round-0000/model.safetensors": "0"}},
        {"progress": 7},
        {"progress": [1]},
        {"progress": None},
    ],
    ids=str,
)
def test_a_state_of_other_types_whose_hashes_were_put_right_is_damaged_too(folder, wrong, caplog):
    for number in range(2):
        finish(folder, number)
    file = folder.checkpoints()[-1] / "state.json"
    state = {key: value for key, value in json.loads(file.read_text()).items() if key != "sha256"} | wrong
    file.write_text(json.dumps(state | {"sha256": digest(state)}))
    assert folder.latest().round_number == 0
    assert "round-0001 is damaged" in caplog.text


@pytest.mark.parametrize("already", [False, True])
def test_a_link_leaves_no_temporary_file_even_where_both_are_one_file(tmp_path, already):
    """POSIX renames nothing where both names are the same file, and leaves the temporary one."""
    source, target = tmp_path / "source", tmp_path / "target"
    source.write_bytes(b"model")
    target.write_bytes(b"older")
    for _ in range(2 if already else 1):
        atomic.link(source, target)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["source", "target"]
    assert target.read_bytes() == b"model"
