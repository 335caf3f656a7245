"""Every benchmark still runs on today's code and finds its figures, at the smallest sizes that its options take."""

import importlib
import json
import math
import os
import runpy
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from builders import MICRO, architecture, inputs, lively_model
from PIL import Image

from fedskew.data.batches import Batch
from fedskew.model.fusion import build
from fedskew.model.groups import ATTENTION
from fedskew.pruning.decide import Plan
from fedskew.pruning.slicing import slice_model
from fedskew.pruning.units import bundles

ROOT = Path(__file__).resolve().parents[1]
BENCHMARKS = ROOT / "benchmarks"


@pytest.fixture
def record(tmp_path, monkeypatch):
    """Runs a benchmark as its command line does and gives what it wrote."""
    monkeypatch.syspath_prepend(BENCHMARKS)
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    monkeypatch.setenv("FEDSKEW_HOME", os.environ["FEDSKEW_HOME"])  # some take another one

    def run(name, *words):
        script = BENCHMARKS / f"{name}.py"
        monkeypatch.setattr(sys, "argv", [str(script), *words, "--out", str(tmp_path)])
        runpy.run_path(str(script), run_name="__main__")
        (written,) = tmp_path.glob(f"{name}*.json")  # one script may write several records, by what it is asked
        return json.loads(written.read_text())

    return run


def rows_of(found, *figures):
    """The rows of a record, in which each of these is a number above 0."""
    assert {"date", "processor", "cores", "threads", "load", "python", "torch"} == set(found["machine"])
    for row in found["rows"]:
        for name in figures:
            assert math.isfinite(row[name]), (name, row)
            assert row[name] > 0, (name, row)
    return found["rows"]


def test_each_benchmark_has_a_test_here():
    scripts = {path.stem for path in BENCHMARKS.glob("*.py")} - {"timing", "central"}
    assert scripts == {name.removeprefix("test_") for name in globals() if name.removeprefix("test_") in scripts}


def test_a_case_that_is_none_is_refused(record, capsys):
    with pytest.raises(SystemExit):
        record("latency", "--case", f"{MICRO},4")
    assert f"argument --case: expected MODEL,BATCH,REPEATS, found {MICRO},4" in capsys.readouterr().err


def test_client_start(record, tmp_path):
    (row,) = rows_of(record("client_start", "--case", MICRO, "--repeats", "1"), "imports s", "data s", "model s",
                     "train s", "rest s")  # fmt: skip
    assert row["start-up s"] == pytest.approx(sum(row[f"{part} s"] for part in ("imports", "data", "model", "rest")))
    imports = {
        row["package"]: row["share"] for row in json.loads((tmp_path / "client_imports.json").read_text())["rows"]
    }
    assert imports["torch"] > 0.1
    assert sum(imports.values()) <= 1.01


def test_data_throughput(record):
    found = record("data_throughput", "--case", f"{MICRO},8,16", "--repeats", "1")
    (row,) = rows_of(found, "images/s from data", "images/s random")
    assert row["ratio"] == pytest.approx(row["images/s from data"] / row["images/s random"])


def test_training_step(record):
    found = record("training_step", "--case", f"{MICRO},8,16", "--repeats", "1")
    (row,) = rows_of(found, "images/s local", "images/s bare")
    assert row["ratio"] == pytest.approx(row["images/s local"] / row["images/s bare"])


def test_round_overhead(record):
    (row,) = rows_of(record("round_overhead", "--case", f"{MICRO},160", "--repeats", "1"), "round s", "plain s")
    assert row["ratio"] == pytest.approx(row["round s"] / row["plain s"])
    assert row["images"] < 160, "the test set and the open images are no node's"


def test_scoring_overhead(record):
    rows = rows_of(record("scoring_overhead", "--case", f"{MICRO},4", "--repeats", "1"), "forward s", "step s")
    assert [(row["reading"], row["order"]) for row in rows] == [
        ("mean", "step"), ("pool", "step"), ("per-window", "step"), ("pool", "block"),
    ]  # fmt: skip
    assert all(row["ratio"] == pytest.approx(row["step s"] / row["forward s"]) for row in rows)


def test_latency(record):
    rows = rows_of(record("latency", "--case", f"{MICRO},4,1"), "dense ms", "latency", "fixed")
    assert [row["align"] for row in rows] == [1, 8]
    for row in rows:
        assert 0.5 <= row["MACs"] < 1, "pruned, and not below half"
        assert row["latency/MACs"] == pytest.approx(row["latency"] / row["MACs"])


def test_server_memory(record):
    rows = rows_of(record("server_memory", "--case", f"{MICRO},2,3"), "start MB", "ratio")
    assert [row["strategy"] for row in rows] == ["fedskew", "flower FedAvg"]
    assert all(row["3 clients MB"] >= row["start MB"] for row in rows)


def test_hostile_sites(record, finished_run):
    found = record("hostile_sites", str(finished_run.path), "--sites", "3,1")
    (table,) = found["sites"].values()
    assert 0 < found["before"] < 1
    cells = [cell for row in table.values() for cell in row.values()]
    assert len(cells) == 32
    assert all(cell == "P" or 0 <= float(cell.split()[0]) <= 1 for cell in cells)
    assert table["none of them"]["1e30"].endswith(" R")
    assert table["max-weight-ratio=3"]["zeros, 2^28 examples"].endswith(" W")
    assert table["norm-bound=3"]["1e30"].endswith(" S")
    assert set(table["krum, malicious-nodes=1"].values()) == {"P"}, "three sites are too few for it"


def test_unlike_notes(record, generated, monkeypatch):
    monkeypatch.setattr("fedskew.data.reference.LEAST_IMAGES", 10)
    found = record("unlike_notes", str(generated), "--seeds", "0", "--image-size", "32", "--images", "10")
    (row,) = rows_of(found)
    assert row["reference"] == 18
    for name in ("pages of text", "noise", "grey", "inverted"):
        assert row[name] == 1, name
    assert 0 <= row["test"] < 0.5


def test_sign_stability(record, generated):
    tiny = f"model.name={MICRO} data.open=0.4 model.drop-path=0"
    found = record("sign_stability", str(generated), "--seeds", "0", "--epochs", "1", "--images", "8", "16",
                   "--views", "1", "2", "--set", tiny)  # fmt: skip
    rows = rows_of(found)
    assert [(row["images"], row["views"]) for row in rows] == [(8, 1), (8, 2), (16, 1), (16, 2)] * 4
    for row in rows:
        for name, value in row.items():
            if name.startswith(("heads", "MLP")) and not name.endswith("kappa"):
                assert 0 <= value <= 1, (name, row)


def test_sign_stability_says_when_there_are_too_few_images(record, generated):
    tiny = f"model.name={MICRO} data.open=0.4 model.drop-path=0"
    with pytest.raises(SystemExit, match=r"two sets of 256 open images are needed, and there are \d+: lower --images"):
        record("sign_stability", str(generated), "--seeds", "0", "--epochs", "1", "--set", tiny)


CENTRAL = ("--dense-epochs", "2", "--set", f"model.name={MICRO} data.open=0.2 train.batch-size=16 prune.batch-size=16")


def test_criteria_quick(record, generated, tmp_path, capsys):
    masks = tmp_path / "masks"
    masks.mkdir()
    for path in generated.rglob("*.jpg"):
        inside = np.zeros((60, 80), dtype=np.uint8)
        inside[20:40, 30:50] = 255
        Image.fromarray(inside).save(masks / f"{path.stem}_segmentation.png")
    words = (str(generated), "--work", str(tmp_path / "work"), "--masks", str(masks), "--sizes", "0.6", "0.9",
             "--criteria", "random", "taylor", *CENTRAL)  # fmt: skip
    with pytest.raises(SystemExit, match="3"):
        record("criteria_quick", *words, "--minutes", "0")
    found = record("criteria_quick", *words)
    told = capsys.readouterr().out
    assert told.count("dense, seed 0, epoch") == 6
    rows = rows_of(found, "parameters", "macs", "balanced_accuracy", "auroc_macro")
    assert [(row["when"], row["size"], row["criterion"], row["models"]) for row in rows] == [
        (when, size, criterion, models) for when in ("one-shot", "fine-tuned")
        for size, criterion, models in ((1.0, "dense", 1), *((size, *each) for size in (0.6, 0.9) for each in (
            ("random", 3), ("taylor", 1), ("lesion-attention", 1))))
    ]  # fmt: skip
    for row in rows:
        assert 0 <= row["parameters"] - row["size"] < 0.02
        assert ("auroc_macro over random" in row) == (row["criterion"] in ("taylor", "lesion-attention"))
    assert record("criteria_quick", *words)["rows"] == found["rows"]
    assert "seed 0" not in capsys.readouterr().out, "what is done is not done again"


def test_peer(record, generated, tmp_path, capsys):
    pytest.importorskip("torch_pruning")
    found = record("peer", str(generated), "--work", str(tmp_path / "work"), "--sizes", "0.7", "0.02", "--repeats", "1",
                   "--methods", "taylor", "tp-taylor-global-all", "--kinds", "macs",
                   *CENTRAL)  # fmt: skip
    (failed,) = (row for row in found["rows"] if (row["method"], row["size"]) == ("taylor", 0.02))
    assert "prune.min-macs=0.02 is not reached" in failed["failed"]
    done = [row for row in found["rows"] if row["size"] == 0.7]
    assert [row["method"] for row in done] == ["taylor", "tp-taylor-global-all"]
    for row in done:
        assert 0.7 <= row["macs"] < 0.75, row
        assert row["latency 1"] > 0
        assert row["latency 16"] > 0
    assert "lines of user code" in capsys.readouterr().out


@pytest.mark.parametrize("importance", ["magnitude", "taylor"])
def test_the_peers_slices_are_ours(record, importance):
    """Two libraries take the same units out of the same Swin: what is left says the same."""
    pytest.importorskip("torch_pruning")
    peer = importlib.import_module("peer")
    arch = architecture(stages=3, width=16)
    model, (images, metadata) = lively_model(arch), inputs(arch, 5)
    batch = Batch(images, metadata, torch.arange(5))
    theirs = peer.theirs(lively_model(arch), batch, 0.5, importance, "uniform", "inner").eval()
    remove = {}
    for key, units in bundles(arch, "1").items():
        name = units.group.cuts[0].name
        rows = model.encoder.get_parameter(name).unflatten(0, (units.group.cuts[0].parts, units.count, -1))[0]
        kept = theirs.encoder.get_parameter(name).flatten(1)[: rows.shape[1] * units.count]
        remove[key] = tuple(i for i in range(units.count) if not (kept == rows[i, 0].flatten()).all(1).any())
        assert len(remove[key]) == units.count // 2 or key.kind == ATTENTION
    state, smaller = slice_model(model.state_dict(), arch, Plan(remove, {}, {}))
    with torch.no_grad():
        torch.testing.assert_close(build(smaller, state).eval()(images, metadata), theirs(images, metadata))
    assert sum(map(len, remove.values())) > 100


def test_edge(record):
    found = record("edge", "small", "--model", MICRO, "--rounds", "1")
    rows = rows_of(found, "ratio", "p50_ms", "size", "memory_bytes")
    shapes = ("dense", "paper's budget", "12 %", "Torch-Pruning")
    forms = ("onnx fp32", "torch fp32", "onnx fp16", "onnx int8")
    assert {(row["shape"], row["form"]) for row in rows} == {(shape, form) for shape in shapes for form in forms}
    assert rows[0]["form"] == "onnx fp32"
    assert rows[0]["ratio"] == rows[0]["size"] == 1
    share = {row["shape"]: row["macs_share"] for row in rows}
    assert share["dense"] == 1
    assert abs(share["Torch-Pruning"] - share["paper's budget"]) < 0.15


def test_edge_loss(record, finished_run):
    rows = rows_of(record("edge_loss", str(finished_run.path)), "bytes", "open images", "test images")
    assert [row["way"] for row in rows][:2] == ["fp32", "fp16"]
    assert len(rows) == 8
    assert rows[0]["open torch"] <= 1e-4
    assert rows[0]["open same"] == rows[0]["test same"] == 1
    assert rows[1]["bytes"] < rows[0]["bytes"] > max(row["bytes"] for row in rows[2:])


def test_limits_overhead(record):
    (row,) = rows_of(record("limits_overhead", "--case", f"{MICRO},160,1", "--repeats", "1"), "with s", "without s")
    assert row["ratio"] == pytest.approx(row["with s"] / row["without s"])


def test_poisoned_runs(record):
    words = ("--images", "160", "--rounds", "1", "--sites", "3", "--warm-start", "1", "--preset", "hospitals, mean")
    found = record("poisoned_runs", *words, "--attack", "mel and nv swapped", "--attack", "never melanoma, unnoticed")
    swapped, steered = rows_of(found, "balanced accuracy", "loss", "rounds")
    assert (swapped["attack"], steered["rolled back"]) == ("mel and nv swapped", 0)
