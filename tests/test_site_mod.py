"""What a hostile coordinator puts into a task, against the mod around the client: nothing passes unseen or for free."""

import json

import pytest
import torch
from builders import lively_model, tiny_config
from flwr.app import ConfigRecord

from fedskew.apps import make_client_app
from fedskew.federation.grids import LocalGrid
from fedskew.federation.messages import CONFIG, Task, pack_task
from fedskew.federation.weights import to_record
from fedskew.learning import deadline
from fedskew.model.catalogue import dense_architecture
from fedskew.site.audit import read_entries
from fedskew.site.ledger import beside, read_books

ARCH = dense_architecture(tiny_config().model)
STATE = lively_model(ARCH).state_dict()
WORK = {"method": "average", "train": {"prefixes": [""], "without": []}, "up": {"prefixes": [""], "without": []},
        "extras": []}  # fmt: skip
PRIVATE = """
report-metrics: false
report-notes: false
clipping-norm: 0.01
noise: {multiplier: 1.0, delta: 1e-5}
privacy-budget: {epsilon: 18, delta: 1e-5}
"""


@pytest.fixture
def ask(generated, tmp_path):
    """Send a task whose settings are changed to a site with a policy; returns the reply. The log is `tmp_path/log`."""

    def send(policy="", change=None, *, weights=STATE, config=None, node=None, kind="train"):
        (tmp_path / "policy.yaml").write_text(policy)
        site = {"data-dir": str(generated), "name": "site-a", "policy": str(tmp_path / "policy.yaml"),
                "audit-log": str(tmp_path / "log")}  # fmt: skip
        grid = LocalGrid(make_client_app(), 1, node_configs={1: site if node is None else node})
        task = Task(1, 9, ARCH, config or tiny_config(data={"clients": "own"}))
        content = pack_task(task, to_record(weights))
        content[CONFIG] = ConfigRecord(dict(content.config_records[CONFIG]) | (change or {}))
        message = grid.create_message(content, kind, 1, "group")
        return next(iter(grid.pull_messages(grid.push_messages([message]))))

    return send


@pytest.mark.parametrize(
    ("node", "name"),
    [({"name": "site-b", "partition-id": 4}, "site-b"), ({"partition-id": 4, "num-partitions": 9}, "4"), ({}, "1")],
    ids=["named", "simulated", "neither"],
)
def test_a_refusal_names_the_node_as_well_as_it_can(ask, node, name):
    reply = ask(change={"run-config": json.dumps({"train": {"speed": 1}})}, node=node)
    assert reply.error.reason.startswith(f"node {name}: ")
    assert "unknown key train.speed" in reply.error.reason


def overflowing():
    """Weights of a model whose loss is not finite."""
    return STATE | {"classifier.weight": torch.full_like(STATE["classifier.weight"], 3e38)}


def test_half_a_surrogate_pair_keeps_no_refusal_out_of_the_log(ask, tmp_path):
    """JSON can hold it, UTF-8 cannot: neither the log's line nor the reply could be written."""
    reply = ask(change={"run-config": json.dumps({"train": {"\ud800": 1}})})
    assert reply.error.reason.encode().endswith(b"unknown key train.\\ud800")
    (entry,) = read_entries(tmp_path / "log")
    assert (entry["outcome"], entry["reason"][-1]) == ("refused", "\ud800")
    ask("allowed-runs: [9]")
    assert len(read_entries(tmp_path / "log")) == 2, "the chain goes on"


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"work": json.dumps(WORK | {"extras": ["moments"] * 2})}, "the task asks for extras twice: ('moments', 'mo"),
        ({"work": json.dumps(WORK | {"up": {"prefixes": [""], "without": ["x"] * 1001}})}, "cannot be read (ValueErr"),
        ({"work": json.dumps(WORK | {"train": {"prefixes": ["x" * 1001], "without": []}})}, "cannot be read (ValueErr"),
        ({"fedskew": "x" * 1_000_000}, "the server runs fedskew xxx"),
    ],
    ids=["extras twice", "too many names", "a name too long", "a long version"],
)
def test_a_refusal_stays_small_whatever_the_task_holds(ask, tmp_path, change, said):
    reply = ask(change=change)
    assert said in reply.error.reason
    assert len(reply.error.reason) <= 4000
    assert [entry["outcome"] for entry in read_entries(tmp_path / "log")] == ["refused"]


@pytest.mark.parametrize("key", ["cache-dir", "manifest", "ledger"])
def test_a_site_that_calls_itself_a_partition_follows_no_path_of_the_server(ask, generated, tmp_path, key):
    """With `partition-id` and neither data nor policy of its own it passed for a node of a simulation."""
    theirs = tmp_path / "theirs"
    config = tiny_config(data={"source": "folder", "dir": str(generated), "cache_dir": str(theirs)})
    reply = ask(config=config, node={"partition-id": 0, "num-partitions": 2, key: ""} | {key: str(tmp_path / "own")})
    assert reply.has_error()
    assert not theirs.exists()


def test_a_task_that_fails_over_the_images_is_not_free_of_the_privacy_budget(ask, tmp_path):
    """Whether a loss overflows can depend on one image, and no noise hides that: it was free, and told the epoch."""
    answers = [ask(PRIVATE, weights=overflowing()).error.reason for _ in range(4)]
    assert answers[0] == "node site-a: TrainingError; the site's policy keeps the details in its own log"
    assert "privacy-budget of ε=18 at δ=1e-05 over all runs is spent" in answers[-1]
    outcomes = [entry["reason"].partition(":")[0] for entry in read_entries(tmp_path / "log")]
    failed = outcomes.count("TrainingError")
    assert outcomes == ["TrainingError"] * failed + ["PolicyRefusal"] * (4 - failed)
    assert read_books(tmp_path / "log", beside(tmp_path / "log")).multipliers() == [0.5] * failed
    assert read_books(tmp_path / "log", beside(tmp_path / "log")).answers(None, "train") == 0


def test_the_loss_that_is_not_finite_is_told_where_metrics_are(ask):
    assert "the training loss is nan in local epoch 1" in ask(weights=overflowing()).error.reason


def test_a_refusal_before_the_data_is_touched_costs_no_budget(ask, tmp_path):
    ask(PRIVATE + "min-examples: 5000\n")
    ask(PRIVATE, {"work": "{}"})
    assert not beside(tmp_path / "log").exists()


@pytest.mark.parametrize("kind", ["train", "evaluate"])
def test_a_task_that_takes_too_long_is_given_up_by_name_and_the_site_keeps_nothing_of_it(
    ask, tmp_path, monkeypatch, kind
):
    """A server could keep a site busy for days, within all limits: the time is looked at before every batch."""
    seen = []

    def clock():
        seen.append(60.0 * 3 * len(seen))  # admitted at minute 0; batches begin at 3, 6, …
        return seen[-1]

    monkeypatch.setattr(deadline, "clock", clock)
    config = tiny_config(data={"clients": "own"}, run={"eval_batch_size": 8})
    reply = ask("max-task-minutes: 5", kind=kind, config=config)
    said = "site policy forbids: the task took longer than its max-task-minutes of 5"
    assert reply.error.reason.startswith(f"node site-a: {said}")
    assert len(seen) == 3, "one batch was worked on, the second was not"
    (entry,) = read_entries(tmp_path / "log")
    assert (entry["outcome"], said in entry["reason"]) == ("refused", True)
    monkeypatch.undo()
    assert not ask("max-task-minutes: 5", kind=kind).has_error(), "the next task has its own time"


def test_a_task_given_up_for_its_time_costs_no_budget(ask, tmp_path, monkeypatch):
    """How long it takes follows from what is asked and how many images there are, not from what they show."""
    monkeypatch.setattr(deadline, "clock", iter(range(0, 10**6, 600)).__next__)
    assert "max-task-minutes of 1" in ask(PRIVATE + "max-task-minutes: 1").error.reason
    assert read_books(tmp_path / "log", beside(tmp_path / "log")).ledger == []
