"""`plan`: what it is not, and what it cannot do, in one line."""

from __future__ import annotations

import json

import pytest
from builders import tiny_config
from typer.testing import CliRunner

from fedskew.cli.inspect import schedule_text
from fedskew.cli.main import app


def plan(run, *words):
    return CliRunner().invoke(app, ["plan", str(run.path), *words])


def test_the_plan_of_a_dense_run_is_one_clear_line(dense_run, finished_run):
    """It was a traceback."""
    for done in (plan(dense_run), plan(finished_run, "--set", "prune.criterion=none")):
        assert (done.exit_code, done.stdout) == (2, "")
        assert "is a run without pruning (prune.criterion=none)" in done.stderr
        assert "--set prune.criterion=skewness" in done.stderr
        assert done.stderr.count("\n") == 1
    assert plan(dense_run, "--set", "prune.criterion=skewness").exit_code == 0
    done = plan(finished_run, "--set", "prune.criterion=random")
    assert (done.exit_code, "prune.rule=match" in done.stderr) == (2, True)


def test_a_group_size_that_does_not_fit_is_one_clear_line(finished_run):
    """It was a traceback."""
    done = plan(finished_run, "--set", "prune.mlp-group=5")
    assert (done.exit_code, done.stdout) == (2, "")
    words = "prune.mlp-group 5 does not divide the hidden width 96 of stage 0; expected ratio, width or a number that"
    assert done.stderr == f"fedskew: {words} divides it\n"


def test_a_plan_says_that_it_is_not_bound_by_the_schedule(finished_run):
    done = plan(finished_run)
    said = " ".join(done.stdout.split())
    assert (
        "this plan scores all stages, whatever the schedule; the run itself takes no more step after round 2 of 2"
        in said
    )
    assert "no more step after round 2 of 2" in json.loads(plan(finished_run, "--json").stdout)["schedule"]


@pytest.mark.parametrize(
    ("prune", "number", "words"),
    [
        ({}, 1, "after round 2 of 9, in stages 0, 1 (of 0 to 3)"),
        ({"first_round": 5, "interval": 2}, 1, "after round 5 of 9, in stages 0 (of 0 to 3)"),
        ({"first_round": 5, "interval": 2}, 5, "after round 7 of 9, in stages 0, 1 (of 0 to 3)"),
        ({"calibrate": False}, 2, "after round 3 of 9, in stages 2 (of 0 to 3)"),
        ({"last_round": 4}, 4, "no more step after round 4 of 9"),
    ],
)
def test_the_next_step_of_the_run_itself_is_named(prune, number, words):
    config = tiny_config(prune=prune, federation={"rounds": 9})
    assert schedule_text(config, number, 4).endswith(words)
