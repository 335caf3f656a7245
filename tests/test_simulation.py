"""A federated run in one process: it shrinks the model, records every round, and repeats bit for bit."""

import itertools
import json

import numpy as np
import pytest
from builders import IMAGES, run_here, tiny_config
from safetensors.numpy import load_file

from fedskew.apps import make_client_app, simulate
from fedskew.config import ConfigError, load_config
from fedskew.data.samples import DataError
from fedskew.federation.grids import LocalGrid
from fedskew.learning import local
from fedskew.learning.datasets import node_data, open_data, split_server
from fedskew.learning.initial import initial_model
from fedskew.learning.server_data import ServerData
from fedskew.learning.train import TrainResult
from fedskew.model import cost
from fedskew.model.codec import architecture_from_json
from fedskew.model.modelfile import load_model, read_model

EVERY_ROUND = {
    "round", "accuracy", "f1_macro", "balanced_accuracy", "auroc_macro", "recall", "loss", "parameters", "macs",
    "macs_total", "model_bytes", "memory_bytes", "dense_parameters", "dense_macs", "dense_macs_total",
    "dense_memory_bytes", "bytes_down", "bytes_up", "bytes_down_total", "bytes_up_total", "clients_ok",
    "clients_failed", "failed", "kept_model", "train_loss", "nodes", "notes", "seconds", "seconds_training",
    "seconds_scoring", "seconds_evaluation", "given_back", "blocks", "auroc", "support", "examples", "held_back",
    "selection", "expected_calibration_error", "melanoma_specificity", "rolled_back", "no_effect", "limited", "norms",
    "strangers",
}  # fmt: skip
EVERY_BLOCK = {"stage", "block", "heads_before", "heads_after", "hidden_before", "hidden_after"}


@pytest.fixture
def run(generated, tmp_path):
    """Run a configuration in a fresh folder; returns the folder and its records."""

    def start(nodes=3, grid=None, **overrides):
        overrides["run"] = {"output_dir": str(tmp_path), **overrides.get("run", {})}
        folder = run_here(tiny_config(**overrides), nodes, grid=grid)
        return folder, folder.records()

    return start


def tensors(folder, sub=""):
    return load_file(folder.path / sub / "model.safetensors")


def test_the_global_model_shrinks_and_what_is_saved_is_what_is_recorded(finished_run):
    records = finished_run.records()
    sizes = [record["parameters"] for record in records]
    assert sizes[0] == records[0]["dense_parameters"] > sizes[1] > sizes[2]
    model = load_model(finished_run.path / "model.safetensors")
    assert sum(parameter.numel() for parameter in model.parameters()) == sizes[-1]
    assert records[-1]["model_bytes"] == (finished_run.path / "model.safetensors").stat().st_size
    text = (finished_run.path / "architecture.json").read_text()
    assert architecture_from_json(text) == model.architecture
    macs = cost.macs(model.architecture)
    assert (records[-1]["macs"], records[-1]["macs_total"]) == (macs.linear, macs.total)


def test_every_line_of_metrics_is_complete_and_strict_json(finished_run):
    def refuse(constant):
        raise AssertionError(f"{constant} is no JSON")

    lines = (finished_run.path / "metrics.jsonl").read_text().splitlines()
    records = [json.loads(line, parse_constant=refuse) for line in lines]
    assert [record["round"] for record in records] == [0, 1, 2]
    for record in records:
        assert set(record) >= EVERY_ROUND, EVERY_ROUND - set(record)
        assert len(record["recall"]) == 7
        assert len(record["blocks"]) == 4
        assert all(set(row) >= EVERY_BLOCK for row in record["blocks"])
    for before, after in itertools.pairwise(records):
        for name in ("bytes_down", "bytes_up"):
            assert after[f"{name}_total"] == before[f"{name}_total"] + after[name]
        for old, new in zip(before["blocks"], after["blocks"], strict=True):
            assert (new["heads_before"], new["hidden_before"]) == (old["heads_after"], old["hidden_after"])
    trained = records[1]
    assert (trained["clients_ok"], trained["clients_failed"]) == (3, 0)
    assert trained["bytes_up"] >= 3 * 4 * trained["dense_parameters"], "three nodes sent the whole dense model"
    assert trained["seconds"] >= trained["seconds_training"] > 0
    assert all({"loss", "first-loss", "steps", "seconds", "num-examples"} <= set(n) for n in trained["nodes"].values())


def test_scores_are_recorded_for_every_unit_and_explain_what_went(finished_run):
    first = finished_run.records()[1]["blocks"][0]
    assert len(first["attention_scores"]) == first["heads_before"]
    assert len(first["mlp_scores"]) == first["hidden_before"] // 4
    kept = sum(score is not None and score > 0 for score in first["mlp_scores"])
    assert first["hidden_after"] == 4 * kept
    assert "mlp_scores" not in finished_run.records()[1]["blocks"][2], "the second stage is still locked"


def test_the_run_folder_holds_all_that_is_promised(finished_run):
    path = finished_run.path
    names = {
        "config.yaml",
        "split.json",
        "metrics.jsonl",
        "architecture.json",
        "model.safetensors",
        "summary.json",
        "predictions.npz",
        "best",
    }
    assert names <= {entry.name for entry in path.iterdir()}
    assert load_config(file=path / "config.yaml") == tiny_config(run={"output_dir": str(path.parent)})
    split = json.loads((path / "split.json").read_text())
    assert len(split["ids"]["parts"]) == 3
    named = [name for part in (split["ids"]["test"], split["ids"]["open"], *split["ids"]["parts"]) for name in part]
    assert len(named) == len(set(named)) == IMAGES
    summary = json.loads((path / "summary.json").read_text())
    last = finished_run.records()[-1]
    assert summary["final"]["parameters"] == last["parameters"]
    assert summary["bytes_up"] == last["bytes_up_total"]
    assert not list(path.rglob("*.tmp")), "nothing half-written stays"


def test_the_best_model_is_kept_beside_the_last(finished_run):
    best = max(finished_run.records()[1:], key=lambda record: record["held_back"]["balanced_accuracy"])
    arch, _ = read_model(finished_run.path / "best" / "model.safetensors")
    assert cost.parameters(arch) == best["parameters"]
    summary = json.loads((finished_run.path / "summary.json").read_text())
    assert summary["best"]["round"] == best["round"]
    assert summary["best"]["balanced_accuracy"] == best["balanced_accuracy"], "on the test set"


class LastFirstGrid(LocalGrid):
    """All replies are computed first, then handed out from the last to the first."""

    def __init__(self, *args):
        super().__init__(*args)
        self._ready = []

    def pull_messages(self, message_ids):
        while waiting := list(self._pending):
            self._ready += super().pull_messages(waiting)
        wanted = [reply for reply in self._ready if reply.metadata.reply_to_message_id in set(message_ids)]
        self._ready = [reply for reply in self._ready if reply not in wanted]
        return wanted[::-1]


def test_the_same_seed_gives_the_same_model_bit_for_bit(run, finished_run):
    folder, records = run()
    assert (folder.path / "model.safetensors").read_bytes() == (finished_run.path / "model.safetensors").read_bytes()
    for mine, other in zip(records, finished_run.records(), strict=True):
        same = [key for key in mine if "seconds" not in key and key != "nodes" and not key.startswith("bytes_down")]
        assert {key: mine[key] for key in same} == {key: other[key] for key in same}


def test_another_order_of_arrival_gives_the_same_model_bit_for_bit(run, finished_run):
    folder, records = run(grid=LastFirstGrid(make_client_app(), 3))
    assert list(records[1]["nodes"]) != list(finished_run.records()[1]["nodes"]), "they did arrive in another order"
    assert (folder.path / "model.safetensors").read_bytes() == (finished_run.path / "model.safetensors").read_bytes()
    assert records[1]["train_loss"] == finished_run.records()[1]["train_loss"]


def test_another_seed_gives_another_model_on_the_same_test_set(run, finished_run):
    folder, records = run(run={"seed": 1})
    assert tensors(folder)["classifier.weight"].tobytes() != tensors(finished_run)["classifier.weight"].tobytes()
    split = [json.loads((f.path / "split.json").read_text())["ids"] for f in (folder, finished_run)]
    assert split[0] == split[1]
    assert records[0]["examples"] == finished_run.records()[0]["examples"]


def test_plain_fedavg_keeps_the_dense_model_in_the_same_code_path(dense_run, finished_run):
    records = dense_run.records()
    assert all(record["parameters"] == record["dense_parameters"] for record in records)
    assert all("mlp_scores" not in row for record in records for row in record["blocks"])
    shared = ("accuracy", "loss", "recall")
    assert [records[0][k] for k in shared] == [finished_run.records()[0][k] for k in shared], "the same start"
    assert records[1]["train_loss"] == finished_run.records()[1]["train_loss"], "and the same first round"


def test_the_global_model_is_the_mean_of_the_updates_weighted_by_examples(run):
    vectors, metrics, app = [], [], make_client_app()

    def spy(message, context):
        reply = app(message, context)
        (vector,) = reply.content["arrays"].values()
        vectors.append(vector.numpy().astype(np.float64))
        metrics.append(dict(reply.content["metrics"]))
        return reply

    settings = {"prune": {"criterion": "none"}, "federation": {"rounds": 1}, "data": {"partition": "site"}}
    folder, records = run(grid=LocalGrid(spy, 3), **settings)
    counts = [metric["num-examples"] for metric in metrics]
    assert len(set(counts)) > 1, "the case is worth testing"
    found = tensors(folder)
    found = np.concatenate([np.ravel(found[name]) for name in sorted(found)])
    np.testing.assert_allclose(found, np.average(vectors, axis=0, weights=counts), rtol=1e-6, atol=1e-12)
    losses = [metric["loss"] for metric in metrics]
    assert records[1]["train_loss"] == pytest.approx(np.average(losses, weights=counts))


def test_frozen_stages_are_not_uploaded_and_keep_their_bits(run):
    prune = {"freeze": True, "first_round": 1}
    federation = {"rounds": 3}
    folder, records = run(prune=prune, federation=federation, run={"keep_checkpoints": 5})
    whole, _ = run(prune=prune, federation=federation | {"upload": "all"})
    one, last = (load_file(folder.path / f"checkpoints/round-000{i}/model.safetensors") for i in (1, 3))
    frozen = [name for name in last if name.startswith(("encoder.layers.0.", "encoder.patch_embed."))]
    assert frozen
    assert all(one[name].tobytes() == last[name].tobytes() for name in frozen)
    assert one["classifier.weight"].tobytes() != last["classifier.weight"].tobytes()
    sent = sum(tensor.size for name, tensor in one.items() if name not in frozen)
    assert 0 <= records[2]["bytes_up"] - 3 * 4 * sent < 3 * 300 * len(one), "three updates, and what frames them"
    both = [f.records()[2]["bytes_up"] for f in (folder, whole)]
    assert both[0] < both[1], "what did not change is not uploaded"
    assert tensors(whole)["classifier.weight"].tobytes() == tensors(folder)["classifier.weight"].tobytes()


def test_a_warm_start_trains_and_prunes_on_open_data_before_the_first_round(run, finished_run):
    _folder, records = run(
        prune={"first_round": 0, "freeze": True},
        train={"warm_start_epochs": 2, "local_epochs": 3},
        federation={"rounds": 1},
    )
    assert records[0]["parameters"] < records[0]["dense_parameters"]
    assert "attention_scores" in records[0]["blocks"][0]
    assert records[0]["loss"] < finished_run.records()[0]["loss"], "it has learnt something"
    assert records[0]["bytes_up_total"] == 0, "no node took part"
    first, second = records[1]["blocks"][0], records[1]["blocks"][2]
    assert first["hidden_before"] == first["hidden_after"], "the warm start's stage is frozen"
    assert second["hidden_before"] > second["hidden_after"]


def test_nodes_evaluate_on_their_own_validation_images_if_asked(run):
    _, records = run(federation={"evaluate_clients": True, "rounds": 1})
    assert {"accuracy", "balanced_accuracy", "f1_macro", "loss"} <= set(records[1]["validation"])
    assert 0 <= records[1]["validation"]["accuracy"] <= 1
    for i in range(3):
        node = node_data(tiny_config().data, 32, {"partition-id": i, "num-partitions": 3})
        told = records[1]["nodes"][f"partition-{i}"]
        assert (told["num-examples"], told["validation-num-examples"]) == (len(node.train), len(node.validation))
    assert records[1]["bytes_down"] > 1.5 * 3 * 4 * records[1]["parameters"], "the model went out twice"
    assert (records[1]["clients_ok"], records[1]["clients_failed"]) == (3, 0)


def test_a_guarded_run_gives_units_back_and_records_how_many(run, monkeypatch):
    def judge(server, model):
        return sum(parameter.numel() for parameter in model.parameters()) / 80_209

    monkeypatch.setattr(ServerData, "judge", judge)
    _, records = run(prune={"rollback": 0.02}, federation={"rounds": 1})
    assert records[1]["given_back"] > 0
    assert 0.98 <= records[1]["parameters"] / records[1]["dense_parameters"] < 1.0


def test_a_guard_without_data_of_its_own_is_refused_before_anything_is_trained(run):
    with pytest.raises(DataError, match=r"prune\.rollback .*data\.held-back"):
        run(prune={"rollback": 0.05}, data={"held_back": 0.0})


def test_a_group_that_does_not_fit_the_model_is_refused_before_anything_is_trained(run):
    with pytest.raises(ConfigError, match=r"prune\.mlp-group"):
        run(prune={"mlp_group": "7"})


@pytest.mark.parametrize(
    "overrides",
    [
        {"model": {"image_only": True}},
        {"data": {"split_by": "image"}},
        {"data": {"partition": "dirichlet", "alpha": 0.1}},
        {"data": {"partition": "site"}},
        {"data": {"fit": "crop"}, "model": {"image_size": 40}},
        {"train": {"precision": "bfloat16", "class_weights": "sqrt"}},
        {"prune": {"removed": "skip", "min_heads": 0, "mlp_group": "width", "reading": "per-window"}},
        {"prune": {"criterion": "l1-norm", "rule": "match", "mlp_activation": "after-gelu", "align": 8}},
        {"prune": {"criterion": "random", "rule": "share", "min_parameters": 0.9, "reading": "pool"}},
    ],
    ids=str,
)
def test_every_kind_of_run_ends_with_a_model_that_loads(run, overrides):
    folder, records = run(federation={"rounds": 1}, **overrides)
    assert records[-1]["clients_ok"] == 3
    assert np.isfinite(records[-1]["loss"])
    assert records[-1]["parameters"] < records[-1]["dense_parameters"]
    load_model(folder.path / "model.safetensors")


def test_a_fraction_of_the_nodes_takes_part_another_in_each_round(run):
    _, records = run(nodes=6, federation={"fraction": 0.34, "rounds": 3})
    chosen = [set(record["nodes"]) for record in records[1:]]
    assert all(len(names) == 3 for names in chosen), "34 % of 6, rounded up"
    assert len({frozenset(names) for names in chosen}) > 1


def test_more_nodes_than_lesions_are_refused(run):
    with pytest.raises(DataError, match="clients, but only"):
        run(nodes=500)


def test_what_flower_passes_on_is_what_runs(generated, tmp_path):
    own = tmp_path / "own.yaml"
    own.write_text("data: {source: generated, generated-images: 160, open: 0.2}\ntrain: {threads: 1, batch-size: 16}\n")
    settings = "model.name=swin_micro_patch4_window4_32 federation.rounds=1 run.threads=1 run.name=mine"
    folder = simulate({"config": str(own), "set": settings, "output-dir": str(tmp_path)}, 2)
    assert folder.path == tmp_path / "mine"
    assert folder.records()[-1]["clients_ok"] == 2


def test_a_warm_start_has_as_many_epochs_as_asked_for(generated, monkeypatch):
    seen = []
    result = TrainResult(0.0, 0.0, 0, 0.0, {})
    monkeypatch.setattr(local, "train", lambda _, __, config, **___: seen.append(config.local_epochs) or result)
    config = tiny_config(train={"warm_start_epochs": 3, "local_epochs": 2})
    data = open_data(config.data, 32)
    server = ServerData(config, data, split_server(data, config.data))
    server.warm_start(*initial_model(config))
    assert sum(seen) == 3
