"""What real processes write: results and messages apart, no codes in pipes, a status line on a terminal, exit codes."""

from __future__ import annotations

import fcntl
import os
import pty
import re
import shutil
import signal
import struct
import subprocess
import sys
import termios
from pathlib import Path

import pytest
from builders import MICRO
from typer.testing import CliRunner

from fedskew.cli import checks
from fedskew.cli.checks import MachineError, check_machine
from fedskew.cli.flower import RunRequest
from fedskew.cli.main import app, versions
from fedskew.errors import ExitCode

ROOT = Path(__file__).resolve().parents[1]
TINY = (f"model.name={MICRO} data.generated-images=160 data.open=0.2 federation.rounds=2 run.threads=1 train.threads=1 "
        "train.batch-size=16 prune.batch-size=16")  # fmt: skip
FEDSKEW = [sys.executable, "-m", "fedskew"]
SIMULATE = [*FEDSKEW, "simulate", "--nodes", "2", "--name", "mine", "--set", TINY]


def environment(**more):
    return {name: value for name, value in os.environ.items() if name not in ("COLUMNS", "NO_COLOR")} | {
        "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", "TERM": "xterm", **more,
    }  # fmt: skip


def fedskew(*words, cwd=None, **more):
    command = [*FEDSKEW, *map(str, words)]
    return subprocess.run(command, env=environment(**more), cwd=cwd, capture_output=True, text=True, check=False)


def on_terminal(command, cwd, columns, **more):
    """What a person sees of a command on a terminal of so many columns."""
    outer, inner = pty.openpty()
    fcntl.ioctl(inner, termios.TIOCSWINSZ, struct.pack("HHHH", 24, columns, 0, 0))
    process = subprocess.Popen(command, env=environment(**more), cwd=cwd, stdin=inner, stdout=inner, stderr=inner)
    os.close(inner)
    seen = b""
    while True:
        try:
            part = os.read(outer, 65_536)
        except OSError:  # the other end is closed
            break
        if not part:
            break
        seen += part
    os.close(outer)
    assert process.wait() == 0, seen.decode()
    return seen.decode()


def test_warnings_outside_of_a_run_are_messages_without_colours(tmp_path):
    """Flower's handler wrote them with ANSI codes, in pipes too."""
    (tmp_path / "mine.yaml").write_text("prune: {method: none}\n")
    done = fedskew("simulate", "--config", "mine.yaml", "--set", "data.test=0.9 data.open=0.9", cwd=tmp_path)
    assert done.returncode == ExitCode.USER
    first = done.stderr.splitlines()[0]
    assert first.startswith("fedskew: warning: ")
    assert first.endswith("mine.yaml: prune.method is called prune.criterion now")
    assert "\x1b" not in done.stderr


def test_a_long_message_is_wrapped_for_a_terminal_and_a_command_never(tmp_path):
    """Words were cut in two at the terminal's edge; a command in several lines cannot be copied."""
    code = (
        "from fedskew.cli.terminal import Terminal\n"
        "terminal = Terminal()\n"
        "terminal.message('warning: ' + 'word ' * 12 + 'end')\n"
        "terminal.next_step('fedskew evaluate ' + 'x' * 40)\n"
    )
    lines = on_terminal([sys.executable, "-c", code], tmp_path, 40).replace("\r", "").splitlines()
    assert lines[:2] == ["warning: word word word word word word", "  word word word word word word end"]
    assert lines[2] == "next: fedskew evaluate " + "x" * 40
    command = [sys.executable, "-c", code]
    piped = subprocess.run(command, env=environment(COLUMNS="40"), capture_output=True, text=True, check=True)
    assert piped.stderr.splitlines()[0] == "warning: " + "word " * 12 + "end"


def test_results_and_messages_go_to_different_pipes_without_codes(generated, tmp_path):
    done = subprocess.run(SIMULATE, env=environment(), cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    out, err = done.stdout.splitlines(), done.stderr.splitlines()
    folder = tmp_path / "runs" / "mine"
    assert out[0].startswith("round ")
    assert [line.split()[0] for line in out[1:4]] == ["0/2", "1/2", "2/2"]
    assert out[-1] == f"run folder: {folder}"
    assert max(len(line) for line in out[:-1]) <= 80
    assert err[0] == f"run folder: {folder}", "the first thing that a run says"
    assert err[-3].startswith("next: fedskew compare runs/mine")
    assert err[-1] == "look: runs/mine/report.html"
    assert not {"round", "after"} & {line.split()[0] for line in err}
    assert "\x1b" not in done.stdout + done.stderr
    assert "\r" not in done.stdout + done.stderr, "no status line"


@pytest.mark.parametrize("no_color", ["", "1"])
def test_a_terminal_gets_a_status_line_and_the_width_that_it_has(generated, tmp_path, no_color):
    seen = on_terminal(SIMULATE, tmp_path, 110, NO_COLOR=no_color)
    assert "round 1/2: 1 of 2 nodes have trained, " in seen
    assert "round 2/2: all 2 nodes have trained, " in seen
    heading = next(line for line in seen.splitlines() if "bal.acc" in line)
    assert "AUROC" in heading
    assert "\x1b" not in seen
    for line in re.split(r"[\r\n]+", seen):
        assert len(line) <= 110 or "run folder" in line


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM], ids=lambda number: number.name)
def test_an_interrupted_run_says_how_to_go_on(generated, tmp_path, number):
    command = [*SIMULATE[:-1], f"{TINY} federation.rounds=500"]
    process = subprocess.Popen(command, env=environment(), cwd=tmp_path, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
                               text=True, start_new_session=True)  # fmt: skip
    while not process.stdout.readline().lstrip().startswith("1/500"):
        assert process.poll() is None
    os.killpg(process.pid, number)
    _, err = process.communicate(timeout=120)
    assert process.returncode == ExitCode.INTERRUPTED, err
    assert err.splitlines()[-1] == "next: fedskew simulate --resume runs/mine"
    assert "Traceback" not in err


def test_a_run_below_its_quorum_has_its_own_exit_code(generated, tmp_path):
    settings = f"{TINY} federation.quorum=2 federation.fraction=0.5 federation.max-missed-rounds=1"
    done = fedskew("simulate", "--nodes", 2, "--name", "mine", "--set", settings, cwd=tmp_path)
    assert done.returncode == ExitCode.STOPPED, done.stderr
    assert "stopped early: " in done.stdout
    assert done.stderr.splitlines()[-2:] == ["next: fedskew simulate --resume runs/mine", "look: runs/mine/report.html"]


def test_debug_shows_where_an_error_comes_from(tmp_path):
    plain, debug = (fedskew("simulate", "--preset", "dmo", *words, cwd=tmp_path) for words in ((), ("--debug",)))
    assert (plain.returncode, debug.returncode) == (2, 2)
    assert plain.stderr.count("\n") == 1
    assert "Traceback (most recent call last)" in debug.stderr
    assert debug.stderr.splitlines()[-1] == plain.stderr.strip()
    assert "Traceback" in fedskew("simulate", "--preset", "dmo", cwd=tmp_path, FEDSKEW_DEBUG="1").stderr


def test_the_version_names_what_counts():
    done = fedskew("--version")
    assert done.returncode == 0
    assert done.stdout.strip() == versions()
    assert re.fullmatch(r"fedskew \S+ \(flwr 1\.\S+, torch \S+, timm \S+, Python 3\.\S+\)", versions())


def test_help_names_exit_codes_and_an_example_for_every_command(monkeypatch):
    monkeypatch.setenv("COLUMNS", "80")
    shown = CliRunner().invoke(app, ["--help"]).output
    for code in ExitCode:
        assert re.search(rf"^ {int(code)} \w", shown, re.MULTILINE), code
    names = [info.name or info.callback.__name__.replace("_", "-") for info in app.registered_commands]
    assert len(names) >= 13
    for name in [*names, "doctor data", "doctor site", "doctor coordinator"]:
        page = CliRunner().invoke(app, [*name.split(), "--help"]).output
        assert f"Example: fedskew {name}" in page, name
        assert max(map(len, page.splitlines())) <= 80
        assert "--debug" in page, name


def test_a_preset_is_completed():
    words = {"_FEDSKEW_COMPLETE": "complete_bash", "COMP_WORDS": "fedskew run --preset ham", "COMP_CWORD": "3"}
    assert fedskew(**words).stdout.split() == ["ham10000", "ham10000-sites", "ham10000-small"]


def test_an_option_is_taken_by_its_old_name(tmp_path):
    done = fedskew("evaluate", "nowhere", "--data=here", cwd=tmp_path)
    assert "nowhere is neither a model file nor a run folder" in done.stderr
    assert "No such option" in fedskew("compare", "nowhere", "--data", "here", cwd=tmp_path).stderr


def test_an_installation_without_a_checkout_says_what_it_can_do(tmp_path):
    ignored = shutil.ignore_patterns("__pycache__")
    shutil.copytree(ROOT / "fedskew", tmp_path / "fedskew", ignore=ignored)
    shutil.copytree(ROOT / "conf", tmp_path / "fedskew" / "conf")
    refused = fedskew("run", "--dry-run", cwd=tmp_path, PYTHONPATH=str(tmp_path))
    assert refused.returncode == 2
    assert refused.stderr.count("\n") == 1
    assert all(word in refused.stderr for word in ("no checkout", "make install", "`fedskew simulate`"))
    works = fedskew("options", "held-back", cwd=tmp_path, PYTHONPATH=str(tmp_path))
    assert works.stdout.startswith("data.held-back"), works.stderr
    planned = fedskew("simulate", "--preset", "dmo", cwd=tmp_path, PYTHONPATH=str(tmp_path))
    assert "demo, demo-vit, ham10000" in planned.stderr, "its presets are there"


VALUES = {"preset": "demo", "set": "", "config": "", "data-dir": "", "output-dir": "/out"}


@pytest.mark.parametrize(
    ("cpus", "gpus", "cards", "told"),
    [
        (1, 0.0, 0, None),
        (4, 1.0, 1, None),
        (4, 0.25, 1, None),
        (5, 0.0, 0, "--cpus 5, but this machine has 4 CPU cores: give "),
        (1, 0.5, 0, "--gpus 0.5, but torch .* finds no GPU here: leave --gpus out"),
        (1, 2.0, 1, r"--gpus 2, .* 1"),
    ],
)
def test_what_the_machine_lacks_is_said_before_flower_waits_for_it(monkeypatch, cpus, gpus, cards, told):
    monkeypatch.setattr(checks.os, "cpu_count", lambda: 4)
    monkeypatch.setattr("torch.cuda.is_available", lambda: cards > 0)
    monkeypatch.setattr("torch.cuda.device_count", lambda: cards)
    request = RunRequest(VALUES, 4, cpus, gpus, "local-simulation")
    if told is None:
        check_machine(request)
    else:
        with pytest.raises(MachineError, match=told):
            check_machine(request)
    check_machine(RunRequest(VALUES, 4, 64, 8.0, "hospital"))  # real nodes have their own
