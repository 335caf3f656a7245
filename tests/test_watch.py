"""`fedskew watch`: a run that goes on, one that ends meanwhile, one that has broken off; in a pipe and a terminal."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
from filelock import FileLock
from rich.console import Console
from typer.testing import CliRunner

from fedskew.cli import following
from fedskew.cli.following import follow_run, picture
from fedskew.cli.main import app
from fedskew.cli.terminal import Terminal
from fedskew.console import PROGRESS_FILE
from fedskew.errors import ExitCode
from fedskew.runs.presence import BROKEN, ENDED, GOING, look_at
from fedskew.runs.round_table import round_heading, round_line


@pytest.fixture
def copy(finished_run, tmp_path):
    return Path(shutil.copytree(finished_run.path, tmp_path / "run"))


def cut(path, count):
    """The folder as it was after so many rounds; returns what is missing."""
    lines = (path / "metrics.jsonl").read_text().splitlines(keepends=True)
    (path / "metrics.jsonl").write_text("".join(lines[:count]))
    summary = (path / "summary.json").read_text()
    (path / "summary.json").unlink()
    return lines[count:], summary


def test_a_pipe_gets_each_round_once_as_it_ends_then_the_summary(copy, finished_run, capsys):
    later, summary = cut(copy, 1)
    lock = FileLock(copy / ".lock")
    lock.acquire()
    steps = []

    def sleep(seconds):
        """What the run does while it is not looked at."""
        steps.append(seconds)
        if len(steps) == 2:
            with (copy / "metrics.jsonl").open("a") as file:
                file.write(later[0])
        if len(steps) == 4:
            with (copy / "metrics.jsonl").open("a") as file:
                file.write(later[1])
            (copy / "summary.json").write_text(summary)
            lock.release()

    assert follow_run(copy, Terminal(), sleep) == ExitCode.OK
    out, err = capsys.readouterr()
    config, elapsed, expected = look_at(copy).config, 0.0, []
    for record in finished_run.records():
        elapsed += record["seconds"]
        expected += round_line(record, config, elapsed)
    assert out.splitlines()[: len(expected)] == expected
    assert expected[0] == round_heading(config)
    assert "after 2 rounds" in out
    assert "\x1b" not in out + err
    assert len(steps) == 4
    assert err.splitlines()[-1].startswith("look: fedskew report")


def test_a_run_in_which_nobody_is_at_work_is_given_up_with_the_way_to_go_on(copy, monkeypatch):
    cut(copy, 2)
    monkeypatch.setattr(following, "SECONDS", 0.01)
    done = CliRunner().invoke(app, ["watch", str(copy)])
    assert done.exit_code == ExitCode.STOPPED
    assert "the run has ended after round 1" in done.stderr
    assert "next: fedskew run --resume" in done.stderr
    assert done.stdout.count("\n") == 3


def test_what_a_run_is_doing_is_told_from_its_lock_and_its_summary(copy):
    assert look_at(copy).state == ENDED
    with FileLock(copy / ".lock"):
        assert look_at(copy).state == GOING, "also where it was finished before and has got more rounds"
        (copy / PROGRESS_FILE).write_text("round 3/4: 1 of 3 nodes have trained")
        assert look_at(copy).progress == "round 3/4: 1 of 3 nodes have trained"
    summary = json.loads((copy / "summary.json").read_text())
    (copy / "summary.json").write_text(json.dumps(summary | {"rounds": 1}))
    assert look_at(copy).state == BROKEN
    (copy / ".lock").unlink()
    (copy / "summary.json").write_text(json.dumps(summary))
    assert look_at(copy).state == ENDED, "a copy without its lock"


def test_a_run_that_stopped_early_has_its_exit_code(copy):
    summary = json.loads((copy / "summary.json").read_text())
    (copy / "summary.json").write_text(json.dumps(summary | {"stopped": "below the quorum"}))
    done = CliRunner().invoke(app, ["watch", str(copy)])
    assert done.exit_code == ExitCode.STOPPED
    assert "stopped early: below the quorum" in done.stdout


def test_no_run_is_one_line(tmp_path):
    done = CliRunner().invoke(app, ["watch", str(tmp_path)])
    assert (done.exit_code, done.stderr.count("\n")) == (2, 1)
    assert "is no run folder" in done.stderr


def test_the_picture_fits_the_terminal_and_says_who_is_missing(copy):
    records = [json.loads(line) for line in (copy / "metrics.jsonl").read_text().splitlines()]
    last = records[-1]
    last["participation"] |= {"partition-1": "late"}
    many = [*records[:-1], *(last | {"round": number} for number in range(2, 60))]
    (copy / "metrics.jsonl").write_text("".join(f"{json.dumps(record)}\n" for record in many))
    console = Console(width=80, height=24, record=True)
    console.print(picture(copy, look_at(copy), 24))
    lines = console.export_text().splitlines()
    assert len(lines) <= 24
    assert max(map(len, lines)) <= 80
    assert "in round 59: 2 of 3 sites; partition-1 late" in "\n".join(lines)
    assert lines[0] == "run"
    assert "round 59 of 2" in lines[1]
