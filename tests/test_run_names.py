"""One rule names the folders of all runs; `fedskew run` and Flower agree on it, and on what is in the folder."""

import json
import shlex
import shutil
from pathlib import Path

import pytest
from flwr.common.config import parse_config_args
from typer.testing import CliRunner

from fedskew.apps import config_from_run
from fedskew.cli import follow
from fedskew.cli.main import app
from fedskew.cli.superlink import OwnSuperLink
from fedskew.config import ConfigError, load_config
from fedskew.runs.folder import RunFolderError
from fedskew.runs.resume import new_folder, planned_folder, run_name


@pytest.fixture
def here(tmp_path, monkeypatch):
    """An empty working directory."""
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture
def old(here, finished_run):
    """`runs/old`, a finished run of two rounds."""
    shutil.copytree(finished_run.path, here / "runs" / "old")
    return Path("runs/old")


@pytest.fixture
def noon(monkeypatch):
    monkeypatch.setattr("fedskew.runs.resume.time.strftime", lambda _: "20260101-120000")


def call(*words):
    return CliRunner().invoke(app, [str(word) for word in words])


def planned(*words):
    """The configuration that the server would read out of the command of `fedskew run`."""
    result = call("run", "--dry-run", *words)
    assert result.exit_code == 0, result.output
    command = shlex.split(result.output.strip().splitlines()[-1])
    return config_from_run(parse_config_args([command[command.index("-c") + 1]]))


@pytest.mark.parametrize("name", ["mine", "007", "two words", "ünïcode", "it's"])
def test_a_chosen_name_reaches_flower_as_it_is(here, name):
    config = planned("--set", f"run.name={shlex.quote(name)}", "--set", "run.seed=3")
    assert (config.run.name, config.run.seed) == (name, 3)
    assert new_folder(config).path == here / "runs" / name


def test_a_name_out_of_a_persons_own_file_counts_as_well(here):
    (here / "own.yaml").write_text("run: {name: mine}\n")
    assert planned("--config", "own.yaml").run.name == "mine"


def test_one_rule_names_the_folders_of_all_runs(here, noon):
    settings = ["--set", "prune.criterion=random", "--set", "run.seed=3"]
    expected = "20260101-120000-ham10000-small-random-seed3"
    assert planned("--preset", "ham10000-small", *settings).run.name == expected
    bare = config_from_run({"preset": "ham10000-small", "set": "prune.criterion=random run.seed=3"})
    assert run_name(bare) == expected
    (here / "runs" / expected).mkdir(parents=True)
    again = planned("--preset", "ham10000-small", *settings)
    assert again.run.name == f"{expected}-2", "two runs in one second"


def test_the_folder_that_is_made_is_the_one_that_was_planned(here, noon):
    config = load_config("demo", overrides="run.output-dir=out")
    for _ in range(3):
        folder = planned_folder(config)
        assert new_folder(config).path == folder


def test_a_chosen_name_that_is_taken_is_refused_where_it_is_planned_and_where_it_is_made(here):
    config = load_config("demo", overrides="run.output-dir=out run.name=mine")
    new_folder(config)
    for make in (planned_folder, new_folder):
        with pytest.raises(RunFolderError, match=r"out/mine is there already; .*resume=.*run\.name"):
            make(config)


@pytest.mark.parametrize("name", ["a/b", "/abs", "..", ".", "a\nb"])
def test_a_name_is_no_path(name):
    with pytest.raises(ConfigError, match=r"run\.name is .*run\.output-dir"):
        load_config("demo", overrides=f"run.name={shlex.quote(name)}")


@pytest.mark.parametrize("words", [("--output-dir", "out"), ("--set", "run.output-dir=out")])
def test_run_folders_lie_where_a_person_wants_them(here, words):
    assert planned(*words).run.output_dir == str(here / "out")


def test_a_run_on_another_machine_may_be_resumed_from_here(here):
    result = call("run", "--dry-run", "--resume", "/over/there", "--connection", "hospital")
    assert result.exit_code == 0
    assert "/over/there" in result.output


@pytest.fixture
def no_flower(monkeypatch):
    """Commands that would have been run; Flower's exit code is 0, also of a run that failed."""
    calls = []
    monkeypatch.setattr(OwnSuperLink, "start", lambda *_: None)
    monkeypatch.setattr(follow.Watch, "follow", lambda _, command, environment: calls.append(command))
    return calls


def test_a_resumed_run_that_fails_is_not_taken_for_its_earlier_end(old, no_flower):
    result = call("run", "--resume", old, "--set", "federation.rounds=3")
    assert len(no_flower) == 1
    assert result.exit_code == 1
    assert "the run was not started" in result.output
    assert f"what it saved is in {old.resolve()}" in result.output
    assert "after 2 rounds" not in result.output


@pytest.mark.parametrize("words", [(), ("--dry-run",), ("--supervise",)])
def test_a_finished_run_is_not_given_to_flower(old, no_flower, words):
    result = call("run", "--resume", old, *words)
    assert (result.exit_code, no_flower) == (0, [])
    assert "is finished: all 2 rounds are done" in result.stderr
    told = call("run", "--resume", old, "--json", *words)
    assert json.loads(told.stdout)["rounds"] == 2


def test_a_supervised_simulation_has_as_many_nodes_as_asked_for(here, no_flower, monkeypatch):
    given = []
    monkeypatch.setattr(follow, "supervise", lambda commands, values, folder: given.append((commands, folder)) or 0)
    assert call("run", "--supervise", "--nodes", 6, "--set", "run.name=mine").exit_code == 0
    ((commands, folder),) = given
    assert "num-supernodes=6" in commands.flower.federation
    assert folder == here / "runs" / "mine"
