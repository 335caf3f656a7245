"""What is committed of a sweep: small, without paths of the machine, and enough for the same tables."""

import json
import re
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import yaml
from study_records import line, predictions, write_run
from typer.testing import CliRunner

from fedskew.cli.main import app
from fedskew.config import load_config
from fedskew.metrics import PairingError, paired_differences
from fedskew.runs.predictions import read_predictions
from fedskew.sweeps.committed import export_records, replace_paths, rounded, shortened
from fedskew.sweeps.results import ResultsError, read_cells
from fedskew.sweeps.table import cell_table
from fedskew.sweeps.table_text import as_csv

ROOT = Path(__file__).resolve().parents[1]
SETTINGS = {
    "data": {"dir": "/data/of me/HAM", "cache-dir": "/data", "source": "folder"},
    "run": {"output-dir": "/home/me/out", "name": "dense-s0", "seed": 0},
    "model": {"pretrained": "~/weights.safetensors"},
}


@pytest.fixture
def study(tmp_path):
    """A finished and an unfinished run, with paths wherever a run may have them."""
    folder = tmp_path / "study"
    values = {
        "failed": {"node-1": "no file /data/of me/HAM/images/x.jpg (and /opt/other/y: gone)"},
        "train_loss": 0.123456789,
        "notes": {"/home/me/out": ["skipped a/b"]},
    }
    done = write_run(folder, "dense-s0", found=predictions([1, 1, 0, 1, 1, 0, 1, 1]), **values)
    (done / "config.yaml").write_text(yaml.safe_dump({"federation": {"rounds": 2}, **SETTINGS}))
    (done / "model.safetensors").write_bytes(b"weights")
    (done / "checkpoints").mkdir()
    write_run(folder, "dense-s1", finished=False)
    history = {"cell": "dense", "seed": 0, "attempts": 3, "commits": ["abc"], "state": "done", "at": "now", "why": "x"}
    content = {"study": "study.yaml", "cells": ["later", "dense"], "runs": {"dense-s0": history}}
    (folder / "sweep.json").write_text(json.dumps(content))
    return folder


def test_records_hold_what_is_needed_and_nothing_else(study, tmp_path):
    out = tmp_path / "records"
    assert export_records(study, out) == [out / "dense-s0"]
    files = sorted(str(path.relative_to(out)) for path in out.rglob("*") if path.is_file())
    names = ("config.yaml", "metrics.jsonl", "predictions.npz", "summary.json")
    assert files == [*(f"dense-s0/{name}" for name in names), "sweep.json"]
    assert json.loads((out / "sweep.json").read_text()) == {
        "study": "study.yaml",
        "cells": ["dense"],
        "runs": {"dense-s0": {"cell": "dense", "seed": 0, "commits": ["abc"], "state": "done"}},
    }


def test_paths_become_the_keys_that_they_stood_at(study, tmp_path):
    out = tmp_path / "records"
    export_records(study, out)
    settings = yaml.safe_load((out / "dense-s0" / "config.yaml").read_text())
    assert settings["data"] == {"dir": "<data.dir>", "cache-dir": "<data.cache-dir>", "source": "folder"}
    assert settings["run"] == {"output-dir": "<run.output-dir>", "name": "dense-s0", "seed": 0}
    assert settings["model"] == {"pretrained": "<model.pretrained>"}
    assert load_config(file=out / "dense-s0" / "config.yaml").data.dir == "<data.dir>"
    last = json.loads((out / "dense-s0" / "metrics.jsonl").read_text().splitlines()[-1])
    assert last["failed"] == {"node-1": "no file <data.dir> (and <path>: gone)"}
    assert last["notes"] == {"<run.output-dir>": ["notes on the data: 1"]}, "they name images"
    for path in out.rglob("*.*"):
        if path.is_file():
            assert not re.search(rb"/(home|data|opt|tmp)/", path.read_bytes()), path


def test_tables_of_the_records_are_those_of_the_run_folders(study, tmp_path):
    write_run(study, "pruned-s0", found=predictions([0, 1, 1, 1, 1, 1, 1, 0]), f1_macro=0.123456789)
    export_records(study, tmp_path / "records")
    tables = []
    for place in (study, tmp_path / "records"):
        cells = [cell for cell in read_cells([place]) if cell.runs]
        tables.append(as_csv(cell_table(cells, reference="dense")))
    assert tables[0] == tables[1]
    assert ",False" in tables[0], "intervals are among the figures"


def test_a_second_export_replaces_the_first_and_keeps_other_runs(study, tmp_path):
    out = tmp_path / "records"
    export_records(study, out)
    other = tmp_path / "other"
    write_run(other, "dense-s0", accuracy=0.9)
    write_run(other, "deep-s4", accuracy=0.8)
    export_records(other, out)
    assert not (out / "dense-s0" / "predictions.npz").exists(), "those of the first export are of another run"
    found = {cell.name: cell for cell in read_cells([out])}
    assert found["dense"].values("accuracy") == [0.9]
    assert set(json.loads((out / "sweep.json").read_text())["runs"]) == {"dense-s0", "deep-s4"}


def blocks(*changes):
    return [
        {"stage": 0, "heads_before": 3, "heads_after": 3 - change, "hidden_before": 8, "hidden_after": 8,
         "mlp_scores": [0.1] * 500, "agreement": 0.25}
        for change in changes
    ]  # fmt: skip


def test_what_makes_metrics_long_is_left_out():
    counts = {"node-0": {"nv": 3}}
    records = [
        line(0, blocks=blocks(0, 0), class_counts={}),
        line(1, blocks=blocks(0, 1), class_counts=counts, train_loss=1 / 3),
        line(2, blocks=blocks(0, 0), class_counts=counts),
    ]
    first, second, third = shortened(records)
    assert "blocks" not in first
    assert "blocks" not in third
    assert second["blocks"][1] == {
        "stage": 0, "heads_before": 3, "heads_after": 2, "hidden_before": 8, "hidden_after": 8, "agreement": 0.25,
    }  # fmt: skip
    assert len(second["blocks"]) == 2
    assert second["class_counts"] == counts
    assert "class_counts" not in third
    assert second["train_loss"] == 0.333333
    assert len(records[1]["blocks"][0]["mlp_scores"]) == 500, "the run's own records stay"
    assert shortened([{"round": 0}]) == [{"round": 0}]


def test_rounding_leaves_whole_numbers_alone():
    assert rounded({"a": [0.1234567, 1234567890, None, True], "b": 1234567.8}) == {
        "a": [0.123457, 1234567890, None, True],
        "b": 1234570.0,
    }


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("and/or 1/2 w/o", "and/or 1/2 w/o"),
        ("https://example.org/x", "https://example.org/x"),
        ("see /etc/passwd, /a", "see <path>, <path>"),
        ("'/a/b'", "'<path>'"),
        ("~/x and ~me", "<path> and ~me"),
        (r"C:\data\x", "<path>"),
        ("recall / precision", "recall / precision"),
    ],
)
def test_absolute_paths_in_texts(text, expected):
    assert replace_paths(text, {}) == expected


def hospital(decisions):
    """Predictions on images that are named as a hospital may name them, with what is known of their patients."""
    found = predictions(decisions)
    count = len(found.images)
    return replace(
        found,
        images=np.array([f"/home/me/Mueller-{i}.jpg" for i in range(count)]),
        lesions=np.array([f"Mueller, Anna *1961 {i // 2}" for i in reversed(range(count))]),
        groups={"site": np.array(["clinic"] * count), "sex": np.array(["female"] * count),
                "age": np.array(["60-69"] * count)},
    )  # fmt: skip


def test_no_image_and_no_patient_is_named_and_runs_are_still_paired(tmp_path):
    write_run(tmp_path / "study", "dense-s0", found=hospital([1, 1, 0, 1, 1, 0, 1, 1]))
    write_run(tmp_path / "study", "pruned-s0", found=hospital([0, 1, 1, 1, 1, 1, 1, 0]))
    other = hospital([1] * 8)
    write_run(tmp_path / "other", "dense-s0", found=replace(other, images=np.roll(other.images, 1)))
    before = hospital([1] * 8)
    export_records(tmp_path / "study", tmp_path / "out")
    export_records(tmp_path / "other", tmp_path / "others")
    dense, pruned, apart = (read_predictions(tmp_path / name) for name in
                            ("out/dense-s0", "out/pruned-s0", "others/dense-s0"))  # fmt: skip
    assert not [word for word in (*dense.images, *dense.lesions) if "Mueller" in word or "/" in word]
    assert dense.groups.keys() == {"site"}
    for path in (tmp_path / "out").rglob("*.npz"):
        with np.load(path) as file:
            assert not [name for name in file.files if b"Mueller" in file[name].tobytes().replace(b"\0", b"")]
    for first, second in ((dense.lesions, before.lesions), (dense.images, before.images)):
        same = [[a == b for b in column] for column in (first, second) for a in column]
        assert same[:8] == same[8:], "the same lesions belong together"
        assert (np.argsort(first, kind="stable") == np.argsort(second, kind="stable")).all(), "drawn in the same order"
    assert paired_differences([dense], [pruned]) == paired_differences(
        [hospital([1, 1, 0, 1, 1, 0, 1, 1])], [hospital([0, 1, 1, 1, 1, 1, 1, 0])]
    )
    with pytest.raises(PairingError, match="differ in their images"):
        paired_differences([dense], [apart])


def test_a_group_that_is_named_by_a_path_is_refused(tmp_path):
    found = hospital([1] * 8)
    write_run(tmp_path / "study", "a-s0", found=replace(found, groups={"site": np.array(["/home/me/clinic"] * 8)}))
    with pytest.raises(ResultsError, match="names a path as a group: /home/me/clinic"):
        export_records(tmp_path / "study", tmp_path / "out")


def test_the_records_of_this_repository_name_no_image():
    found = [path for path in (ROOT / "docs" / "results").rglob("predictions.npz")
             if any("ISIC" in name or "HAM" in name for name in
                    (read_predictions(path).images[0], read_predictions(path).lesions[0]))]  # fmt: skip
    assert found == []


def test_the_command(study, tmp_path):
    result = CliRunner().invoke(app, ["records", str(study), str(tmp_path / "out")])
    assert result.exit_code == 0, result.output
    assert re.search(r"out/dense-s0  \d+ kB", result.output)
    write_run(tmp_path / "empty", "a-s0", finished=False)
    result = CliRunner().invoke(app, ["records", str(tmp_path / "empty"), str(tmp_path / "out")])
    assert result.exit_code == 2
    assert "holds no finished run yet" in result.output
