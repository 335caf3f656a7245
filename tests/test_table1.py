"""`fedskew reproduce table1`: four columns from run folders, beside those of the paper, by a sweep that goes on."""

import csv
import io
import json

import pytest
from typer.testing import CliRunner

from fedskew.cli.main import app
from fedskew.sweeps.results import Cell, ResultsError, RunResult
from fedskew.sweeps.study import StudyError, read_study
from fedskew.sweeps.table1 import COLUMNS, ROWS, entry, read_table1, study_file, table1, table1_csv


def record(**values):
    base = {
        "accuracy": 0.8, "f1_macro": 0.6, "macs": 2e9, "dense_macs": 4e9, "parameters": 9e6, "dense_parameters": 27e6,
        "memory_bytes": 10 * 2**20, "dense_memory_bytes": 40 * 2**20, "model_bytes": 11_500_000,
        "bytes_down_total": 70e6, "bytes_up_total": 50e6, "participation": {f"partition-{i}": "in" for i in range(6)},
    }  # fmt: skip
    return base | values


def cell(name, *records, unfinished=0):
    return Cell(
        name, {i: RunResult(None, one) for i, one in enumerate(records)}, dict.fromkeys(range(8, 8 + unfinished))
    )


def row(title):
    return next(one for one in ROWS if one.title.startswith(title))


def test_the_rows_are_the_paper_s_and_beside_its_figures():
    cells = {name: cell(name, record()) for name in COLUMNS}
    lines = {line[0]: line[1:] for line in table1(cells).rows if line[0] != "  paper"}
    assert list(lines)[1:] == ["Accuracy", "Macro F1", "GFLOPs", "Parameters (M)", "Memory footprint (MiB)",
                               "Model file (MB)", "Traffic of a client (MB)"]  # fmt: skip
    papers = [line[1:] for line in table1(cells).rows if line[0] == "  paper"]
    assert papers[0] == ("0.851", "0.844", "0.838", "0.838")
    assert papers[3] == ("27.70", "10.44 (38 %)", "27.70", "9.99 (36 %)")
    assert len(papers) == 6


def test_figures_are_means_and_deviations_over_seeds_and_shares_of_the_dense_model():
    found = cell("x", record(accuracy=0.70), record(accuracy=0.80, parameters=13.5e6), unfinished=1)
    assert entry(row("Accuracy"), found) == "0.750 ± 0.071"
    assert entry(row("Parameters"), found) == "11.25 ± 3.18 (41.7 %)"
    assert entry(row("GFLOPs"), found) == "2.000 (50.0 %)"
    assert entry(row("Memory"), found) == "10.00 (25.0 %)"
    assert entry(row("Model file"), found) == "11.50"
    assert entry(row("Traffic"), found) == "20.0", "120 MB of six clients"
    assert entry(row("Accuracy"), cell("x", unfinished=2)) == "–"
    assert entry(row("Parameters"), cell("x", record(parameters=27e6))) == "27.00", "dense: no share"


def test_programs_get_values_as_they_are():
    cells = {name: cell(name, record(), record(accuracy=0.9)) for name in COLUMNS}
    rows = list(csv.DictReader(io.StringIO(table1_csv(cells))))
    assert len(rows) == 7 * 4
    first = rows[1]
    assert (first["row"], first["column"], first["seeds"]) == ("Accuracy", "single-pruned", "0 1")
    assert (first["mean"], first["sd"], first["paper"]) == ("0.85", "0.0707107", "0.844")


@pytest.mark.parametrize("scale", ["cpu", "gpu", "tiny"])
def test_every_scale_is_a_study_of_the_four_columns(scale, tmp_path):
    text = study_file(scale).read_text()
    path = tmp_path / "study.yaml"
    path.write_text(text + "\ndata-dir: .\n")
    study = read_study(path, tmp_path / "out")
    assert study.cells == ("fl-pruned", "fl", "single-pruned", "single"), "the most important first"
    by_cell = {run.cell: run for run in study.runs}
    assert by_cell["single"].nodes == by_cell["single-pruned"].nodes == 1
    for name, run in by_cell.items():
        assert (run.config.data.partition == "pooled") == name.startswith("single")
        assert (run.config.prune.criterion == "none") == (not name.endswith("pruned"))
    assert by_cell["single-pruned"].config.prune.freeze
    assert len({run.config.federation.rounds for run in study.runs}) == 1, "all train as long"


def test_what_there_is_not_is_named(tmp_path):
    with pytest.raises(StudyError, match="no scale 'huge' of table1; there are cpu, gpu, tiny"):
        study_file("huge")
    (tmp_path / "dense-s0").mkdir()
    (tmp_path / "dense-s0/metrics.jsonl").write_text(json.dumps({"round": 0}) + "\n")
    (tmp_path / "dense-s0/config.yaml").write_text("federation: {rounds: 1}\n")
    with pytest.raises(ResultsError, match="holds no cell single, single-pruned, fl, fl-pruned"):
        read_table1(tmp_path)
    result = CliRunner().invoke(app, ["reproduce", "table2", "--scale", "cpu", "--out", str(tmp_path / "out")])
    assert result.exit_code == 2
    assert "there is table1" in result.output


def test_the_tiny_scale_goes_through_all_four_columns_and_does_nothing_twice(tmp_path):
    words = ["reproduce", "table1", "--scale", "tiny", "--seeds", "1", "--out", str(tmp_path), "--no-pin",
             "--set", "data.generated-images=160 data.open=0.2 federation.rounds=1 prune.last-round=1"]  # fmt: skip
    result = CliRunner().invoke(app, words)
    assert result.exit_code == 0, result.output
    assert "Seeds finished" in result.stdout
    assert "1 of 1" in result.stdout
    table = (tmp_path / "table1.md").read_text()
    assert "|   paper | 27.70 | 10.44 (38 %) | 27.70 | 9.99 (36 %) |" in table
    rows = {(one["row"], one["column"]): one for one in csv.DictReader((tmp_path / "table1.csv").open())}
    assert float(rows["Traffic of a client (MB)", "single"]["mean"]) == 0
    assert float(rows["Traffic of a client (MB)", "fl"]["mean"]) > 0
    assert float(rows["Parameters (M)", "fl-pruned"]["mean"]) < float(rows["Parameters (M)", "fl"]["mean"])
    again = CliRunner().invoke(app, words)
    assert again.exit_code == 0
    assert "4 of 4 runs are done" in again.output
    assert " starts " not in again.output
