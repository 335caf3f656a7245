"""Files of a run that somebody else made: those that lie are one line that names them, and nothing is executed."""

from __future__ import annotations

import io
import json
import os
import shutil
import zipfile

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from typer.testing import CliRunner

from fedskew.cli.main import app
from fedskew.files import DamagedFileError, file_sha256
from fedskew.model.modelfile import ModelFileError, encode_model, read_model
from fedskew.runs import predictions
from fedskew.runs.checkpoint import digest, read_checkpoint
from fedskew.runs.folder import RunFolder, RunFolderError
from fedskew.runs.predictions import PredictionsError, read_predictions
from fedskew.runs.reading import read_changes, read_split
from fedskew.tools.compare import RunResult
from fedskew.tools.fairness import _test_set

ESCAPE = "\x1b]0;owned\x07\u202e"
DEEP = "[" * 100_000


@pytest.fixture
def theirs(finished_run, tmp_path):
    """A run folder as a stranger hands it over."""
    return shutil.copytree(finished_run.path, tmp_path / "theirs")


READERS = {
    "metrics.jsonl": lambda path: RunFolder(path).records(),
    "starts.jsonl": read_changes,
    "split.json": read_split,
}


@pytest.mark.parametrize("name", READERS)
@pytest.mark.parametrize("content", [DEEP, "[]", "5", '"\\ud800"', "{", "\xff"], ids=lambda text: text[:3])
def test_a_record_that_is_none_is_named(theirs, name, content):
    """These were tracebacks of `fedskew compare`."""
    (theirs / name).write_bytes(f"{content}\n".encode("latin-1"))
    with pytest.raises(DamagedFileError, match=rf"{name}.* is damaged"):
        READERS[name](theirs)


@pytest.mark.parametrize(
    ("name", "change", "words"),
    [
        ("metrics.jsonl", {"round": -1}, "line 1 is damaged: its round is -1"),
        ("metrics.jsonl", {"round": True}, "its round is True"),
        ("metrics.jsonl", {"model_bytes": [None]}, r"its model_bytes is \[None\]"),
        ("metrics.jsonl", {"nodes": None}, "its nodes is None"),
        ("metrics.jsonl", {"loss": "low"}, "its loss is 'low'"),
        ("starts.jsonl", {"changes": None}, "no line of a start"),
        ("starts.jsonl", {"changes": [{"key": "a", "old": 1}]}, "no line of a start"),
        ("starts.jsonl", {"time": 3}, "no line of a start"),
        ("split.json", {"nodes": "three"}, "expected lists of image ids and a number of nodes"),
        ("split.json", {"ids": []}, "expected lists of image ids"),
        ("split.json", {"ids": {"parts": [["a", 1]]}}, "expected lists of image ids"),
    ],
)
def test_a_record_of_which_one_value_is_of_another_kind_is_named(theirs, name, change, words):
    first, _, rest = (theirs / name).read_text().partition("\n" if name.endswith("l") else "\0")
    (theirs / name).write_text(json.dumps(json.loads(first) | change) + "\n" + rest)
    with pytest.raises(DamagedFileError, match=words):
        READERS[name](theirs)


def test_records_as_runs_write_them_are_read(theirs):
    assert [record["round"] for record in RunFolder(theirs).records()] == [0, 1, 2]
    assert read_changes(theirs) == []
    assert read_split(theirs)["ids"]["test"]
    with (theirs / "metrics.jsonl").open("a") as file:
        file.write('{"round": 3, "lo')  # a process died in mid-write
    assert len(RunFolder(theirs).records()) == 3


def test_a_damaged_split_is_one_line_of_the_commands_that_read_it(theirs, finished_run):
    (theirs / "split.json").write_text(DEEP)
    result = CliRunner().invoke(app, ["compare", str(theirs), str(finished_run.path)])
    assert (result.exit_code, result.output.count("\n")) == (2, 1)
    assert result.output.startswith(f"fedskew: {theirs}/split.json is damaged: no JSON (maximum recursion")
    (theirs / "predictions.npz").unlink()
    with pytest.raises(DamagedFileError):
        _test_set(RunResult("theirs", {}, path=theirs, model=theirs))


def test_a_run_without_a_round_is_no_traceback_of_a_table(theirs, finished_run, tmp_path):
    (theirs / "metrics.jsonl").write_text("")
    (theirs.rename(tmp_path / "a-s0"))
    result = CliRunner().invoke(app, ["table", str(tmp_path)])
    assert result.exit_code == 2
    assert "says that the run is finished, and metrics.jsonl beside it holds no round" in result.output
    line = json.dumps(finished_run.records()[0] | {"accuracy": None}) + "\n"
    (tmp_path / "a-s0" / "metrics.jsonl").write_text(line)
    result = CliRunner().invoke(app, ["compare", str(tmp_path / "a-s0"), str(finished_run.path)])
    assert (result.exit_code, result.output) == (2, f"fedskew: no round of {tmp_path / 'a-s0'} was evaluated\n")


class Evil:
    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return os.mkdir, (self.path,)


def archive(source, **members):
    """A predictions file with the bytes of some arrays replaced."""
    target = io.BytesIO()
    with zipfile.ZipFile(source) as old, zipfile.ZipFile(target, "w", zipfile.ZIP_DEFLATED) as new:
        for name in old.namelist():
            new.writestr(name, members.get(name.removesuffix(".npy"), old.read(name)))
    return target.getvalue()


def npy(header, content=b""):
    return b"\x93NUMPY\x01\x00" + len(header).to_bytes(2, "little") + header.encode() + content


HEADER = "{'descr': %s, 'fortran_order': False, 'shape': %s, }\n"


@pytest.mark.parametrize(
    "labels",
    [
        npy(HEADER % ("'<i2'", "(1000000000000,)")),
        npy(HEADER % ("'<i2'", "(-1,)")),
        npy(HEADER % ("__import__('os').mkdir('pwned')", "(1,)")),
        npy("(" * 60_000),
        npy(HEADER % ("'<i2'", "()"), b"\0\0"),
        b"",
    ],
    ids=["2 TB", "negative", "code", "deep", "no list", "empty"],
)
def test_predictions_whose_header_lies_are_one_clear_error(theirs, tmp_path, monkeypatch, labels):
    monkeypatch.chdir(tmp_path)
    file = theirs / "predictions.npz"
    file.write_bytes(archive(file, labels=labels))
    with pytest.raises(PredictionsError, match=r"cannot be read as predictions .*make it anew"):
        read_predictions(theirs)
    assert not (tmp_path / "pwned").exists()


def test_predictions_that_are_pickled_or_damaged_or_bombs_are_refused(theirs, tmp_path, monkeypatch):
    file, pwned = theirs / "predictions.npz", tmp_path / "pwned"
    whole = file.read_bytes()
    buffer = io.BytesIO()
    np.save(buffer, np.array([Evil(str(pwned))] * 3, dtype=object), allow_pickle=True)
    file.write_bytes(archive(file, images=buffer.getvalue()))
    with pytest.raises(PredictionsError, match="cannot be read"):
        read_predictions(theirs)
    assert not pwned.exists()
    for place in range(60, len(whole), 97):  # also in the midst of a compressed stream: zlib's own kind of error
        file.write_bytes(whole[:place] + bytes([whole[place] ^ 255]) + whole[place + 1 :])
        try:
            read_predictions(theirs)
        except PredictionsError:
            continue
    file.write_bytes(whole)
    monkeypatch.setattr(predictions, "MAX_BYTES", 1000)
    with pytest.raises(PredictionsError, match="bytes unpacked, at most 1,000 are read"):
        read_predictions(theirs)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda tensor: tensor.to(torch.int32), "its weights are torch.int32, expected float32"),
        (lambda tensor: tensor.double(), "its weights are torch.float64, expected float32"),
        (lambda tensor: tensor / 0, "classifier.bias is not finite"),
    ],
)
def test_a_model_file_whose_weights_are_no_finite_numbers_is_refused(theirs, change, words):
    arch, state = read_model(theirs / "model.safetensors")
    wrong = state | {"classifier.bias": change(state["classifier.bias"])}
    (theirs / "model.safetensors").write_bytes(encode_model(arch, wrong))
    with pytest.raises(ModelFileError, match=words):
        read_model(theirs / "model.safetensors")


@pytest.mark.parametrize("command", [["plan"], ["evaluate"], ["evaluate", "--json"]])
def test_names_in_a_strangers_model_file_do_not_steer_the_terminal(theirs, command):
    """A class may be named anything; what is wrong with the data names all of them."""
    file = theirs / "model.safetensors"
    content = file.read_bytes()
    length = int.from_bytes(content[:8], "little")
    header = json.loads(content[8 : 8 + length])
    arch = json.loads(header["__metadata__"]["fedskew-architecture"])
    arch["classes"] = [f"{name}{ESCAPE}" for name in arch["classes"]]
    header["__metadata__"]["fedskew-architecture"] = json.dumps(arch)
    text = json.dumps(header).encode()
    file.write_bytes(len(text).to_bytes(8, "little") + text + content[8 + length :])
    result = CliRunner().invoke(app, [command[0], str(theirs), *command[1:]])
    assert result.exit_code == 2
    assert "\\x1b]0;owned\\x07\\u202e" in result.output
    assert not set("\x1b\x07\u202e") & set(result.output)


@pytest.mark.parametrize(
    "change",
    [
        {"seconds": None}, {"bytes_up_total": "x"}, {"best": []}, {"open_losses": []}, {"open_losses": {"best": None}},
        {"best": {"round": 1, "source": "held_back", "metric": "f1_macro", "value": "x"}}, {"class_counts": []},
        {"sites": None}, {"missed": 1.5},
    ],
    ids=str,
)  # fmt: skip
def test_a_checkpoint_from_which_no_run_could_go_on_is_passed_over(theirs, change):
    """With a hash that fits: it keeps nobody from writing another."""
    newest = RunFolder(theirs).checkpoints()[-1]
    state = json.loads((newest / "state.json").read_text())
    del state["sha256"]
    state["progress"] |= change
    (newest / "state.json").write_text(json.dumps(state | {"sha256": digest(state)}))
    with pytest.raises(ValueError, match=r"state\.json"):
        read_checkpoint(newest)
    assert RunFolder(theirs).latest().round_number == 1


def test_a_checkpoint_nested_beyond_reading_or_with_garbage_beside_it_is_passed_over(theirs):
    first, second = RunFolder(theirs).checkpoints()
    (second / "state.json").write_text(DEEP)
    assert RunFolder(theirs).latest().round_number == 1
    garbage = first / "companions.safetensors"
    garbage.write_bytes(b"garbage")
    state = json.loads((first / "state.json").read_text())
    del state["sha256"]
    state["files_sha256"][garbage.name] = file_sha256(garbage)
    (first / "state.json").write_text(json.dumps(state | {"sha256": digest(state)}))
    with pytest.raises(ModelFileError, match=r"companions\.safetensors cannot be read"):
        read_checkpoint(first)
    with pytest.raises(RunFolderError, match="no whole checkpoint"):
        RunFolder(theirs).latest()


def test_what_a_run_wrote_is_read_back(theirs):
    newest = RunFolder(theirs).checkpoints()[-1]
    assert read_checkpoint(newest).weights.keys() == load_file(newest / "model.safetensors").keys()
