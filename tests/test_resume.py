"""Going on in a run folder: what it keeps, what it refuses by name, what it records, and that it harms nothing."""

import csv
import json
import logging
import shutil
from dataclasses import fields, is_dataclass, replace

import pytest
from builders import run_here, tiny_config
from flwr.app import Context, RecordDict
from typer.testing import CliRunner

import serverapp
from fedskew.apps import config_from_run, make_client_app, run_on, simulate
from fedskew.cli.main import app
from fedskew.config import Config, ConfigError, load_config
from fedskew.config.load import to_mapping
from fedskew.config.schema import MetadataColumn
from fedskew.demo.generator import generate
from fedskew.federation.grids import LocalGrid
from fedskew.federation.server import FederatedRun
from fedskew.learning import local
from fedskew.learning.datasets import open_data
from fedskew.learning.optimiser import learning_rate
from fedskew.runs.folder import RunFolder, RunFolderError
from fedskew.runs.reading import read_changes, read_split, recorded_nodes
from fedskew.runs.resume import differences, is_finished, node_count, open_checkpoint, resume_config
from fedskew.runs.starts import check_split, samples_hash
from fedskew.tools.compare import read_runs
from fedskew.tools.fairness import warnings_of

MAY_CHANGE = {
    "data.dir", "data.manifest", "data.cache-dir", "train.device", "train.threads", "federation.rounds",
    "federation.min-nodes", "federation.join-deadline", "federation.quorum", "federation.round-deadline",
    "federation.grace", "federation.max-missed-rounds", "run.threads", "run.eval-batch-size", "run.evaluate-every",
    "run.keep-checkpoints", "federation.max-weight-ratio", "federation.norm-bound", "federation.rollback",
    "federation.require-signatures", "run.report", "run.sinks",
}  # fmt: skip
EVERY_KEY = [
    f"{section.name}.{spec.name.replace('_', '-')}"
    for section in fields(Config)
    if is_dataclass(section.default_factory)
    for spec in fields(section.default_factory)
]


def other_value(key, config):
    """A valid value that a setting does not have."""
    section, name = key.replace("-", "_").split(".")
    spec = next(field for field in fields(getattr(config, section)) if field.name == name)
    value, choices = getattr(getattr(config, section), name), spec.metadata["choices"]
    if key == "model.metadata":
        return (MetadataColumn("origin", 0.1, ("a", "b")),)
    if choices:
        return next(choice for choice in choices if choice != value)
    if isinstance(value, bool):
        return not value
    if isinstance(value, tuple):
        return value[::-1]
    if isinstance(value, str):
        return {"prune.mlp-group": "width", "run.name": "foo", "run.sinks": "mlflow"}.get(key, "/elsewhere")
    step = 1 if isinstance(value, int) else 0.05
    high = spec.metadata["high"]
    return value + step if high is None or value + step <= high else value - step


@pytest.fixture
def copy(finished_run, tmp_path):
    """A copy of the finished run of two rounds and three nodes; `copy(1)` as it was after round 1."""

    def make(finished=2, name="copy"):
        path = tmp_path / name
        shutil.copytree(finished_run.path, path)
        for number in range(finished + 1, 3):
            shutil.rmtree(path / "checkpoints" / f"round-{number:04d}")
        return path

    return make


def everything(path):
    """Content and time of every file below a folder."""
    return {
        str(entry.relative_to(path)): (entry.read_bytes(), entry.stat().st_mtime_ns)
        for entry in sorted(path.rglob("*"))
        if entry.is_file() and entry.name != ".lock"
    }


def go_on(path, overrides="", nodes=3):
    return run_on(LocalGrid(make_client_app(), nodes), {"resume": str(path), "set": overrides})


def call(*words):
    return CliRunner().invoke(app, [str(word) for word in words])


def test_the_number_of_nodes_is_on_record(finished_run):
    assert read_split(finished_run.path)["nodes"] == recorded_nodes(finished_run.path) == 3


def test_the_number_of_nodes_of_an_earlier_versions_run_is_that_of_its_parts(copy):
    path = copy()
    split = read_split(path)
    del split["nodes"]
    (path / "split.json").write_text(json.dumps(split))
    assert recorded_nodes(path) == 3
    assert recorded_nodes(path / "best") is None


def test_nodes_with_data_of_their_own_are_not_counted(tmp_path, generated):
    sites = [generate(tmp_path / f"site-{i}", images=60, seed=i) for i in range(2)]
    grid = LocalGrid(make_client_app(), 2, node_configs={i + 1: {"data-dir": str(p)} for i, p in enumerate(sites)})
    config = tiny_config(data={"clients": "own"}, federation={"rounds": 1}, run={"output_dir": str(tmp_path)})
    path = run_here(config, grid=grid).path
    assert recorded_nodes(path) is None
    one = LocalGrid(make_client_app(), 1, node_configs={1: {"data-dir": str(sites[0])}})
    after = run_on(one, {"resume": str(path), "set": "federation.rounds=2"}).records()[-1]
    assert (after["round"], after["clients_ok"]) == (2, 1), "a hospital may stay away"


def test_a_resumed_simulation_has_the_nodes_of_its_run(copy, finished_run):
    path = copy(1)
    assert simulate({"resume": str(path)}).records()[-1]["clients_ok"] == 3
    assert (path / "model.safetensors").read_bytes() == (finished_run.path / "model.safetensors").read_bytes()


def test_flwr_run_is_given_the_nodes_of_the_run_that_it_resumes(copy):
    path = copy(1)
    for words in ((), ("--nodes", 3)):
        result = call("run", "--dry-run", "--resume", path, *words)
        assert "num-supernodes=3" in result.output, result.output
    assert call("run", "--dry-run", "--resume", path, "--connection", "hospital").exit_code == 0


@pytest.mark.parametrize("command", [("simulate",), ("run", "--dry-run")])
def test_another_number_of_nodes_is_refused_by_name(copy, command):
    path = copy(1)
    before = everything(path)
    result = call(*command, "--resume", path, "--nodes", 4)
    assert result.exit_code == 2
    assert f"--nodes 4, but {path} was begun with 3 nodes" in " ".join(result.output.split())
    assert everything(path) == before


def test_a_new_run_has_as_many_nodes_as_asked_for():
    assert [node_count("", asked) for asked in (None, 7)] == [4, 7]


@pytest.mark.parametrize("nodes", [2, 4])
def test_a_server_that_finds_another_number_of_nodes_says_what_to_give_flower(copy, nodes):
    path = copy(1)
    before = everything(path)
    with pytest.raises(RunFolderError, match=rf'3 nodes .* {nodes} are connected.*"num-supernodes=3"'):
        go_on(path, "federation.join-deadline=0", nodes=nodes)
    assert everything(path) == before


class Gathering(LocalGrid):
    """Nodes that connect one after the other."""

    def get_nodes(self):
        self.seen = min(3, getattr(self, "seen", 0) + 1)
        return list(super().get_nodes())[: self.seen]


def test_nodes_that_are_still_connecting_are_waited_for(copy, monkeypatch):
    monkeypatch.setattr("fedskew.federation.selection.POLL_SECONDS", 0.01)
    path = copy(1)
    assert run_on(Gathering(make_client_app(), 3), {"resume": str(path)}).records()[-1]["clients_ok"] == 3


@pytest.mark.parametrize("key", EVERY_KEY)
def test_only_a_closed_set_of_settings_may_change(finished_run, key):
    saved = load_config(file=finished_run.path / "config.yaml")
    section, name = key.replace("-", "_").split(".")
    value = other_value(key, saved)
    if value == "keep":  # of weights that know images alone
        saved = replace(saved, model=replace(saved.model, pretrained="weights.pth", image_only=True))
    wanted = replace(saved, **{section: replace(getattr(saved, section), **{name: value})})
    found = differences(saved, wanted)
    assert bool(found) == (key not in MAY_CHANGE)
    assert all(line.startswith(f"{key} was ") for line in found)


@pytest.mark.parametrize(
    "setting", ["train.lr=1e-4", "prune.criterion=none", "data.alpha=0.7", "data.partition=site", "run.name=other"]
)
def test_what_may_not_change_is_refused_with_both_values_and_what_may(copy, setting):
    path = copy(1)
    before = everything(path)
    key, _, value = setting.partition("=")
    section, name = key.split(".")
    old = to_mapping(load_config(file=path / "config.yaml"))[section][name]
    with pytest.raises(ConfigError) as refused:
        go_on(path, setting)
    said = str(refused.value)
    assert f"{key} was {old!r}, is" in said
    assert value.replace("1e-4", "0.0001") in said
    assert "Start a new run" in said
    assert "federation.round-deadline" in said
    assert everything(path) == before


def test_a_run_gets_more_rounds_never_fewer(copy):
    with pytest.raises(ConfigError, match=r"federation\.rounds was 2, is 1"):
        resume_config(copy(1), overrides="federation.rounds=1")


def test_a_resumed_run_stays_in_its_folder(copy, tmp_path):
    with pytest.raises(ConfigError, match="stays in its folder"):
        config_from_run({"resume": str(copy()), "output-dir": str(tmp_path / "other")})


@pytest.mark.parametrize("overrides", ["", "run.threads=2 federation.quorum=2"])
def test_resuming_a_finished_run_says_so_and_changes_nothing(copy, caplog, overrides):
    path = copy()
    (path / ".lock").unlink(missing_ok=True)
    before = everything(path)
    assert go_on(path, overrides, nodes=1).path == path
    assert everything(path) == before
    assert not (path / ".lock").exists()
    assert "is finished: all 2 rounds are done, and nothing was changed" in caplog.text
    result = call("run", "--resume", path)
    assert result.exit_code == 0
    assert "is finished: all 2 rounds" in " ".join(result.output.split())
    assert "flwr run" not in result.output, "no SuperLink is started for it"


@pytest.mark.parametrize("setting", ["prune.criterion=none", "model.drop-path=0.3", "run.seed=4"])
def test_a_finished_run_cannot_be_rewritten(copy, setting):
    path = copy()
    before = everything(path)
    result = call("simulate", "--resume", path, "--set", setting)
    assert result.exit_code == 2
    assert setting.partition("=")[0] in result.output
    assert everything(path) == before


def test_a_finished_run_whose_checkpoints_were_removed_stays_as_it_is(copy):
    path = copy()
    for checkpoint in (path / "checkpoints").iterdir():
        shutil.rmtree(checkpoint)
    before = everything(path)
    assert go_on(path).path == path
    with pytest.raises(RunFolderError, match="2 finished rounds, but its checkpoints are gone"):
        go_on(path, "federation.rounds=4")
    assert everything(path) == before


def test_a_run_that_is_running_is_refused_before_anything_is_written(copy):
    path = copy(1)
    before = everything(path)
    with RunFolder(path).locked(), pytest.raises(RunFolderError, match="another run is using"):
        go_on(path, "federation.quorum=2")
    assert everything(path) == before


def test_a_run_is_held_from_before_its_checkpoint_is_read(copy, monkeypatch):
    """Else a server that ends meanwhile has its last round done again."""
    path, held = copy(1), []

    def look(opened):
        with pytest.raises(RunFolderError, match="another run"), RunFolder(opened).locked():
            pass
        held.append(opened)
        raise KeyboardInterrupt

    monkeypatch.setattr("fedskew.apps.open_checkpoint", look)
    with pytest.raises(KeyboardInterrupt):
        go_on(path)
    assert held == [path]


@pytest.fixture(scope="module")
def extended(finished_run, tmp_path_factory):
    """A finished run of two rounds that was given two more, with another quorum; its log; the tasks' rounds."""
    path = tmp_path_factory.mktemp("extended") / "run"
    shutil.copytree(finished_run.path, path)
    said, asked = [], []

    class Keep(logging.Handler):
        def emit(self, entry):
            said.append(entry.getMessage())

    real = local.train

    def train(*args, rounds, **kwargs):
        asked.append((kwargs["round_number"], rounds))
        return real(*args, rounds=rounds, **kwargs)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(local, "train", train)
        logging.getLogger("flwr").addHandler(handler := Keep())
        go_on(path, "federation.rounds=4 federation.quorum=2")
        logging.getLogger("flwr").removeHandler(handler)
    return path, said, asked


def test_a_finished_run_goes_on_if_more_rounds_are_asked_for(extended, finished_run):
    path, _, asked = extended
    records = RunFolder(path).records()
    assert [record["round"] for record in records] == [0, 1, 2, 3, 4]
    assert records[:3] == finished_run.records()
    assert asked == [(3, 4)] * 3 + [(4, 4)] * 3, "the learning rate follows the curve of four rounds"
    assert json.loads((path / "summary.json").read_text())["rounds"] == 4
    assert is_finished(path, load_config(file=path / "config.yaml"))


def test_what_changed_is_recorded_with_the_round_from_which_it_holds(extended):
    path, said, _ = extended
    first, second = (json.loads(line) for line in (path / "starts.jsonl").read_text().splitlines())
    assert (first["round"], first["changes"]) == (0, [])
    assert (second["round"], second["device"]) == (3, "cpu")
    expected = [("federation.rounds", 2, 4), ("federation.quorum", 1, 2)]
    assert [(change["key"], change["old"], change["new"]) for change in second["changes"]] == expected
    assert [str(change) for change in read_changes(path)] == [
        "federation.rounds 2 → 4 from round 3", "federation.quorum 1 → 2 from round 3",
    ]  # fmt: skip
    assert load_config(file=path / "config.yaml").federation.quorum == 2
    assert "federation.rounds 2 → 4 from round 3" in said


def test_the_jump_of_the_learning_rate_is_said(extended):
    path, said, _ = extended
    config = load_config(file=path / "config.yaml").train
    (line,) = [line for line in said if "learning rate" in line]
    assert f"begins there at {learning_rate(config, 0.5):.3g}" in line, "two rounds of four are done"
    assert f"it was to be {learning_rate(config, 1.0):.3g}" in line, "two of two"


def test_summary_and_comparison_show_what_changed(extended, finished_run):
    path, said, _ = extended
    changes = json.loads((path / "summary.json").read_text())["changes"]
    assert changes[0] | {"time": ""} == {"round": 3, "key": "federation.rounds", "old": 2, "new": 4, "time": ""}
    assert "resumed: federation.quorum 1 → 2 from round 3" in said[-1] + said[-2] + said[-3]
    lines = warnings_of(read_runs([finished_run.path, path]))
    assert sum("resumed with other settings" in line for line in lines) == 1
    assert any("federation.rounds 2 → 4 from round 3" in line for line in lines)


def test_another_machine_is_recorded_too_and_another_place_is_no_news(copy, generated, monkeypatch):
    path = copy(1)
    lines = (path / "starts.jsonl").read_text().replace('"device": "cpu"', '"device": "H200"')
    (path / "starts.jsonl").write_text(lines)
    go_on(path, f"data.cache-dir={path.parent / 'cache'}")
    assert [str(change) for change in read_changes(path)] == ["device H200 → cpu from round 2"]
    kept = json.loads((path / "starts.jsonl").read_text().splitlines()[-1])["changes"]
    assert [change["key"] for change in kept] == ["data.cache-dir", "device"], "it is on record all the same"


def test_a_run_of_an_earlier_version_without_that_record_goes_on(copy):
    path = copy(1)
    (path / "starts.jsonl").unlink()
    go_on(path, "federation.grace=5")
    assert [str(change) for change in read_changes(path)] == ["federation.grace 0.0 → 5.0 from round 2"]


@pytest.fixture(scope="module")
def shared(tmp_path_factory):
    """A run of one round on a data set in a folder."""
    folder = tmp_path_factory.mktemp("shared")
    data = generate(folder / "data", images=160, seed=3)
    config = tiny_config(
        data={"source": "folder", "dir": str(data)}, federation={"rounds": 1}, run={"output_dir": str(folder)}
    )
    return data, run_here(config).path


def changed_copy(shared, tmp_path, change):
    """The data set elsewhere, with `change` made to every row of its table; the run's copy; overrides to resume it."""
    data, run = shared
    shutil.copytree(data, tmp_path / "data")
    shutil.copytree(run, tmp_path / "run")
    (table,) = (tmp_path / "data").glob("*metadata*")
    with table.open() as file:
        rows = [change(dict(row)) for row in csv.DictReader(file)]
    with table.open("w", newline="") as file:
        writer = csv.DictWriter(file, rows[0])
        writer.writeheader()
        writer.writerows(rows)
    return tmp_path / "run", f"data.dir={tmp_path / 'data'} federation.rounds=2"


def test_data_that_was_moved_is_the_same_data(shared, tmp_path):
    path, overrides = changed_copy(shared, tmp_path, lambda row: row)
    assert go_on(path, overrides).records()[-1]["round"] == 2
    assert [change.key for change in read_changes(path)] == ["federation.rounds"]


def test_data_with_other_metadata_or_labels_is_refused(shared, tmp_path):
    path, overrides = changed_copy(shared, tmp_path, lambda row: row | {"sex": "female"})
    before = everything(path)
    with pytest.raises(RunFolderError, match=r"data was .*data \(test .* labels or metadata differ.*it began with"):
        go_on(path, overrides)
    assert everything(path) == before


def test_metadata_and_labels_make_the_hash_but_not_where_an_image_lies(generated):
    samples = open_data(tiny_config().data, 32).samples
    reference = samples_hash(samples)
    moved = [replace(sample, image=f"elsewhere/{sample.image}") for sample in samples]
    assert samples_hash(moved) == reference
    for change in ({"sex": "x"}, {"age": 7.0}, {"label": "x"}, {"lesion_id": "x"}, {"localization": None}):
        assert samples_hash([replace(samples[0], **change), *samples[1:]]) != reference, change


def test_every_part_of_the_split_is_compared(copy):
    path = copy()
    split = read_split(path)
    check_split(path, split)
    parts = split["ids"]["parts"]
    swapped = split["ids"] | {"parts": [parts[1], parts[0], parts[2]]}
    with pytest.raises(RunFolderError, match="nodes' parts differ"):
        check_split(path, split | {"ids": swapped})
    for name, said in (("test", "test set"), ("open", "open data")):
        with pytest.raises(RunFolderError, match=f"splits otherwise: {said} differ"):
            check_split(path, split | {"ids": split["ids"] | {name: split["ids"][name][1:]}})
    with pytest.raises(RunFolderError, match="splits otherwise"):
        check_split(path, split | {"counts": split["counts"] | {"test": {}}})


def test_a_partition_that_is_another_one_is_found_even_if_the_configuration_says_the_same(copy, monkeypatch):
    path = copy(1)
    before = everything(path)
    config = load_config(file=path / "config.yaml")
    text = (path / "config.yaml").read_text().replace("partition: iid", "partition: dirichlet")
    (path / "config.yaml").write_text(text)
    with pytest.raises(RunFolderError, match="nodes' parts differ"):
        go_on(path)
    (path / "config.yaml").write_text(text.replace("partition: dirichlet", "partition: iid"))
    assert load_config(file=path / "config.yaml") == config
    assert {name: content for name, (content, _) in everything(path).items()} == {
        name: content for name, (content, _) in before.items()
    }


def test_runs_that_share_the_data_otherwise_are_told_apart(finished_run, tmp_path, generated):
    path = tmp_path / "other"
    shutil.copytree(finished_run.path, path)
    text = (path / "config.yaml").read_text().replace("partition: iid", "partition: dirichlet")
    (path / "config.yaml").write_text(text)
    split = read_split(path) | {"nodes": 5}
    (path / "split.json").write_text(json.dumps(split))
    lines = warnings_of(read_runs([finished_run.path, path]))
    assert any(line.startswith("the numbers of nodes differ: ") and line.endswith(": 5") for line in lines)
    assert any("ways to share the data differ" in line and "dirichlet, alpha 0.5" in line for line in lines)


def test_a_sweep_goes_on_in_a_folder_that_was_moved(copy, finished_run):
    """As its cells do: the study's configuration, with the place where the folder is now."""
    path = copy(1, name="cell-s0")
    config = load_config(file=path / "config.yaml")
    here = replace(config, run=replace(config.run, output_dir=str(path.parent), name=path.name))
    folder, checkpoint = open_checkpoint(path)
    FederatedRun(LocalGrid(make_client_app(), 3), here, folder, checkpoint).run()
    assert (path / "model.safetensors").read_bytes() == (finished_run.path / "model.safetensors").read_bytes()
    assert read_changes(path) == []
    assert load_config(file=path / "config.yaml").run.name == "cell-s0"


def test_a_sweep_begins_in_a_folder_that_it_made(tmp_path, generated):
    config = tiny_config(federation={"rounds": 1}, run={"output_dir": str(tmp_path), "name": "cell-s0"})
    folder = RunFolder(tmp_path / "cell-s0")
    (folder.path / "checkpoints").mkdir(parents=True)
    FederatedRun(LocalGrid(make_client_app(), 3), config, folder, None).run()
    assert recorded_nodes(folder.path) == 3
    assert json.loads((folder.path / "starts.jsonl").read_text())["round"] == 0


def test_flowers_server_says_what_is_wrong_in_one_line_of_its_own(copy, capsys):
    grid = LocalGrid(make_client_app(), 2)
    context = Context(1, 0, {}, RecordDict(), {"resume": str(copy(1)), "set": "federation.join-deadline=0"})
    with pytest.raises(RunFolderError, match="begun with 3 nodes"):
        serverapp.main(grid, context)
    (line,) = [line for line in capsys.readouterr().out.splitlines() if "error: " in line]
    assert line.startswith("fedskew: error: ")
    assert 'Give flwr run --federation-config "num-supernodes=3"' in line
