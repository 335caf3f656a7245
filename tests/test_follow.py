"""`fedskew run` around a `flwr` that a script plays: what is shown where, when a run has failed, what comes next."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import pytest
from typer.testing import CliRunner

from fedskew.cli import follow, watch
from fedskew.cli.main import app
from fedskew.config import load_config
from fedskew.console import PROGRESS_FILE
from fedskew.errors import ExitCode
from fedskew.runs.round_table import round_heading

NOISE = [
    "Using SuperLink: local-simulation (127.0.0.1:39091)",
    "Successfully started run 4711",
    "\x1b[92mINFO \x1b[0m:      Starting logstream for run_id `4711`",
    "\x1b[93mWARNING \x1b[0m:   Since flwr 1.32, default simulated SuperNodes changed from 10 to 2.",
    "2026-11-21 18:45:00,123\tINFO worker.py:2012 -- Started a local Ray instance.",
]
TRACEBACK = [
    "\x1b[91mERROR \x1b[0m:     Simulation raised an exception",
    "Traceback (most recent call last):",
    '  File "/x.py", line 1, in <module>',
    "RuntimeError: the raylet did not start",
    "RuntimeError: An error was encountered. Ending simulation.",
]
ROWS = [
    "| round   acc bal.acc",
    "|   0/2 0.100",
    "|   1/2 0.200",
    "|   2/2 0.300",
    "| after 2 rounds",
    "|   accuracy  0.3",
]


class Player:
    """Plays `flwr` for the commands of one test.

    Attributes:
        place: the run folder that `fedskew run --name mine` plans.
        finished: a folder of a finished run, to copy there.
    """

    def __init__(self, folder: Path, finished: Path) -> None:
        self.plan = folder / "plan.json"
        self.program = folder / "flwr"
        self.program.write_text(f'#!/bin/sh\nexec {sys.executable} {Path(__file__).with_name("fake_flwr.py")} "$@"\n')
        self.program.chmod(0o755)
        self.place, self.finished = folder / "runs" / "mine", finished

    @property
    def environment(self):
        return os.environ | {"FAKE_FLWR": str(self.plan)}

    @property
    def calls(self):
        return int(self.plan.with_suffix(".count").read_text())

    def attempts(self, *attempts, status="finished:completed"):
        self.plan.write_text(json.dumps({"attempts": attempts, "status": status}))

    def run(self, *lines, leave_out=(), more=(), code=0):
        """A run that makes its folder and says these lines."""
        copied = [["copy", str(self.finished), str(self.place), list(leave_out)]]
        return [*copied, *more, *says(*lines), ["exit", code]]

    def head(self):
        return [f"fedskew: run folder: {self.place}", "fedskew: preset demo", "fedskew: warning: round 1: a set aside"]


def says(*lines):
    return [["print", line] for line in lines]


class StandIn:
    """In the place of the simulation's own SuperLink, which `flwr` as it is played here does not need.

    Attributes:
        death: a file; once it is there, the SuperLink is not.
    """

    death = Path("never")

    def __init__(self, environment, terminal, interrupts):
        self.environment, self._interrupts = environment, interrupts

    def __enter__(self):
        self.home = Path(tempfile.mkdtemp())
        return self

    def __exit__(self, *_):
        self._interrupts.shield()
        shutil.rmtree(self.home)

    @property
    def is_running(self):
        return not self.death.exists()


@pytest.fixture
def flwr(tmp_path, monkeypatch, finished_run):
    player = Player(tmp_path, finished_run.path)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(follow, "OwnSuperLink", StandIn)
    monkeypatch.setattr(follow, "flwr_program", lambda: (str(player.program), player.environment))
    return player


def run(*words):
    return CliRunner().invoke(app, ["run", "--name", "mine", *words])


def test_what_a_person_sees_is_the_run_and_nothing_else(flwr, finished_run):
    flwr.attempts(flwr.run(*NOISE, *flwr.head(), *ROWS))
    done = run()
    assert done.exit_code == 0, done.output
    out, err = done.stdout.splitlines(), done.stderr.splitlines()
    assert out[0].split() == round_heading(load_config(overrides="federation.rounds=2")).split()
    shown = [line.split()[:2] for line in out[1:4]]
    assert shown == [[f"{record['round']}/2", f"{record['accuracy']:.3f}"] for record in finished_run.records()]
    assert sum(line.startswith("after 2 rounds") for line in out) == 1, "the summary once"
    assert out[-1] == f"run folder: {flwr.place}"
    assert err[0].startswith("flwr run ")
    assert err[1:4] == [f"run folder: {flwr.place}", "preset demo", "warning: round 1: a set aside"]
    assert err[4].startswith("next: fedskew compare runs/mine")
    assert not any(word in done.output for word in ("\x1b", "WARNING", "Ray instance", "4711"))


def test_a_wide_terminal_gets_the_wide_table(flwr, monkeypatch):
    monkeypatch.setenv("COLUMNS", "120")
    flwr.attempts(flwr.run(*NOISE, *flwr.head(), *ROWS))
    heading, row = run().stdout.splitlines()[:2]
    assert "AUROC" in heading
    assert 80 < len(row) <= 120


def test_verbose_shows_flowers_lines_without_their_colours(flwr):
    flwr.attempts(flwr.run(*NOISE, *flwr.head(), *ROWS))
    done = run("--verbose")
    assert "Started a local Ray instance." in done.stderr
    assert "\x1b" not in done.output


def test_json_leaves_standard_output_to_the_summary(flwr, finished_run):
    flwr.attempts(flwr.run(*NOISE, *flwr.head(), *ROWS))
    done = run("--json")
    found = json.loads(done.stdout)
    assert found.pop("folder") == str(flwr.place)
    assert found == json.loads((finished_run.path / "summary.json").read_text())
    assert "after 2 rounds" in done.stderr
    assert "next:" not in done.output


def test_a_failed_run_fails_though_flower_exits_with_zero(flwr):
    flwr.attempts(flwr.run(*NOISE, *flwr.head(), *ROWS[:2], *TRACEBACK, leave_out=["summary.json"]))
    done = run()
    assert done.exit_code == ExitCode.FAILED
    err = done.stderr.splitlines()
    assert "RuntimeError: the raylet did not start" in err, "the first cause"
    assert not any("Traceback" in line for line in err)
    assert f"fedskew: the run failed; what it saved is in {flwr.place}" in err
    assert err[-3:] == [
        "next: fedskew run --resume runs/mine", "      fedskew simulate --resume runs/mine",
        "      less runs/mine/flower.log",
    ]  # fmt: skip
    kept = (flwr.place / "flower.log").read_text().splitlines()
    assert "Traceback (most recent call last):" in kept, "all that Flower said, as its SuperLink is gone"
    assert "\x1b" not in "".join(kept)


def test_an_error_that_the_run_explains_needs_no_traceback(flwr):
    flwr.attempts(says(*NOISE, "fedskew: error: /data is empty", *TRACEBACK), status="finished:failed")
    done = run()
    assert done.exit_code == ExitCode.FAILED
    assert "error: /data is empty" in done.stderr
    assert "raylet" not in done.stderr
    assert "fedskew simulate" not in done.stderr
    assert "it left nothing behind" in done.stderr


def test_an_error_that_the_run_told_is_neither_repeated_nor_tried_again(flwr):
    """Ray may give up on its start in the same moment: the run was started three times over, for the same error."""
    told = "error: /data is empty"
    slow = "Exception: The current node timed out during startup. This could happen because"
    flwr.attempts(says(*NOISE, f"fedskew: {told}", slow, *TRACEBACK), status="finished:failed")
    done = run()
    assert flwr.calls == 1
    assert done.stderr.count("/data is empty") == 1
    assert "boom" not in done.stderr, "what Flower would say of the same error"
    assert "trying again" not in done.stderr


def test_a_run_that_cannot_be_submitted_shows_what_flwr_says(flwr):
    flwr.attempts([*says("Error: no connection of that name"), ["exit", 1]])
    done = run()
    assert done.exit_code == 1
    assert "Error: no connection of that name" in done.stderr
    assert "the run was not started" in done.stderr


def test_a_run_on_another_machine_is_shown_as_it_is_streamed(flwr):
    flwr.attempts(says(*NOISE, "fedskew: run folder: /elsewhere/mine", *ROWS))
    done = run()
    assert done.exit_code == 0, done.output
    assert done.stdout.splitlines() == [row.removeprefix("| ") for row in ROWS]
    assert "/elsewhere/mine cannot be seen from here" in done.stderr


def test_a_failed_run_on_another_machine_fails_too(flwr):
    flwr.attempts(says(*NOISE, "fedskew: run folder: /elsewhere/mine"), status="finished:failed")
    done = run()
    assert done.exit_code == ExitCode.FAILED
    assert "fedskew: boom" in done.stderr


def test_a_run_that_stopped_early_has_its_own_exit_code(flwr, finished_run):
    summary = json.loads((finished_run.path / "summary.json").read_text()) | {"stopped": "below the quorum"}
    stopped = ["write", str(flwr.place / "summary.json"), json.dumps(summary)]
    flwr.attempts(flwr.run(*NOISE, *flwr.head(), *ROWS, more=[stopped]))
    done = run()
    assert done.exit_code == ExitCode.STOPPED
    assert "stopped early: below the quorum" in done.stdout
    assert "next: fedskew run --resume runs/mine" in done.stderr


def test_a_run_whose_superlink_dies_fails_instead_of_waiting_without_end(flwr, monkeypatch):
    monkeypatch.setattr(watch, "IDLE_SECONDS", 0.05)
    monkeypatch.setattr(StandIn, "death", flwr.place / "death")
    begun = flwr.run(*NOISE, *flwr.head(), *ROWS[:2], leave_out=["summary.json"])
    flwr.attempts([*begun[:-1], ["write", str(StandIn.death), ""], ["sleep", 600.0]])
    done = run()
    assert done.exit_code == ExitCode.FAILED
    assert done.stderr.count("error: the SuperLink of the run has ended") == 1
    assert "next: fedskew run --resume runs/mine" in done.stderr


def test_a_ray_that_needs_longer_than_it_allows_itself_is_tried_again_from_what_there_is(flwr):
    slow = ["Exception: The current node timed out during startup. This could happen because"]
    failed = flwr.run(*NOISE, *flwr.head(), *ROWS[:2], *slow, leave_out=["summary.json"])
    ended = [["write", str(flwr.place / "summary.json"), (flwr.finished / "summary.json").read_text()]]
    flwr.attempts(failed, [*says(*NOISE, *slow)], [*ended, *says(*NOISE, *flwr.head(), *ROWS)])
    done = run()
    assert done.exit_code == 0, done.output
    assert done.stderr.count("Ray needs longer to start than the 30 s that it allows itself: trying again") == 2
    first, *later = (json.loads(line) for line in flwr.plan.with_suffix(".words").read_text().splitlines())
    assert "run.name=mine" in first[first.index("-c") + 1]
    for words in later:
        assert words[words.index("-c") + 1] == f'resume="{flwr.place}"'
        assert words[-2:] == first[-2:], "as many nodes"


def test_a_ray_that_never_starts_is_given_up(flwr):
    flwr.attempts(says(*NOISE, "Exception: The current node timed out during startup."), status="finished:failed")
    done = run()
    assert done.exit_code == ExitCode.FAILED
    assert flwr.calls == follow.TRIES
    assert "`fedskew simulate` runs the same federation in one process, without it" in done.stderr
    assert done.stderr.splitlines()[-1] == "next: fedskew simulate, with the same options"


def test_progress_of_this_run_is_shown_while_nothing_else_comes(flwr, monkeypatch):
    shown = []

    class Status:
        enabled = True
        show = staticmethod(shown.append)
        clear = staticmethod(lambda: None)

    monkeypatch.setattr(watch, "IDLE_SECONDS", 0.05)
    monkeypatch.setattr("fedskew.cli.terminal.StatusLine", Status)
    progress = ["write", str(flwr.place / PROGRESS_FILE), "round 1/2: 1 of 3 nodes have trained"]
    told = says(*flwr.head(), *ROWS)
    flwr.attempts([["sleep", 1.5], *flwr.run(*told[0][1:], more=[["sleep", 0.5], progress, ["sleep", 1.0]])])
    assert run().exit_code == 0
    assert "round 1/2: 1 of 3 nodes have trained" in shown
    assert shown[0] == "Flower starts: 0 s; data are read, and decoded when they are new"
    assert "Flower starts: 1 s; data are read, and decoded when they are new" in shown, "it counts"


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_interrupting_ends_the_watching_of_a_run_elsewhere_not_the_run(flwr, number):
    flwr.attempts([*says(*NOISE), ["sleep", 60.0]])
    code = (
        "from fedskew.cli import follow\n"
        "from fedskew.cli.main import app\n"
        "import os\n"
        f"follow.flwr_program = lambda: ({str(flwr.program)!r}, dict(os.environ))\n"
        "app(['run', '--name', 'mine', '--verbose', '--connection', 'hospital'])\n"
    )
    process = subprocess.Popen([sys.executable, "-c", code], env=flwr.environment, cwd=flwr.plan.parent, text=True,
                               stdout=subprocess.PIPE, stderr=subprocess.PIPE, start_new_session=True)  # fmt: skip
    deadline, seen = time.monotonic() + 120, ""
    while "Started a local Ray instance" not in seen and time.monotonic() < deadline:
        seen += process.stderr.readline()
    os.kill(process.pid, number)
    _, err = process.communicate(timeout=50)
    assert process.returncode == ExitCode.INTERRUPTED, err
    assert "fedskew: no longer watched; run 4711 goes on" in err
    assert "flwr stop 4711 hospital" in err
    assert 'Traceback (most recent call last):\n  File "<string>"' not in err


def test_the_real_programs_lie_beside_the_interpreter(monkeypatch):
    monkeypatch.setenv("PATH", "/usr/bin:/bin")  # not activated
    program, environment = follow.flwr_program()
    assert Path(program) == Path(sys.executable).with_name("flwr")
    found = shutil.which("flower-superlink", path=environment["PATH"])
    assert found == str(Path(sys.executable).with_name("flower-superlink"))
