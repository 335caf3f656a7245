"""Tables of a sweep against figures worked out by hand, and against paired differences."""

import csv
import io
import json

import pytest
from study_records import line, predictions, write_run
from typer.testing import CliRunner

from fedskew.cli.main import app
from fedskew.metrics import paired_over_seeds
from fedskew.sweeps.results import ResultsError, metric_value, read_cells, selected
from fedskew.sweeps.table import cell_table
from fedskew.sweeps.table_text import Layout, as_csv, as_markdown, as_text, gap_text, points


@pytest.fixture
def study(tmp_path):
    """Two cells of three and two seeds, and one that is not finished; no predictions."""
    folder = tmp_path / "study"
    for seed, balanced, parameters in ((0, 0.50, 1000), (1, 0.54, 1000), (2, 0.55, 1000)):
        write_run(folder, f"dense-s{seed}", balanced_accuracy=balanced, parameters=parameters, accuracy=0.6)
    for seed, balanced, parameters in ((0, 0.52, 200), (2, 0.54, 300)):
        write_run(folder, f"pruned-s{seed}", balanced_accuracy=balanced, parameters=parameters, accuracy=0.6)
    write_run(folder, "pruned-s1", rounds=7, finished=False, balanced_accuracy=0.9)
    write_run(folder, "half-s0", stopped="below the quorum")
    return folder


def test_mean_deviation_and_paired_difference_by_hand(study):
    table = cell_table(read_cells([study]), ["balanced_accuracy", "parameters_share"], reference="dense")
    dense, pruned = (table.entries["balanced_accuracy", name] for name in ("dense", "pruned"))
    assert dense.values == (0.50, 0.54, 0.55)
    assert dense.mean == pytest.approx(0.53)
    assert dense.sd == pytest.approx(0.0264575, abs=1e-6)  # √((0.03² + 0.01² + 0.02²) / 2)
    assert pruned.mean == pytest.approx(0.53), "the run that is in round 6 does not count"
    assert dense.gap is None
    assert pruned.gap.seeds == (0, 2)
    assert pruned.gap.mean == pytest.approx((0.02 - 0.01) / 2)
    assert (pruned.gap.low, pruned.gap.seen) == (None, None)
    share = table.entries["parameters_share", "pruned"]
    assert share.values == (20.0, 30.0)
    assert share.gap is None, "costs are told as shares, not compared"
    assert table.entries["balanced_accuracy", "half"].values == ()


def test_what_is_missing_is_said(study):
    table = cell_table(read_cells([study]), ["accuracy"], reference="dense")
    assert table.notes == (
        "half has 0 of 3 seeds (seed 0: stopped in round 2 of 2: below the quorum, seed 1: not run, seed 2: not run).",
        "pruned has 2 of 3 seeds (seed 1: round 6 of 7).",
        "No intervals for dense, pruned: test predictions were not kept.",
        "pruned is compared with dense on seed 0, 2.",
    )


def test_a_run_that_stopped_early_is_told_as_such(tmp_path):
    write_run(tmp_path, "a-s0", stopped="below the quorum")
    (cell,) = read_cells([tmp_path])
    assert (cell.runs, cell.unfinished) == ({}, {0: "stopped in round 2 of 2: below the quorum"})


def test_the_markdown_of_a_table(study):
    cells = selected(read_cells([study]), ["dense", "pruned"])
    metrics = ["balanced_accuracy", "recall.mel", "recall.bcc", "parameters_share", "parameters", "bytes_down_total",
               "bytes_up_total"]  # fmt: skip
    assert as_markdown(cell_table(cells, metrics)).splitlines()[:11] == [
        "|  | dense | pruned |",
        "|---|---|---|",
        "| Seeds | 3 | 2 of 3 |",
        "| Balanced accuracy | 0.530 ± 0.026 | 0.530 ± 0.014 |",
        "| difference to dense, points |  | +0.5 |",
        "| Melanoma recall | 0.250 | 0.250 |",
        "| difference to dense, points |  | 0.0 |",
        "| Recall of bcc | – | – |",
        "| Parameters, % of dense | 100.0 | 25.0 ± 7.1 |",
        "| Parameters (M) | 0.001 | 0.000 ± 0.000 |",
        "| Sent to nodes (MB) | 400 | 400 |",
    ]
    rows = as_markdown(cell_table(cells, metrics[:2]), Layout(by_cell=True, each=True)).splitlines()
    assert rows[0] == (
        "|  | Seeds | Balanced accuracy | difference to dense, points | Melanoma recall | difference to dense, points |"
    )
    assert rows[2:4] == [
        "| dense | 3 | 0.500, 0.540, 0.550 |  | 0.250, 0.250, 0.250 |  |",
        "| pruned | 2 of 3 | 0.520, 0.540 | +0.5 | 0.250, 0.250 | 0.0 |",
    ]
    assert "│ Balanced accuracy" in as_text(cell_table(cells, metrics))


BETTER = [1, 1, 1, 1, 1, 1, 1, 0], [1, 1, 0, 1, 1, 1, 1, 1]
WORSE = [0, 0, 1, 0, 0, 0, 1, 0], [0, 0, 0, 0, 0, 1, 0, 0]
TWIN = [1, 1, 1, 1, 1, 1, 0, 1], [1, 1, 1, 1, 0, 1, 1, 1]


def with_predictions(folder):
    for name, sides in (("dense", BETTER), ("worse", WORSE), ("twin", TWIN)):
        for seed, right in enumerate(sides):
            write_run(folder, f"{name}-s{seed}", found=predictions(right))
    return folder


def test_intervals_are_those_of_paired_differences_over_the_seeds(tmp_path):
    cells = read_cells([with_predictions(tmp_path)])
    table = cell_table(cells, ["accuracy", "recall.nv"])
    for name, sides in (("worse", WORSE), ("twin", TWIN)):
        expected = paired_over_seeds([predictions(s) for s in BETTER], [predictions(s) for s in sides], "recall.nv")
        gap = table.entries["recall.nv", name].gap
        assert (gap.mean, gap.low, gap.high) == (pytest.approx(expected.mean), expected.low, expected.high)
    # of the four nv images dense has all in both seeds; worse one and one; twin three and three
    assert table.entries["recall.nv", "worse"].gap.mean == pytest.approx(-0.75)
    assert table.entries["recall.nv", "twin"].gap.mean == pytest.approx(-0.25)
    row = next(row for row in as_markdown(table).splitlines() if "difference" in row)
    assert row.count("no difference seen") == 1
    assert row.split("|")[3].startswith(" 0.0 [−"), "seven of eight images right in both seeds, as dense"
    assert table.entries["accuracy", "worse"].gap.seen
    assert not table.entries["accuracy", "twin"].gap.seen
    assert not table.notes


def test_intervals_over_seeds_are_wider_where_seeds_differ(tmp_path):
    cells = read_cells([with_predictions(tmp_path)])
    of_lesions = cell_table(cells, ["accuracy"]).entries["accuracy", "worse"].gap
    of_both = cell_table(cells, ["accuracy"], over_seeds=True).entries["accuracy", "worse"].gap
    expected = paired_over_seeds([predictions(s) for s in BETTER], [predictions(s) for s in WORSE], "accuracy")
    assert (of_both.low, of_both.high) == (expected.seeds_low, expected.seeds_high)
    assert (of_both.low, of_both.high) != (of_lesions.low, of_lesions.high)


def test_only_pairs_of_the_same_test_set_are_compared(tmp_path):
    write_run(tmp_path, "dense-s0", found=predictions([1] * 8))
    write_run(tmp_path, "other-s0", found=predictions([1] * 8, lesions=[0, 0, 1, 2, 3, 4, 5, 6]))
    table = cell_table(read_cells([tmp_path]), ["accuracy"])
    assert table.entries["accuracy", "other"].gap is None
    assert table.notes == (
        "other is not compared with dense: the test sets differ in their lesions: there are no pairs to compare.",
    )


def test_predictions_of_another_model_are_refused(tmp_path):
    write_run(tmp_path, "dense-s0", found=predictions([1] * 8))
    write_run(tmp_path, "other-s0", found=predictions([1] * 7 + [0]), accuracy=0.9)
    with pytest.raises(ResultsError, match=r"other-s0/predictions.npz has an accuracy of 0.8750, .* 0.9000"):
        cell_table(read_cells([tmp_path]), ["accuracy"])


def test_several_sweeps_make_one_table(tmp_path):
    for name, score in (("iid", 0.5), ("sites", 0.4)):
        write_run(tmp_path / name, "dense-s0", balanced_accuracy=score)
    table = cell_table(read_cells([tmp_path / "iid", tmp_path / "sites"]), ["balanced_accuracy"])
    assert [cell.name for cell in table.cells] == ["iid/dense", "sites/dense"]
    assert table.entries["balanced_accuracy", "sites/dense"].gap.mean == pytest.approx(-0.1)


def test_the_history_of_a_sweep_gives_order_and_what_is_missing(study):
    runs = {f"{cell}-s0": {"cell": cell, "seed": 0} for cell in ("pruned", "later", "dense")}
    (study / "sweep.json").write_text(json.dumps({"cells": ["pruned", "later", "dense"], "runs": runs}))
    cells = read_cells([study])
    assert [cell.name for cell in cells] == ["pruned", "later", "dense", "half"]
    assert cells[1].unfinished == {0: "not run"}
    assert cells[3].unfinished.keys() == {0}


def test_csv_has_every_figure_as_it_is(study):
    rows = list(
        csv.DictReader(io.StringIO(as_csv(cell_table(read_cells([study]), ["balanced_accuracy"], reference="dense"))))
    )
    assert rows[0] == {
        "cell": "dense", "metric": "balanced_accuracy", "seeds": "0 1 2", "mean": "0.53", "sd": "0.0264575",
        "reference": "", "difference": "", "low": "", "high": "", "seen": "",
    }  # fmt: skip
    assert [rows[2][key] for key in ("cell", "seeds", "reference", "difference")] == ["pruned", "0 2", "dense", "0.005"]


@pytest.mark.parametrize(("value", "text"), [(0.0094, "+0.9"), (-0.0049, "−0.5"), (-0.0004, "0.0"), (0.0, "0.0")])
def test_points(value, text):
    assert points(value) == text


def test_no_gap_is_no_text():
    assert gap_text(None) == ""


def test_metrics_by_name():
    record = line(held_back={"accuracy": 0.7})
    assert metric_value(record, "macs_share") == 30.0
    assert metric_value(record, "recall.nv") == 0.75
    assert metric_value(record, "recall.bcc") is None
    assert metric_value(record, "held_back.accuracy") == 0.7
    for name, words in (
        ("acuracy", "no metric 'acuracy'"),
        ("recall", "is no number"),
        ("recall.x", "no metric 'recall.x'"),
    ):
        with pytest.raises(ResultsError, match=words):
            metric_value(record, name)


def test_the_command(study):
    def call(*words):
        return CliRunner().invoke(app, ["table", *map(str, words)])

    told = call(
        study, "--reference", "dense", "--metrics", "accuracy,macs_share", "--cells", "pruned,dense", "--markdown"
    )
    assert told.exit_code == 0, told.output
    assert told.output.splitlines()[:4] == [
        "|  | pruned | dense |", "|---|---|---|", "| Seeds | 2 of 3 | 3 |", "| Accuracy | 0.600 | 0.600 |",
    ]  # fmt: skip
    default = call(study, "--classes", "nv", "--csv").output
    assert {row["metric"] for row in csv.DictReader(io.StringIO(default))} == {
        "balanced_accuracy", "accuracy", "f1_macro", "auroc_macro", "recall.nv", "parameters_share", "macs_share",
        "bytes_down_total", "bytes_up_total",
    }  # fmt: skip
    for words, message in (
        ([study, "--reference", "x"], "no cell 'x' to compare with"),
        ([study, "--cells", "x"], "no cell 'x'; there are dense, half, pruned"),
        ([study.parent], "holds no run of a sweep"),
        ([study / "nowhere"], "holds no run of a sweep"),
    ):
        result = call(*words)
        assert result.exit_code == 2
        assert message in result.output
