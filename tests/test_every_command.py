"""What every command has: a place in the help, one clear line for a mistake, and its traceback with `--debug`."""

from __future__ import annotations

import re

import pytest
import typer
from typer.testing import CliRunner

from fedskew.cli.main import COMMANDS, app

PLAIN = {"setup": "flwr is a file", "stop": "there is nothing that could be wrong"}
# of every command, what a person gets wrong; `text.txt` is a file that is nothing of ours
MISTAKES = (
    "run --preset dmo", "simulate --preset dmo", "options zzz", "watch nowhere", "report nowhere",
    "compare nowhere", "plot nowhere --out x.png", "participation nowhere", "plan nowhere", "focus nowhere --masks .",
    "predict text.txt text.txt", "serve text.txt --port 0", "evaluate text.txt", "export nowhere", "bench nowhere",
    "train --preset dmo", "prune nowhere", "prune", "manifest nowhere",
    "audit-split --metadata nowhere --split nowhere",
    "make-split --metadata nowhere --out x.csv", "credentials --out text.txt", "review text.txt", "bundle-hash nowhere",
    "sweep nowhere --out .", "reproduce table1 --scale tiny --out . --set a.b=1", "table nowhere",
    "records nowhere out", "site --node-config a=1", "doctor coordinator --superlink nowhere:x:y",
    "doctor site --superlink nowhere:x:y", "doctor data --data-dir . --preset dmo",
)  # fmt: skip


@pytest.fixture
def here(tmp_path, monkeypatch):
    """A working directory with a file in it that is nothing of ours."""
    (tmp_path / "text.txt").write_text("x")
    monkeypatch.chdir(tmp_path)
    return tmp_path


def call(*words):
    return CliRunner().invoke(app, list(words), env={"COLUMNS": "80"})


@pytest.mark.parametrize("mistake", MISTAKES)
def test_a_mistake_has_a_traceback_for_whoever_asks_and_for_nobody_else(here, own_homes, mistake):
    plain, debug = call(*mistake.split()), call(*mistake.split(), "--debug")
    assert (plain.exit_code, debug.exit_code) == (2, 2), plain.output + repr(plain.exception)
    assert "Traceback" not in plain.output
    assert "File" in debug.stderr, "where it comes from"
    said = [line for line in plain.stderr.splitlines() if line.startswith("fedskew: ")]
    assert said
    assert debug.stderr.splitlines()[-1] == plain.stderr.splitlines()[-1], "and the same message"


def test_no_command_is_forgotten():
    group = typer.main.get_command(app)
    assert {mistake.split()[0] for mistake in MISTAKES} | PLAIN.keys() == set(group.commands)


def test_the_help_groups_commands_by_task_and_gives_each_one_line_of_80_columns():
    page = call("--help").output
    lines = page.splitlines()
    assert max(map(len, lines)) <= 80
    panels = [found[1] for line in lines if (found := re.match(r"╭─ (.*?) ─+╮$", line))]
    assert panels == ["Options", *dict.fromkeys(panel for panel, _, _ in COMMANDS)]
    first = lines.index(next(line for line in lines if line.startswith(f"╭─ {panels[1]} ")))
    rows = [line for line in lines[first:] if line.startswith("│")]
    names = typer.main.get_command(app).commands
    assert sorted(row.split()[1] for row in rows) == sorted(names), "a line that goes on would have no name"
    assert not [row for row in rows if "…" in row]


def test_a_site_takes_debug_for_itself_and_leaves_the_rest_to_flower(monkeypatch):
    seen = []
    monkeypatch.setattr("fedskew.site.guard.run_site", seen.append)
    assert call("site", "--superlink", "a:1", "--debug", "--node-config", "b=1").exit_code == 0
    assert seen == [["--superlink", "a:1", "--node-config", "b=1"]]
