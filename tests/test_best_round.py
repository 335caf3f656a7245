"""Whole runs: `best/` follows what judges the rounds, across resuming and rounds without evaluation."""

import json
import shutil
from dataclasses import replace

import pytest
from builders import run_here, tiny_config
from flwr.app import MessageType, MetricRecord

from fedskew.apps import make_client_app
from fedskew.config import ConfigError
from fedskew.federation.grids import LocalGrid
from fedskew.federation.server import FederatedRun
from fedskew.learning.datasets import open_data, split_server
from fedskew.learning.server_data import ServerData
from fedskew.model.modelfile import read_model
from fedskew.runs.predictions import read_predictions
from fedskew.runs.resume import open_checkpoint, resume_config
from fedskew.runs.round_table import round_heading, round_line


@pytest.fixture
def told(monkeypatch):
    """Let the server's evaluations say what a test wants: `told(held_back={1: 0.3}, test={1: 0.9})` by round."""
    real = ServerData.evaluate

    def tell(held_back, test):
        def evaluate(self, state, arch, number=-1, **known):
            found = real(self, state, arch, number, **known)
            return replace(
                found,
                held_back=found.held_back | {"balanced_accuracy": held_back[number]},
                metrics=found.metrics | {"balanced_accuracy": test[number]},
            )

        monkeypatch.setattr(ServerData, "evaluate", evaluate)

    return tell


def config_in(tmp_path, **overrides):
    overrides["run"] = {"output_dir": str(tmp_path), "keep_checkpoints": 9, **overrides.get("run", {})}
    return tiny_config(**overrides)


def assert_best_is(folder, number):
    """Model, predictions and summary of `best/` are those of a round."""
    best = (folder.path / "best" / "model.safetensors").read_bytes()
    assert best == (folder.path / f"checkpoints/round-{number:04d}/model.safetensors").read_bytes()
    assert read_predictions(folder.path / "best").round_number == number
    summary = json.loads((folder.path / "summary.json").read_text())
    assert summary["best"]["round"] == number
    return summary["best"]


def go_on(folder, overrides=""):
    """Resume a run from its last checkpoint."""
    opened, checkpoint = open_checkpoint(folder.path)
    config = resume_config(folder.path, overrides=overrides)
    return FederatedRun(LocalGrid(make_client_app(), 3), config, opened, checkpoint).run()


def words(caplog):
    """What was logged, however its lines were wrapped."""
    return " ".join(" ".join(caplog.messages).split())


def test_the_best_round_is_chosen_on_held_back_images_not_on_the_test_set(generated, tmp_path, told, caplog):
    told(held_back={0: 0.9, 1: 0.2, 2: 0.6, 3: 0.5}, test={0: 0.1, 1: 0.8, 2: 0.3, 3: 0.7})
    folder = run_here(config_in(tmp_path, federation={"rounds": 3}))
    best = assert_best_is(folder, 2)
    assert best["chosen_by"] == {"source": "held_back", "metric": "balanced_accuracy", "value": 0.6}
    assert best["balanced_accuracy"] == 0.3
    assert [r["selection"]["value"] for r in folder.records()] == [0.9, 0.2, 0.6, 0.5]
    assert "judged by balanced accuracy on held-back open images" in caplog.text
    best_round = "best round: 2, balanced accuracy 0.300; chosen by balanced accuracy on held-back open images (0.600)"
    assert best_round in words(caplog)
    starred = [line for line in caplog.messages if line.endswith("*")]
    assert [line.split("/")[0].strip() for line in starred] == ["1", "2"]


def claiming(claims):
    """Nodes that say of their validation images what a test wants: balanced accuracies by round, one a node."""
    app, asked = make_client_app(), []

    def client(message, context):
        reply = app(message, context)
        if message.metadata.message_type == MessageType.EVALUATE:
            number, node = message.content["config"]["server-round"], context.node_config["partition-id"]
            asked.append(number)
            value = claims[number][node]
            told = {key: v for key, v in reply.content["metrics"].items() if key != "balanced_accuracy"}
            reply.content["metrics"] = MetricRecord(told | ({} if value is None else {"balanced_accuracy": value}))
        return reply

    return client, asked


def test_the_best_round_is_chosen_by_the_nodes_if_they_evaluate(generated, tmp_path, told, caplog):
    told(held_back={0: 0.9, 1: 0.9, 2: 0.1}, test={0: 0.9, 1: 0.9, 2: 0.1})
    client, _ = claiming({1: (0.1, 0.2, 0.3), 2: (0.3, 0.4, 0.5)})
    config = config_in(tmp_path, federation={"evaluate_clients": True})
    folder = run_here(config, grid=LocalGrid(client, 3))
    chosen = assert_best_is(folder, 2)["chosen_by"]
    last = folder.records()[-1]
    counts = [last["nodes"][f"partition-{i}"]["validation-num-examples"] for i in range(3)]
    mean = sum(n * v for n, v in zip(counts, (0.3, 0.4, 0.5), strict=True)) / sum(counts)
    assert chosen["source"] == "validation"
    assert chosen["value"] == pytest.approx(mean, rel=1e-6)
    assert folder.records()[0]["selection"]["value"] is None, "no node has seen round 0"
    assert "chosen by balanced accuracy on the nodes' validation images" in words(caplog)


def test_a_metric_is_averaged_over_the_nodes_that_tell_it(generated, tmp_path):
    client, _ = claiming({1: (None, 0.2, 0.6)})
    config = config_in(tmp_path, federation={"evaluate_clients": True, "rounds": 1})
    last = run_here(config, grid=LocalGrid(client, 3)).records()[-1]
    counts = [last["nodes"][f"partition-{i}"]["validation-num-examples"] for i in range(3)]
    expected = (0.2 * counts[1] + 0.6 * counts[2]) / (counts[1] + counts[2])
    assert last["validation"]["balanced_accuracy"] == pytest.approx(expected, rel=1e-6)
    accuracies = [last["nodes"][f"partition-{i}"]["validation-accuracy"] for i in range(3)]
    mean = sum(n * a for n, a in zip(counts, accuracies, strict=True)) / sum(counts)
    assert last["validation"]["accuracy"] == pytest.approx(mean, rel=1e-5)
    assert "auroc_macro" in last["validation"]


def test_where_no_round_can_be_judged_the_last_is_published_and_said_to_be(generated, tmp_path, caplog):
    client, _ = claiming({1: (None,) * 3, 2: (None,) * 3})
    config = config_in(tmp_path, federation={"evaluate_clients": True})
    folder = run_here(config, grid=LocalGrid(client, 3))
    assert assert_best_is(folder, 2)["chosen_by"] is None
    assert "no round could be judged by balanced accuracy on the nodes' validation images" in caplog.text
    assert "best/ is the last" in caplog.text


def test_a_resumed_run_chooses_as_an_undisturbed_one(generated, tmp_path, told):
    told(held_back={0: 0.9, 1: 0.6, 2: 0.5, 3: 0.4, 4: 0.7}, test=dict.fromkeys(range(5), 0.5))
    folder = run_here(config_in(tmp_path, federation={"rounds": 2}))
    assert_best_is(folder, 1)
    assert_best_is(go_on(folder, "federation.rounds=3"), 1)
    assert_best_is(go_on(folder, "federation.rounds=4"), 4)
    best = json.loads((folder.path / "checkpoints/round-0004/state.json").read_text())["progress"]["best"]
    assert best == {"round": 4, "source": "held_back", "metric": "balanced_accuracy", "value": 0.7}


@pytest.mark.parametrize("setting", ["run.best-metric=auroc_macro", "federation.evaluate-clients=true"])
def test_what_chooses_the_best_round_stays_the_same_for_all_rounds(finished_run, setting):
    with pytest.raises(ConfigError, match=setting.partition("=")[0]):
        resume_config(finished_run.path, overrides=setting)


@pytest.fixture(scope="module")
def sparse(generated, tmp_path_factory):
    """Four rounds of which 0, 3 and 4 are evaluated, with the nodes' evaluations; and the rounds they were asked in."""
    client, asked = claiming({number: (0.1 * number,) * 3 for number in range(5)})
    config = config_in(
        tmp_path_factory.mktemp("runs"),
        federation={"rounds": 4, "evaluate_clients": True}, run={"evaluate_every": 3},
    )  # fmt: skip
    return run_here(config, grid=LocalGrid(client, 3)), asked


def test_rounds_without_evaluation_are_recorded_without_metrics(sparse):
    folder, asked = sparse
    records = folder.records()
    assert [r["round"] for r in records] == [0, 1, 2, 3, 4]
    assert [r["round"] for r in records if r["accuracy"] is not None] == [0, 3, 4], "the last always"
    assert sorted(asked) == [3] * 3 + [4] * 3, "nodes are spared too"
    for record in (records[1], records[2]):
        metrics = ("accuracy", "recall", "auroc", "support", "loss", "held_back", "validation")
        assert all(record[key] is None for key in metrics)
        assert record["selection"]["value"] is None
        assert record["parameters"] > 0
        assert record["train_loss"] > 0
    assert set(records[1]) == set(records[3]), "the same keys in every line"
    assert records[4]["bytes_down_total"] == sum(r["bytes_down"] for r in records)
    assert_best_is(folder, 4)


def test_a_line_of_the_log_has_a_dash_where_nothing_was_evaluated(sparse):
    records = sparse[0].records()
    config = resume_config(sparse[0].path)
    (line,) = round_line(records[1], config, 10.0)
    assert line.split()[:4] == ["1/4", "-", "-", "-"]
    assert line.split()[-1] == "-"
    (full,) = round_line(records[4], config, 10.0)
    assert full.split()[1] == f"{records[4]['accuracy']:.3f}"
    assert full.endswith("0.400*")
    old = {key: value for key, value in records[4].items() if key != "selection"}
    assert round_line(old, config, 10.0)[0].split()[-1] == "-", "a record of an earlier version"
    assert len(line) == len(full) - 1, "columns stay in line"
    assert round_line(records[0], config, 10.0)[0] == round_heading(config)


def test_evaluating_less_often_changes_no_model(sparse, tmp_path):
    whole = run_here(config_in(tmp_path, federation={"rounds": 4}))
    weights = [(folder.path / "model.safetensors").read_bytes() for folder in (whole, sparse[0])]
    assert weights[0] == weights[1]


def test_a_run_killed_between_evaluations_ends_as_an_undisturbed_one(sparse, tmp_path):
    path = tmp_path / "run"
    shutil.copytree(sparse[0].path, path)
    for number in (3, 4):
        shutil.rmtree(path / "checkpoints" / f"round-000{number}")
    folder, checkpoint = open_checkpoint(path)
    assert checkpoint.round_number == 2
    client, _ = claiming({number: (0.1 * number,) * 3 for number in range(5)})
    FederatedRun(LocalGrid(client, 3), resume_config(path), folder, checkpoint).run()
    for name in ("model.safetensors", "predictions.npz", "best/model.safetensors", "best/predictions.npz"):
        assert (path / name).read_bytes() == (sparse[0].path / name).read_bytes(), name


def test_a_run_that_stops_below_its_quorum_is_evaluated_where_it_stops(generated, tmp_path):
    config = config_in(
        tmp_path,
        federation={"rounds": 9, "quorum": 5, "max_missed_rounds": 2, "min_nodes": 1}, run={"evaluate_every": 9},
    )  # fmt: skip
    folder = run_here(config)
    assert [r["round"] for r in folder.records() if r["accuracy"] is not None] == [0, 2]
    summary = json.loads((folder.path / "summary.json").read_text())
    assert (summary["rounds"], summary["final"]["round"]) == (2, 2)
    assert "2 rounds in a row" in summary["stopped"]


def test_the_summary_tells_recall_with_the_number_of_images(finished_run):
    final = json.loads((finished_run.path / "summary.json").read_text())["final"]
    last = finished_run.records()[-1]
    assert final["support"] == last["support"]
    assert sum(final["support"].values()) == final["examples"] == last["examples"]
    for key in ("recall", "auroc", "expected_calibration_error", "melanoma_specificity"):
        assert final[key] == last[key]


def test_what_is_held_back_is_on_record(finished_run):
    split = json.loads((finished_run.path / "split.json").read_text())
    assert 0 < len(split["held_back"]) < len(split["ids"]["open"])
    assert set(split["held_back"]) < set(split["ids"]["open"])
    assert finished_run.records()[-1]["held_back"]["examples"] == len(split["held_back"])


def test_what_a_record_says_of_held_back_images_is_of_the_model_that_was_pruned(finished_run):
    config, records = tiny_config(), finished_run.records()
    assert records[-1]["parameters"] < records[-2]["parameters"], "the case is worth testing"
    data = open_data(config.data, 32)
    arch, state = read_model(finished_run.path / "model.safetensors")
    found = ServerData(config, data, split_server(data, config.data)).metrics(state, arch)
    for name in ("loss", "balanced_accuracy", "accuracy"):
        assert records[-1]["held_back"][name] == pytest.approx(found[name], rel=1e-5), name


def test_the_saved_predictions_give_the_recorded_metrics_again(finished_run):
    found, last = read_predictions(finished_run.path), finished_run.records()[-1]
    split = json.loads((finished_run.path / "split.json").read_text())
    assert found.images.tolist() == split["ids"]["test"]
    assert found.round_number == 2
    assert (found.probabilities.argmax(1) == found.labels).mean() == last["accuracy"]
    assert found.classes == read_model(finished_run.path / "model.safetensors")[0].classes
    lesions = dict(zip(found.images, found.lesions, strict=True))
    assert len(set(lesions.values())) < len(lesions), "lesions, not images again"
