"""Nodes that answer badly are set aside by name and the round goes on; odd nodes take part like any other."""

import json
from dataclasses import replace

import numpy as np
import pytest
from builders import IMAGES, left, run_here, tiny_config
from flwr.app import Array, ArrayRecord, ConfigRecord, Message, MessageType, MetricRecord, RecordDict
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.numpy import load_file

from fedskew.apps import make_client_app
from fedskew.config import load_config
from fedskew.config.load import preset_names
from fedskew.demo.generator import generate
from fedskew.federation.grids import LocalGrid
from fedskew.federation.messages import Task, pack_task
from fedskew.federation.weights import layout, to_record, vector_layout
from fedskew.learning.datasets import open_data
from fedskew.methods.base import Work
from fedskew.model.catalogue import dense_architecture
from fedskew.model.fusion import build
from fedskew.model.layout import Part

app = make_client_app()
CLASSES = 7


def changed(reply, weights=lambda vector: vector, metrics=None, name=None, more=None):
    """A reply with its vector of weights, the vector's name or some metrics replaced, or with one more vector."""
    old = reply.content
    ((own_name, vector),) = old["arrays"].items()
    arrays = {name or own_name: Array(weights(vector.numpy().copy()))} | (more or {})
    values = MetricRecord(dict(old["metrics"].items()) | (metrics or {}))
    reply.content = RecordDict({"arrays": ArrayRecord(arrays), "metrics": values, "report": old["report"]})
    return reply


def not_a_number(reply):
    def spoil(vector):
        vector[CLASSES] = np.nan  # the tensors are in the order of their names: classifier.bias, classifier.weight, …
        return vector

    return changed(reply, spoil)


BAD = {
    "NaN": (not_a_number, "classifier.weight holds values that are not finite"),
    "broadcastable": (lambda r: changed(r, lambda vector: vector[:1]), "float32 (1,), expected float32"),
    "one short": (lambda r: changed(r, lambda vector: vector[:-1]), "expected float32"),
    "float64": (lambda r: changed(r, lambda vector: vector.astype(np.float64)), "float64"),
    "integers": (lambda r: changed(r, lambda vector: vector.astype(np.int64)), "int64"),
    "another layout": (lambda r: changed(r, name="float32-0123456789abcdef"), "other names or shapes"),
    "extra": (lambda r: changed(r, more={"backdoor": Array(np.zeros(1, np.float32))}), "float32 (1,)"),
    "no examples": (lambda r: changed(r, metrics={"num-examples": 0}), "num-examples"),
    "infinite loss": (lambda r: changed(r, metrics={"loss": float("inf")}), "loss"),
}


@pytest.fixture
def run(generated, tmp_path):
    def start(answer, nodes=3, **overrides):
        overrides["run"] = {"output_dir": str(tmp_path)}
        folder = run_here(tiny_config(**overrides), grid=LocalGrid(answer, nodes))
        return folder, folder.records()

    return start


def bad_node(kind, *partitions):
    """The client app, whose answers from some partitions are spoilt."""

    def answer(message, context):
        reply = app(message, context)
        spoil = context.node_config["partition-id"] in partitions and message.metadata.message_type == MessageType.TRAIN
        return BAD[kind][0](reply) if spoil else reply

    return answer


@pytest.mark.parametrize("kind", BAD)
def test_a_bad_reply_is_set_aside_by_name_and_the_round_goes_on(run, kind, finished_run):
    folder, records = run(bad_node(kind, 1), federation={"rounds": 1})
    first = records[1]
    assert (first["clients_ok"], first["clients_failed"], first["kept_model"]) == (2, 1, False)
    ((name, reason),) = first["failed"].items()
    assert name == "node 2"
    assert BAD[kind][1] in reason
    assert set(first["nodes"]) == {"partition-0", "partition-2"}
    assert first["bytes_up"] < finished_run.records()[1]["bytes_up"]
    assert all(np.isfinite(value).all() for value in load_file(folder.path / "model.safetensors").values())


def as_small(preset, folder):
    """What a preset asks of nodes, pruning and federation, of a model and of data that take seconds."""
    given, tiny = load_config(preset), tiny_config(run={"output_dir": str(folder)})
    federation = replace(given.federation, rounds=len(BAD), min_nodes=1, require_signatures=False)  # nodes have no keys
    prune = replace(given.prune, batch_size=16, first_round=min(1, given.prune.first_round), last_round=0)
    recipe = {"warm_start_epochs": 0, "local_epochs": 1, "batch_size": 16, "device": "cpu", "precision": "float32"}
    data = replace(tiny.data, validation=given.data.validation)
    model = replace(tiny.model, name="vit_micro_patch4_32") if given.model.name.startswith("vit") else tiny.model
    return replace(
        given, data=data, model=model, train=replace(given.train, threads=1, **recipe), prune=prune,
        federation=federation, run=tiny.run,
    )  # fmt: skip


@pytest.mark.parametrize("preset", preset_names())
def test_every_bad_reply_is_set_aside_under_the_settings_of_every_preset(generated, tmp_path, preset):
    """In each round another kind: robust limits, momentum, frozen stages and cuts must not let one of them through."""

    def answer(message, context):
        kind = list(BAD)[message.content["config"]["server-round"] - 1]
        return bad_node(kind, 1)(message, context)

    folder = run_here(as_small(preset, tmp_path), grid=LocalGrid(answer, 4))  # three are left, as the median needs
    _, *rounds = folder.records()
    assert len(rounds) == len(BAD)
    for record, (kind, (_, words)) in zip(rounds, BAD.items(), strict=True):
        assert list(record["failed"]) == ["node 2"], kind
        assert words in record["failed"]["node 2"]
        assert (record["clients_ok"], record["rolled_back"]) == (3, None), kind
    assert all(np.isfinite(value).all() for value in load_file(folder.path / "model.safetensors").values())


def test_the_average_is_that_of_the_good_replies_alone(run, tmp_path):
    """A spoilt third node and a silent one leave the same model."""
    spoilt, _ = run(bad_node("NaN", 2), federation={"rounds": 2})
    broken, records = run(bad_node("no examples", 2), federation={"rounds": 2})
    files = [(folder.path / "model.safetensors").read_bytes() for folder in (spoilt, broken)]
    assert files[0] == files[1]
    assert "node 3" in records[2]["failed"], "a node that never answered well has no name but its number"


def test_a_node_that_was_good_before_keeps_its_name(run):
    def answer(message, context):
        reply = app(message, context)
        late = message.content["config"]["server-round"] == 2 and context.node_config["partition-id"] == 0
        return not_a_number(reply) if late else reply

    _, records = run(answer)
    assert list(records[2]["failed"]) == ["partition-0"]
    assert records[1]["failed"] == {}


def test_if_all_replies_are_bad_the_round_keeps_the_old_model_and_says_so(run, caplog):
    folder, records = run(bad_node("NaN", 0, 1, 2))
    start, first, second = records
    assert first["kept_model"]
    assert second["kept_model"]
    assert not start["kept_model"]
    assert (first["clients_ok"], first["clients_failed"], first["train_loss"]) == (0, 3, None)
    for key in ("parameters", "loss", "accuracy", "recall"):
        assert start[key] == first[key] == second[key], "the same model, unpruned"
    assert "the global model stays as it was" in caplog.text
    saved = json.loads((folder.path / "summary.json").read_text())
    assert saved["rounds_below_quorum"] == 2
    assert saved["client_failures"] == 6


def test_a_node_that_crashes_answers_with_its_reason(run, tmp_path):
    def answer(message, context):
        if context.node_config["partition-id"] == 1:
            context.node_config["data-dir"] = str(tmp_path / "nowhere")
        return app(message, context)

    _, records = run(answer, federation={"rounds": 1})
    ((_, reason),) = records[1]["failed"].items()
    assert "nowhere" in reason
    assert "does not exist" in reason
    assert records[1]["clients_ok"] == 2


def test_nodes_that_call_themselves_the_same_are_told_apart(run):
    """Three hospitals keep their images in /data/ham: all three count, and each failure has its own line."""

    def answer(message, context):
        reply = app(message, context)
        number = context.node_config["partition-id"]
        reply.content["report"] = ConfigRecord(dict(reply.content["report"]) | {"node": "ham"})
        late = message.content["config"]["server-round"] == 2
        return not_a_number(reply) if late and number < 2 else reply

    _, records = run(answer)
    assert (records[1]["clients_ok"], records[1]["clients_failed"]) == (3, 0)
    assert len(records[1]["nodes"]) == 3
    assert (records[2]["clients_ok"], records[2]["clients_failed"]) == (1, 2)


def test_a_reply_without_loss_still_counts_and_the_record_stays_json(run):
    def answer(message, context):
        reply = app(message, context)
        metrics = {k: v for k, v in reply.content["metrics"].items() if k == "num-examples"}
        reply.content["metrics"] = MetricRecord(metrics)
        return reply

    folder, records = run(answer, federation={"rounds": 1})
    assert records[1]["clients_ok"] == 3
    assert records[1]["train_loss"] is None
    assert "NaN" not in (folder.path / "metrics.jsonl").read_text()


def own_nodes(answer, *folders):
    configs = {i + 1: {"data-dir": str(path), "name": f"site-{i}"} for i, path in enumerate(folders)}
    return LocalGrid(answer, len(folders), node_configs=configs)


def subset(source, target, keep):
    """A copy of a generated data set that holds some of its rows only."""
    target.mkdir()
    rows = (source / "HAM10000_metadata.csv").read_text().splitlines()
    kept = [row for row in rows[1:] if keep(row.split(","))]
    (target / "HAM10000_metadata.csv").write_text("\n".join([rows[0], *kept]) + "\n")
    for row in kept:
        name = row.split(",")[1] + ".jpg"
        (target / name).write_bytes(next(source.glob(f"*/{name}")).read_bytes())
    return target


@pytest.fixture
def odd_sites(tmp_path):
    """One site without melanoma, one with a single image, one that is whole."""
    whole = generate(tmp_path / "whole", images=60, seed=3, size=(40, 40))
    no_melanoma = subset(whole, tmp_path / "no-melanoma", lambda row: row[2] != "mel")
    one = subset(whole, tmp_path / "one", lambda row: row[1].endswith("0000007"))
    assert len(open_data(tiny_config().data, 32, str(one)).samples) == 1
    return no_melanoma, one, whole


@pytest.mark.parametrize("weights", ["none", "sqrt", "inverse"])
def test_a_class_missing_from_a_node_and_a_node_with_one_image_are_no_obstacle(run, odd_sites, weights, tmp_path):
    config = tiny_config(
        data={"clients": "own"},
        train={"class_weights": weights},
        federation={"rounds": 1, "evaluate_clients": True},
        run={"output_dir": str(tmp_path / "runs")},
    )
    last = run_here(config, grid=own_nodes(app, *odd_sites)).records()[-1]
    examples = {name: values["num-examples"] for name, values in last["nodes"].items()}
    assert set(examples) == {"site-0", "site-1", "site-2"}, "every site trained"
    assert examples["site-1"] == 1
    assert last["nodes"]["site-1"]["validation-num-examples"] == 0
    assert last["nodes"]["site-0"]["validation-loss"] != last["nodes"]["site-0"]["loss"]
    assert np.isfinite(last["train_loss"])
    assert np.isfinite(last["loss"])
    assert np.isfinite(last["validation"]["loss"])
    assert last["examples"] < IMAGES, "the server's own test set"


def test_a_node_without_validation_images_still_counts_as_a_trainer(odd_sites, tmp_path):
    federation = {"rounds": 1, "evaluate_clients": True}
    config = tiny_config(data={"clients": "own"}, federation=federation, run={"output_dir": str(tmp_path / "runs")})
    last = run_here(config, grid=own_nodes(app, *odd_sites)).records()[-1]
    assert (last["clients_ok"], last["clients_failed"]) == (3, 0)
    assert any("no validation images" in note for note in last["notes"]["site-1"])


def task_message(config, **overrides):
    """A training task as the server sends it, with fields replaced."""
    arch = dense_architecture(config.model)
    content = pack_task(Task(1, 2, arch, config), to_record(build(arch).state_dict()))
    content["config"] = ConfigRecord(dict(content["config"].items()) | overrides)
    return Message(content, dst_node_id=1, message_type=MessageType.TRAIN)


def ask(message):
    """The reply of a node to one message."""
    grid = LocalGrid(app, 1)
    message.metadata.__dict__["_message_id"] = ""
    (reply,) = grid.send_and_receive([message])
    return reply


ALL = '{"prefixes": [""], "without": []}'
WORK = f'{{"method": "%s", "train": {ALL}, "up": {ALL}, "extras": %s}}'
SMALL = json.loads(dense_architecture(tiny_config().model).to_json())


@pytest.mark.parametrize(
    ("overrides", "words"),
    [
        ({"architecture": "{}"}, "architecture"),
        ({"architecture": json.dumps(SMALL | {"image_size": -32})}, "image_size"),
        ({"architecture": json.dumps(SMALL | {"image_size": 10**9})}, "image_size"),
        ({"architecture": json.dumps(SMALL | {"classes": ["a", "b"]})}, "do not fit"),
        (
            {"architecture": json.dumps(SMALL | {"vocabularies": [["keys", ["u"]]], "weights": [1, 0]})},
            "for themselves",
        ),
        ({"architecture": 3}, "architecture"),
        ({"run-config": "["}, "run-config"),
        ({"run-config": "[]"}, "run-config"),
        ({"run-config": '{"train": {"lr": -1}}'}, "train.lr"),
        ({"fedskew": "9.9.9"}, "9.9.9"),
        ({"server-round": "one"}, "server-round"),
        ({"work": 1}, "work"),
        ({"work": "{}"}, "field 'work' of the task cannot be read"),
        ({"work": "[" * 100_000}, "field 'work' of the task cannot be read"),
        ({"work": WORK % ("average", "[1]")}, "field 'work' of the task cannot be read"),
        ({"work": WORK % ("tiny", "[]")}, "the task is of the method 'tiny'; this version knows average, skewness"),
        ({"work": WORK % ("average", '["gradients"]')}, "extras that this version does not know"),
        ({"work": WORK.replace('[""]', '["no-such."]', 1) % ("average", "[]")}, "trains no tensor of its model"),
        ({"split-hash": "another"}, "splits otherwise"),
    ],
    ids=str,
)
def test_a_node_refuses_a_task_that_is_not_in_order_and_says_why(generated, overrides, words):
    reply = ask(task_message(tiny_config(), **overrides))
    assert reply.has_error()
    assert words in reply.error.reason


def test_a_node_refuses_weights_that_do_not_fit(generated):
    message = task_message(tiny_config())
    ((name, vector),) = message.content["arrays"].items()
    message.content["arrays"] = ArrayRecord({name: Array(vector.numpy()[1:])})
    assert "the weights do not fit the architecture: the weights are float32" in ask(message).error.reason
    message.content["arrays"] = ArrayRecord({"float32-0": vector})
    assert "the same versions of fedskew and timm" in ask(message).error.reason
    del message.content["arrays"]
    assert "arrays" in ask(message).error.reason


def test_a_node_trains_whatever_architecture_it_is_sent(generated):
    config = tiny_config()
    arch = left(left(dense_architecture(config.model), 0, 0, heads=(2,), hidden=5), 0, 1, heads=(), hidden=0)
    part = Part(without=("encoder.layers.1.",))
    task = Task(1, 2, arch, config, Work("skewness", part, part))
    reply = ask(Message(pack_task(task, to_record(build(arch).state_dict())), dst_node_id=1, message_type="train"))
    kept = {name: spec for name, spec in layout(arch).items() if not name.startswith("encoder.layers.1.")}
    assert list(reply.content["arrays"]) == list(vector_layout(kept))
    assert 0 < len(kept) < len(layout(arch))


FIELDS = st.sampled_from(["architecture", "run-config", "work", "server-round", "rounds"])
ANYTHING = st.text(max_size=5) | st.integers(-5, 5) | st.lists(st.integers(), max_size=2)


@settings(max_examples=15)
@given(st.dictionaries(FIELDS, ANYTHING, min_size=1))
def test_a_garbled_task_gets_an_answer_never_a_crash(generated, overrides):
    assert ask(task_message(tiny_config(), **overrides)) is not None
