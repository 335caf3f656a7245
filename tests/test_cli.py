"""The command line: absolute paths in the command it builds, tables and JSON out, one clear line for a mistake."""

import json
import os
import shlex
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
import typer
from builders import MICRO
from flwr.common.config import parse_config_args
from typer.testing import CliRunner

from fedskew.apps import config_from_run
from fedskew.cli.errors import clear_errors
from fedskew.cli.flower import RunRequest, flower_command, flower_home, register_connection
from fedskew.cli.main import app
from fedskew.config import load_config
from fedskew.data.samples import DataError
from fedskew.errors import ExitCode
from fedskew.learning.train import TrainingError
from fedskew.runs.folder import RunFolder, RunFolderError
from fedskew.runs.predictions import read_predictions

SETTINGS = [f"model.name={MICRO}", "data.generated-images=160", "data.open=0.2", "federation.rounds=1", "run.threads=1"]


@pytest.fixture
def here(tmp_path, monkeypatch):
    """An empty working directory."""
    monkeypatch.chdir(tmp_path)
    return tmp_path


def call(*words):
    return CliRunner().invoke(app, [str(word) for word in words])


def fails_clearly(*words):
    """The one message of a command that a person has to mend; no traceback."""
    result = call(*words)
    assert result.exit_code == 2, result.output
    assert isinstance(result.exception, SystemExit)
    assert "Traceback" not in result.output
    return " ".join(result.output.split())


def planned(*words):
    """The `flwr run` command that would be run, and the run configuration that Flower would read in it."""
    result = call("run", "--dry-run", *words)
    assert result.exit_code == 0, result.output
    command = shlex.split(result.output.strip().splitlines()[-1])
    return command, parse_config_args([command[command.index("-c") + 1]])


def test_a_dry_run_prints_the_whole_command_and_runs_nothing(here):
    command, values = planned(
        "--preset", "ham10000-small", "--nodes", 6, "--data-dir", "data/ham", "--output-dir", "out"
    )
    app_folder = Path(__file__).resolve().parent.parent
    assert command[:5] == ["flwr", "run", str(app_folder), "local-simulation", "--stream"]
    assert values["preset"] == "ham10000-small"
    assert values["data-dir"] == str(here / "data/ham")
    assert values["output-dir"] == str(here / "out")
    federation = command[command.index("--federation-config") + 1]
    assert "num-supernodes=6" in federation
    assert "client-resources-num-cpus=1" in federation
    assert not list(here.iterdir())


def test_run_folders_lie_where_the_person_stands(here):
    _, values = planned()
    assert values["output-dir"] == str(here / "runs")
    assert values["preset"] == "demo"
    assert "run.name=" in values["set"]


@pytest.mark.parametrize(
    "folder", ["with space", "with'quote", "a=b", "ünïcode-é", "emoji-\U0001f600", "back\\slash", 'quo"te', "end\\"]
)
def test_any_path_reaches_flower_as_it_is(here, folder):
    (here / f"{folder}.yaml").write_text("")
    _, values = planned("--data-dir", folder, "--config", f"{folder}.yaml", "--output-dir", folder)
    assert values["data-dir"] == str(here / folder)
    assert values["config"] == str(here / f"{folder}.yaml")
    assert values["output-dir"] == str(here / folder)


@pytest.mark.parametrize(
    ("settings", "key", "expected"),
    [
        (["train.lr=3e-4", "prune.max-stage=2"], ("train", "lr"), 3e-4),
        (["model.classes=[nv,mel]"], ("model", "classes"), ("nv", "mel")),
        (["data.cache-dir='/a b/c'"], ("data", "cache_dir"), "/a b/c"),
        (['data.cache-dir="/a b/c"'], ("data", "cache_dir"), "/a b/c"),
        (["data.cache-dir=/a=b"], ("data", "cache_dir"), "/a=b"),
    ],
    ids=str,
)
def test_settings_reach_the_configuration_as_typed(here, settings, key, expected):
    _, values = planned(*(word for setting in settings for word in ("--set", setting)))
    assert getattr(getattr(config_from_run(values), key[0]), key[1]) == expected


def test_another_connection_gets_no_simulation_settings(here):
    command, _ = planned("--connection", "hospital")
    assert command[3] == "hospital"
    assert "--federation-config" not in command


def test_a_gpu_share_is_passed_on(here):
    command, _ = planned("--gpus", "0.25", "--cpus", "4")
    assert "client-resources-num-cpus=4 client-resources-num-gpus=0.25" in command[-1]


def test_resuming_passes_the_folder_and_no_preset(here, finished_run):
    shutil.copytree(finished_run.path, here / "runs" / "old")
    _, values = planned("--resume", "runs/old", "--set", "federation.rounds=30")
    assert values == {"resume": str(here / "runs/old"), "set": "federation.rounds=30"}


def test_only_declared_keys_are_passed_to_flower(here):
    declared = tomllib.loads((Path(__file__).parent.parent / "pyproject.toml").read_text())["tool"]["flwr"]["app"][
        "config"
    ]
    (here / "own.yaml").write_text("")
    _, values = planned("--config", "own.yaml", "--data-dir", "x", "--set", "run.seed=1")
    _, resumed = planned("--resume", "x", "--connection", "hospital")
    assert set(values) | set(resumed) <= set(declared)
    assert all(isinstance(value, str) for value in declared.values())


def test_simulate_runs_and_leaves_its_folder_where_the_person_stands(generated, here):
    words = [word for setting in [*SETTINGS, "run.name=mine"] for word in ("--set", setting)]
    result = call("simulate", "--preset", "demo", "--nodes", 2, *words)
    assert result.exit_code == 0, result.output
    records = (here / "runs" / "mine" / "metrics.jsonl").read_text().splitlines()
    assert json.loads(records[-1])["clients_ok"] == 2


def test_compare_prints_the_table(dense_run, finished_run):
    result = call("compare", dense_run.path, finished_run.path, "--markdown")
    assert result.exit_code == 0
    lines = result.output.splitlines()
    assert lines[0].startswith("|  | dense s0")
    share = finished_run.records()[-1]["parameters"] / dense_run.records()[-1]["parameters"]
    assert f"({share:.1%})" in result.output
    assert "| difference to dense s0 (round 2) | skewness s0 (round 2) |" in lines
    assert "no difference seen" in result.output
    assert result.stdout.startswith("|")
    assert "differ" not in result.stderr, "same split, nodes, seed and rounds"
    assert "Parameters" in call("compare", dense_run.path, finished_run.path, "--best").output


def test_evaluate_prints_json(finished_run, generated):
    result = call("evaluate", finished_run.path, "--data-dir", generated, "--all", "--json")
    assert result.exit_code == 0, result.output
    found = json.loads(result.stdout)
    assert (found["examples"], found["split"]) == (160, "all")


def test_compare_warns_beside_the_table_not_in_it(dense_run, finished_run, here):
    shutil.copytree(finished_run.path, here / "other")
    (here / "other" / "predictions.npz").unlink()
    records = (here / "other" / "metrics.jsonl").read_text().splitlines()[:2]
    (here / "other" / "metrics.jsonl").write_text("\n".join(records) + "\n")
    result = call("compare", dense_run.path, here / "other", "--markdown")
    assert result.exit_code == 0
    said = " ".join(result.stderr.split())
    assert "fedskew: the finished rounds differ: dense s0 (round 2): 2, skewness s0 (round 1): 1" in said
    assert "fedskew: skewness s0 (round 1) is unfinished: 1 of 2 rounds" in said
    assert "fedskew: no paired differences between dense s0 (round 2) and skewness s0 (round 1): " in said
    assert all(len(line) <= 80 for line in result.stderr.splitlines() if str(here) not in line)
    assert "fedskew:" not in result.stdout


def test_evaluate_saves_predictions_of_the_runs_own_data(finished_run, generated, here):
    result = call("evaluate", finished_run.path, "--predictions", "own.npz", "--json")
    assert result.exit_code == 0, result.output
    found = read_predictions(here / "own.npz")
    assert len(found.images) == json.loads(result.stdout)["examples"]


def test_plan_shows_what_a_step_would_remove_and_removes_nothing(finished_run, generated, tmp_path):
    before = (finished_run.path / "model.safetensors").read_bytes()
    place = tmp_path / "a place with spaces"
    place.symlink_to(generated, target_is_directory=True)
    result = call("plan", finished_run.path, "--data-dir", place, "--set", "prune.criterion=l1-norm prune.rule=share")
    assert result.exit_code == 0, result.output
    assert "units would go; left:" in result.output
    assert (finished_run.path / "model.safetensors").read_bytes() == before


def test_options_lists_every_setting():
    result = call("options")
    assert result.exit_code == 0
    for name in ("train.lr", "prune.reading", "federation.round-deadline", "run.best-metric"):
        assert name in result.output


def test_options_of_that_name_come_before_those_that_mention_it():
    shown = [line.split(" = ")[0] for line in call("options", "rounds").stdout.splitlines() if " = " in line]
    assert shown[:3] == ["federation.rounds", "train.distil-rounds", "federation.max-missed-rounds"]
    assert "train.warmup" in shown, "`share of all rounds spent warming up`"
    assert "next: fedskew run --set federation.rounds=VALUE" in call("options", "rounds").output


CLEAR = [
    (("simulate", "--preset", "dmo"), ("dmo", "demo")),
    (("simulate", "--set", "train.ler=1"), ("train.ler", "train.lr")),
    (("simulate", "--set", "train.lr=fast"), ("train.lr", "fast")),
    (("simulate", "--set", "nonsense"), ("section.key=value",)),
    (("simulate", "--config", "missing.yaml"), ("missing.yaml", "does not exist")),
    (("simulate", "--data-dir", "nowhere"), ("nowhere", "does not exist")),
    (("simulate", "--preset", "ham10000-small"), ("data.dir",)),
    (("simulate", "--resume", "nowhere"), ("nowhere", "no run folder")),
    (("simulate", "--set", "model.name=swin_v9"), ("model.name", "swin_v9")),
    (("simulate", "--set", "model.image-size=30"), ("30", "patch")),
    (("simulate", "--set", "model.pretrained=/nowhere.pth", "--set", f"model.name={MICRO}"), ("/nowhere.pth", "exist")),
    (("compare", "nowhere"), ("nowhere", "no run folder")),
    (("evaluate", "nowhere", "--data-dir", "."), ("nowhere", "neither")),
    (("plan", "nowhere", "--data-dir", "."), ("nowhere", "no run folder")),
]


@pytest.mark.parametrize(("words", "told"), CLEAR, ids=lambda words: " ".join(words)[:40])
def test_what_a_person_can_mend_is_one_clear_message(generated, here, words, told):
    output = fails_clearly(*words, *(("--set", "data.generated-images=160") if words[0] == "simulate" else ()))
    assert all(word in output for word in told), output
    assert output.count("fedskew: ") == 1


def test_a_folder_that_is_no_data_set_is_said(finished_run, here):
    assert "empty" in fails_clearly("evaluate", finished_run.path, "--data-dir", here)
    (here / "model.safetensors").write_bytes(b"x")
    assert "cannot be read as a model" in fails_clearly("evaluate", here / "model.safetensors", "--data-dir", here)


@pytest.mark.parametrize("error", [TrainingError("lower train.lr"), DataError("no images"), RunFolderError("full")])
def test_every_error_of_ours_is_a_message(capsys, error):
    with pytest.raises(typer.Exit) as end, clear_errors():
        raise error
    assert end.value.exit_code == 2
    assert capsys.readouterr().err == f"fedskew: {error}\n"


@pytest.mark.parametrize("error", [ValueError("a fault of ours"), RuntimeError("torch"), KeyError("x")])
def test_any_other_error_is_a_fault_and_keeps_its_traceback(error):
    with pytest.raises(type(error)), clear_errors():
        raise error


def test_a_faulty_request_is_refused_before_flower_is_started(here):
    for words in (("--preset", "dmo"), ("--set", "train.ler=1"), ("--config", "missing.yaml")):
        output = fails_clearly("run", "--dry-run", *words)
        assert output.startswith("fedskew: ")


@pytest.fixture
def flower(tmp_path, monkeypatch):
    monkeypatch.setenv("FLWR_HOME", str(tmp_path / "flwr"))
    return tmp_path / "flwr" / "config.toml"


def test_registering_adds_the_connection_once(flower):
    assert "added" in register_connection()
    first = flower.read_text()
    assert tomllib.loads(first)["superlink"]["local-simulation"]["address"] == ":local:"
    assert "already" in register_connection()
    assert flower.read_text() == first
    assert flower_home() == flower.parent


@pytest.mark.parametrize("ending", ["\n", "", "\n\n# the end"])
def test_registering_keeps_a_persons_other_connections(flower, ending):
    flower.parent.mkdir()
    mine = '# mine\n[superlink]\ndefault = "hospital"\n\n[superlink.hospital]\naddress = "host:8000"  # behind a proxy'
    flower.write_text(mine + ending)
    register_connection()
    text = flower.read_text()
    assert text.startswith(mine + ending)
    connections = tomllib.loads(text)["superlink"]
    assert connections["hospital"]["address"] == "host:8000"
    assert connections["default"] == "hospital"
    assert connections["local-simulation"]["address"] == ":local:"
    register_connection()
    assert flower.read_text() == text


def test_the_command_starts_without_loading_torch():
    code = "import sys; import fedskew.cli.main; sys.exit('torch' in sys.modules or 'flwr' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False, env=os.environ).returncode == 0


def test_the_command_of_a_preset_loads_that_preset(here):
    values = {"preset": "paper", "set": "", "config": "", "data-dir": "", "output-dir": "/out"}
    command = flower_command(RunRequest(values, 6, 1, 0.0, "local-simulation"), "name")
    config = config_from_run(parse_config_args([command[command.index("-c") + 1]]))
    paper = load_config("paper")
    assert (config.run.name, config.run.output_dir) == ("name", "/out")
    assert (config.prune, config.train, config.federation) == (paper.prune, paper.train, paper.federation)


def test_a_reader_that_has_seen_enough_is_no_failure():
    """`fedskew options | head -1` ended with 1 where `head` was faster."""
    read, write = os.pipe()
    os.close(read)
    command = [sys.executable, "-m", "fedskew", "options"]
    with os.fdopen(write, "wb") as closed:
        done = subprocess.run(command, stdout=closed, stderr=subprocess.PIPE, text=True, check=False)
    assert (done.returncode, "Traceback" in done.stderr, "BrokenPipe" in done.stderr) == (0, False, False)


def test_a_misspelt_command_is_suggested_once():
    assert call("rnu").stderr.count("Did you mean 'run'?") == 1


def test_a_setting_that_nothing_matches_has_a_remedy():
    done = call("options", "zzz")
    assert done.exit_code == 2
    assert "no setting matches 'zzz'; `fedskew options` lists all of them" in done.stderr


def test_weights_are_not_fetched_for_a_run_without_data(here, monkeypatch):
    monkeypatch.setattr("fedskew.federation.server.initial_model", lambda *_: pytest.fail("weights were fetched"))
    for words in ((), ("--data-dir", "nowhere")):
        done = call("simulate", "--preset", "ham10000", *words)
        assert done.exit_code == 2, done.output


@pytest.mark.parametrize("early", [False, True])
def test_a_disk_that_is_full_in_the_middle_is_a_failed_run(here, generated, monkeypatch, early):
    """It ended with the exit code of a command that has to be mended, and nothing done."""
    real = RunFolder.finish_round

    def full(folder, number, *words, **more):
        if number == (0 if early else 1):
            raise RunFolderError("round 1 could not be saved: the disk is full")
        return real(folder, number, *words, **more)

    monkeypatch.setattr(RunFolder, "finish_round", full)
    settings = f"model.name={MICRO} data.generated-images=160 data.open=0.2 federation.rounds=1 run.name=mine"
    done = call("simulate", "--nodes", "2", "--set", settings)
    assert done.exit_code == (ExitCode.USER if early else ExitCode.FAILED)
    assert "the disk is full" in done.stderr
    assert ("next: fedskew simulate --resume runs/mine" in done.stderr) is not early
