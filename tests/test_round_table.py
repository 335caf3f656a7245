"""The table of rounds fits 80 columns whatever the figures, and uses more when there is more."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from fedskew.config import load_config
from fedskew.runs.report import evaluation_text, summary_text
from fedskew.runs.round_table import NARROW, round_heading, round_line
from fedskew.text import duration

RECORD = {
    "round": 4, "accuracy": 0.63, "balanced_accuracy": 0.395, "f1_macro": 0.392, "auroc_macro": 0.81,
    "parameters": 514_000, "dense_parameters": 573_000, "macs": 14_000_000, "dense_macs": 20_300_000,
    "bytes_down": 9_040_000, "bytes_up": 9_010_000, "clients_ok": 3, "clients_failed": 1, "seconds": 7.7,
    "train_loss": 1.25, "selection": {"value": 0.412, "best": True},
}  # fmt: skip
HUGE = RECORD | {
    "round": 99_999, "bytes_down": 664_800_000_000, "seconds": 3_600.0 * 99, "clients_ok": 118, "clients_failed": 2,
    "parameters": 86_000_000_000, "dense_parameters": 86_000_000_000,
}  # fmt: skip


def test_a_row_under_its_heading():
    config = load_config(overrides="federation.rounds=8")
    heading, (row,) = round_heading(config), round_line(RECORD, config, 40.0)
    assert heading.split() == [
        "round", "acc", "bal.acc", "F1", "params", "MACs", "MB", "down/up", "nodes", "time", "left", "judged",
    ]  # fmt: skip
    assert row.split() == [
        "4/8", "0.630", "0.395", "0.392", "90%", "69%", "9.0/9.0", "3/4", "7.7s", "0m40s", "0.412*",
    ]  # fmt: skip
    assert len(heading) <= NARROW
    assert row.index("0.395") + 5 == heading.index("bal.acc") + 7, "right-aligned"


@pytest.mark.parametrize("rounds", [1, 8, 100, 999])
def test_the_narrow_table_fits_eighty_columns_with_its_mark(rounds):
    config = load_config(overrides=f"federation.rounds={rounds}")
    record = RECORD | {"round": rounds, "bytes_down": 664_800_000, "bytes_up": 664_800_000, "seconds": 86_399.0}
    lines = [
        round_heading(config),
        *round_line(record | {"seconds": 59.94}, config, 1e6),
        *round_line(record, config, 1),
    ]
    assert max(map(len, lines)) <= 80 - len("| ")


def test_figures_that_are_too_long_for_their_column_are_not_cut():
    (row,) = round_line(HUGE, load_config(overrides="federation.rounds=100000"), 1e9)
    assert {"99999/100000", "664800/9.0", "118/120", "99h00m"} <= set(row.split())


def test_more_room_is_used_column_by_column_and_never_more_than_there_is():
    config = load_config(overrides="federation.rounds=8")
    shown = {width: round_heading(config, width) for width in range(NARROW, 140)}
    assert all(len(line) <= width for width, line in shown.items())
    assert shown[80] == round_heading(config)
    wide = round_line(RECORD, config, 1.0, 139)[0].split()
    assert {"0.514", "14.0", "0.810", "1.250"} <= set(wide)
    counts = [len(line.split()) for line in shown.values()]
    assert counts == sorted(counts)


def test_what_was_not_evaluated_or_judged_is_a_dash():
    unknown = RECORD | {"accuracy": None, "balanced_accuracy": None, "f1_macro": None, "selection": None, "round": 0}
    heading, row = round_line(unknown, load_config(overrides="federation.rounds=8"), 0.0)
    assert row.split() == ["0/8", "-", "-", "-", "90%", "69%", "9.0/9.0", "3/4", "7.7s", "-", "-"]
    assert heading.startswith("round")


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(0, "0m00s"), (59.6, "1m00s"), (3599, "59m59s"), (3600, "1h00m"), (359_940, "99h59m"), (360_000, "4d04h")],
)
def test_durations_are_short(seconds, text):
    assert duration(seconds) == text


def test_the_summary_fits_eighty_columns(finished_run):
    summary = json.loads((finished_run.path / "summary.json").read_text())
    folder = Path("/runs/x")
    lines = summary_text(
        summary | {"stopped": "3 rounds in a row were below the quorum of 4 " * 3}, folder
    ).splitlines()
    assert max(map(len, lines)) <= 78
    assert lines[-1] == "run folder: /runs/x"
    assert any(line.startswith("best round: ") for line in lines)
    assert any(line.startswith("stopped early: 3 rounds") for line in lines)


def test_an_evaluation_is_told_with_the_classes_that_have_images():
    found = {
        "model": "m.safetensors", "data": "/data", "split": "all", "examples": 3, "skipped": 1, "accuracy": 2 / 3,
        "balanced_accuracy": 0.5, "f1_macro": 0.4, "auroc_macro": None, "expected_calibration_error": 0.1,
        "recall": {"nv": 1.0, "mel": 0.0, "df": None}, "support": {"nv": 2, "mel": 1, "df": 0},
        "parameters": 573_000, "macs": 20_300_000,
    }  # fmt: skip
    lines = [line.split() for line in evaluation_text(found).splitlines()]
    assert lines[1] == ["/data:", "3", "all", "images,", "1", "unreadable"]
    assert ["recall", "nv", "1.000", "n=2"] in lines
    assert ["macro", "AUROC", "-"] in lines
    assert not any("df" in line for line in lines)
