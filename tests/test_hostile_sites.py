"""One hostile site owns nothing: no average, no round, no run, no checkpoint. Each test is an attack."""

from __future__ import annotations

import json
import math

import hostile
import pytest
import torch
from builders import run_here, tiny_config

from fedskew.apps import make_client_app
from fedskew.config.schema import ConfigError
from fedskew.federation.grids import LocalGrid
from fedskew.federation.mean import largest, noted, objection
from fedskew.federation.server import FederatedRun
from fedskew.learning import server_data
from fedskew.learning.local import Trainer, local_seed
from fedskew.learning.train import TrainingError
from fedskew.methods.skewness import SkewnessPruning
from fedskew.model.finite import not_finite
from fedskew.runs.checkpoint import read_checkpoint
from fedskew.runs.folder import RunFolder, RunFolderError
from fedskew.runs.resume import open_checkpoint


@pytest.fixture
def run(generated, tmp_path):
    """Run a federation of which some sites attack; returns the folder and its records."""

    def start(app, nodes=3, name="run", **overrides):
        overrides["run"] = {"output_dir": str(tmp_path), "name": name, **overrides.get("run", {})}
        folder = run_here(tiny_config(**overrides), grid=LocalGrid(app, nodes))
        return folder, folder.records()

    return start


def finite(weights):
    return all(bool(tensor.isfinite().all()) for tensor in weights.values())


def test_a_finite_update_of_1e30_costs_its_round_by_name_and_the_run_goes_on(run, caplog):
    """Under plain averaging. It was: a NaN model in every checkpoint, and sites that say `lower train.lr`."""
    app = hostile.federation(hostile.huge, {1}, rounds={2})
    folder, records = run(app, federation={"rounds": 4}, run={"keep_checkpoints": 9})
    before, hit, after = records[1], records[2], records[3]
    assert "not finite" in hit["rolled_back"]
    assert "partition-1" in hit["rolled_back"], "who sent what was the largest by far"
    assert hit["norms"]["partition-1"] > 1e30 > 1e6 > hit["norms"]["partition-0"]
    assert hit["kept_model"]
    assert hit["clients_ok"] == 3
    assert all(record["rolled_back"] is None for record in (records[0], before, after, records[4]))
    for key in ("parameters", "loss", "blocks"):
        rows = [{k: v for k, v in row.items() if k.endswith("after")} for row in before["blocks"]]
        seen = [{k: v for k, v in row.items() if k.endswith("after")} for row in hit["blocks"]]
        assert rows == seen if key == "blocks" else hit[key] == before[key], "nothing was cut, nothing was learned"
    assert after["parameters"] < hit["parameters"], "honest rounds prune again"
    assert after["loss"] != hit["loss"]
    for number in range(5):
        checkpoint = read_checkpoint(folder.path / "checkpoints" / f"round-{number:04d}")
        assert finite(checkpoint.weights), number
    assert "rollback" in caplog.text
    assert "train.lr" not in caplog.text
    summary = json.loads((folder.path / "summary.json").read_text())
    assert (summary["rounds_rolled_back"], summary["rounds_below_quorum"]) == (1, 0)


def test_whoever_never_stops_ends_the_run_with_a_healthy_model_that_goes_on_under_stricter_limits(run, tmp_path):
    """It was: two missed rounds evict the last good checkpoint, and no resume goes on from NaN."""
    app = hostile.federation(hostile.huge, {1}, rounds=range(2, 99))
    folder, records = run(app, federation={"rounds": 6, "max_missed_rounds": 3}, run={"keep_checkpoints": 2})
    assert [record["round"] for record in records] == [0, 1, 2, 3, 4]
    assert all(record["rolled_back"] for record in records[2:])
    summary = json.loads((folder.path / "summary.json").read_text())
    assert "not accepted" in summary["stopped"]
    assert "partition-1" in summary["stopped"]
    assert "quorum" not in summary["stopped"]
    again, checkpoint = open_checkpoint(folder.path)
    assert (checkpoint.round_number, finite(checkpoint.weights)) == (4, True)
    stricter = tiny_config(
        federation={"rounds": 6, "max_missed_rounds": 3, "norm_bound": 3.0},
        run={"output_dir": str(tmp_path), "name": "run", "keep_checkpoints": 2},
    )
    done = FederatedRun(LocalGrid(app, 3), stricter, again, checkpoint).run().records()
    assert [record["kept_model"] for record in done[5:]] == [False, False]
    assert list(done[5]["failed"]) == ["partition-1"], "it still attacks, and is set aside"
    assert done[6]["loss"] != records[1]["loss"], "the honest nodes' work counts"


def test_a_checkpoint_that_is_not_finite_is_passed_over_by_name(run, caplog):
    """As versions without rollback left them."""
    folder, _ = run(hostile.app, federation={"rounds": 1})
    good = folder.latest()
    spoilt = {name: torch.full_like(tensor, math.nan) for name, tensor in good.weights.items()}
    record = folder.records()[-1] | {"round": 2}
    folder.finish_round(2, good.architecture, spoilt, record, good.progress, is_best=False, keep=9)
    assert folder.latest().round_number == 1
    assert "is not finite" in caplog.text
    assert "round-0002" in caplog.text
    for number in (0, 1):
        folder.finish_round(number, good.architecture, spoilt, record, good.progress, is_best=False, keep=9)
    with pytest.raises(RunFolderError, match="no whole checkpoint"):
        RunFolder(folder.path).latest()


def test_of_two_sites_one_that_sends_1e30_is_set_aside_and_the_other_counts(run):
    """With the median of the round, of which the attacker is half, it passed any bound above 2."""
    app = hostile.federation(hostile.huge, {1}, rounds={2})
    _, records = run(app, nodes=2, federation={"norm_bound": 3.0})
    assert list(records[2]["failed"]) == ["partition-1"]
    assert "the server's own training on open data" in records[2]["failed"]["partition-1"]
    assert records[2]["clients_ok"] == 1
    assert not records[2]["kept_model"]
    assert records[1]["failed"] == {}


def test_of_two_sites_one_that_sends_next_to_nothing_does_not_set_the_other_aside(run):
    _, records = run(hostile.federation(hostile.nothing, {1}), nodes=2, federation={"rounds": 1, "norm_bound": 3.0})
    assert records[1]["failed"] == {}
    assert records[1]["norms"]["partition-1"] < 0.01 * records[1]["norms"]["partition-0"]


def test_zeros_that_claim_to_be_everybody_are_weighed_like_one(run, caplog):
    _, records = run(hostile.federation(hostile.zeros, {2}), federation={"rounds": 1, "rollback": 99.0})
    limited = records[1]["limited"]["partition-2"]
    honest = sorted(records[1]["nodes"][f"partition-{i}"]["num-examples"] for i in (0, 1))
    assert limited == {"examples": 2**28, "weight": 5 * honest[1]}, "the middle of three is the larger honest one"
    assert "partition-2 says it has 268435456 examples and weighs as" in caplog.text
    nodes = [records[1]["nodes"][f"partition-{i}"] for i in range(3)]
    weights = [nodes[0]["num-examples"], nodes[1]["num-examples"], limited["weight"]]
    expected = sum(node["loss"] * weight for node, weight in zip(nodes, weights, strict=True)) / sum(weights)
    assert records[1]["train_loss"] == pytest.approx(expected, rel=1e-4), "nor does its loss count for more"


def test_a_round_that_ends_worse_than_the_bound_is_rolled_back_before_anything_is_cut(run, monkeypatch):
    cut = []
    original = SkewnessPruning.advance
    monkeypatch.setattr(SkewnessPruning, "advance", lambda *args: cut.append(args[2]) or original(*args))
    app = hostile.federation(lambda task, reply: hostile.lie(task, reply, lambda _, own: own * 30), {0}, rounds={1})
    _, records = run(app, federation={"rollback": 1.0})
    assert "more than federation.rollback=1 above" in records[1]["rolled_back"]
    assert cut == [0, 2]
    assert records[1]["parameters"] == records[0]["parameters"] > records[2]["parameters"]


def test_the_optimisers_memory_of_a_round_that_was_rolled_back_is_forgotten(run):
    """FedAdam's second moment would be 1e60, and every later step nothing; what it was before may be the cause."""
    app = hostile.federation(hostile.huge, {1}, rounds={2})
    settings = {"rounds": 3, "server_optimiser": "adam", "server_lr": 0.01}
    folder, _ = run(app, federation=settings, run={"keep_checkpoints": 9})
    memory = [read_checkpoint(folder.path / "checkpoints" / f"round-{n:04d}").companions for n in (1, 2, 3)]
    assert [bool(companions) for companions in memory] == [True, False, True]
    assert all(tensor.isfinite().all() for tensor in memory[2].values())


@pytest.mark.parametrize("aggregation", ["mean", "median"])
def test_moments_that_no_gradients_have_are_set_aside_by_name(run, aggregation):
    """The round counted, and in every one after it no honest node could train: `lower train.lr`, beyond resume."""
    app = hostile.federation(hostile.spoilt_moments, {1}, rounds={1})
    _, records = run(app, nodes=4, train={"moments": "averaged"}, federation={"aggregation": aggregation})
    assert list(records[1]["failed"].values()) == [
        f"the norm of its first moments is {1e6 * 80209**0.5:.4g}, and with train.clip-norm=1 at most 1"
    ]
    assert records[2]["failed"] == {}


def test_moments_with_which_nobody_can_train_are_forgotten(run):
    """Without clipping nothing is known of what they may be: they cost the round after, and no more."""
    app = hostile.federation(hostile.spoilt_moments, {1}, rounds={1})
    settings = {"moments": "averaged", "clip_norm": 0.0}
    _, records = run(app, train=settings, federation={"rounds": 3, "rollback": 99.0})
    assert [record["kept_model"] for record in records] == [False, False, True, False]
    assert len(records[2]["failed"]) == 3 or records[2]["rolled_back"]
    assert records[3]["clients_ok"] == 3


def test_a_server_whose_own_training_fails_judges_nobody_and_goes_on(run, monkeypatch, caplog):
    """It is asked where two sites contradict each other; that it could not train ended the run."""
    train = Trainer.train

    def own(trainer, *args):
        if trainer.rounds == 2 and trainer.round_number == 1 and trainer.seed == local_seed(0, 1, "server"):
            raise TrainingError("the training loss is nan")
        return train(trainer, *args)

    monkeypatch.setattr(Trainer, "train", own)
    _, records = run(hostile.federation(hostile.huge, {1}, rounds={1}), nodes=2, federation={"norm_bound": 3.0})
    assert (records[1]["kept_model"], records[1]["clients_failed"]) == (True, 2)
    assert "the server's own training tells nothing" in caplog.text
    assert (records[2]["kept_model"], records[2]["clients_ok"]) == (False, 2)


def test_a_claim_of_two_to_the_28_validation_images_does_not_choose_the_best_round(run):
    def boast(task, reply):
        metrics = {"num-examples": 2**28, "balanced_accuracy": 1.0, "loss": 0.0}
        reply.content["metrics"] = type(reply.content["metrics"])(dict(reply.content["metrics"].items()) | metrics)
        return reply

    def app(message, context):
        reply = hostile.app(message, context)
        liar = context.node_config["partition-id"] == 2 and message.metadata.message_type == "evaluate"
        return boast(message, reply) if liar else reply

    _, records = run(app, federation={"rounds": 1, "evaluate_clients": True})
    told = [records[1]["nodes"][f"partition-{i}"] for i in (0, 1)]
    weights = [node["validation-num-examples"] for node in told]
    honest = sum(node["validation-balanced_accuracy"] * w for node, w in zip(told, weights, strict=True))
    expected = (honest + 5 * max(weights)) / (sum(weights) + 5 * max(weights))
    assert records[1]["validation"]["balanced_accuracy"] == pytest.approx(expected, abs=1e-5)


def test_a_robust_choice_without_effect_is_refused_before_anything_is_made(run, tmp_path):
    """A trimmed mean of three cut off int(0.6) = 0 at each end, and said nothing."""
    with pytest.raises(ConfigError, match=r"trimmed-mean with federation\.trim=0\.2 needs 5 updates"):
        run(hostile.app, federation={"aggregation": "trimmed-mean"})
    assert not list(tmp_path.iterdir())


def test_a_round_that_falls_to_too_few_for_its_aggregation_keeps_the_model(run):
    app = hostile.federation(lambda task, reply: hostile.lie(task, reply, lambda _, own: own, 0), {0}, rounds={1})
    _, records = run(app, federation={"aggregation": "median"})
    assert list(records[1]["failed"]) != []
    assert "median needs 3 updates" in records[1]["no_effect"]
    assert records[1]["kept_model"]
    assert records[1]["rolled_back"] is None
    assert not records[2]["kept_model"]


@pytest.mark.parametrize(
    ("before", "after", "words"),
    [
        (1.0, 1.9, ""),
        (1.0, 2.1, "more than federation.rollback=1 above"),
        (1.0, math.nan, "not finite"),
        (1.0, math.inf, "not finite"),
        (math.inf, 1.0, ""),
        (27.0, 3.0, ""),
    ],
)
def test_a_model_is_judged_by_its_rise_in_loss(before, after, words):
    found = objection(before, after, 1.0)
    assert words in found
    assert bool(found) == bool(words)


def test_the_model_is_measured_against_the_best_so_far():
    """Against the model before it, a site could make every round worse by a little less than the bound."""
    losses = {}
    noted(losses, 1.25)
    for loss in (1.75, 2.25, 2.75):  # a slow poison
        rejected = objection(losses["best"], loss, 1.0)
        assert bool(rejected) == (loss > 2.25)
        if not rejected:
            noted(losses, loss)
    assert losses == {"best": 1.25}


def test_an_update_made_so_that_pruning_breaks_the_model_wins_no_room(run, caplog):
    """All that pruning cost was counted as honest: the model was cut beyond repair, and the next poison passed."""
    app = hostile.federation(hostile.trapdoor, {1}, rounds={1})
    _, records = run(app, federation={"rounds": 3}, prune={"steps_per_stage": 0})
    first = records[1]
    assert (first["rolled_back"], first["kept_model"]) == (None, False), "it does no harm before something is cut"
    assert "more than federation.rollback=2 above" in first["pruning_undone"]
    assert first["parameters"] == records[0]["parameters"]
    assert first["given_back"] > 0
    assert "nothing is cut" in caplog.text
    best = records[0]["held_back"]["loss"]
    assert all(record["held_back"]["loss"] <= best + 2 for record in records)


@pytest.mark.parametrize("first", [math.nan, math.inf])
def test_a_first_model_without_a_loss_does_not_switch_the_rollback_off(first):
    """The smaller of NaN and any number is NaN: no later round was ever found worse."""
    losses = {}
    noted(losses, first)
    assert objection(losses["best"], 5.0, 1.0) == "", "any model that has a loss is better than it"
    noted(losses, 5.0)
    assert losses == {"best": 5.0}
    assert "more than federation.rollback=1 above" in objection(losses["best"], 6.5, 1.0)
    noted(losses, math.nan)
    assert losses["best"] == 5.0


def test_what_the_model_is_measured_against_survives_a_resume(run):
    folder, records = run(hostile.app, federation={"rounds": 2})
    losses = folder.latest().progress["open_losses"]
    assert losses == {"best": losses["best"]}
    assert losses["best"] <= min(record["held_back"]["loss"] for record in records) + 1e-6


def test_the_first_tensor_that_is_not_finite_is_named():
    good = torch.ones(2)
    assert not_finite({"a": good}) == ""
    assert not_finite({"b": good / 0, "a": good, "c": good / 0}) == "b"


def test_the_person_who_looks_for_the_cause_is_told_whose_update_was_the_largest():
    text = largest({"a": 1.0, "b": 1e30, "c": 2.0, "set aside": 1e31}, {"a": 10, "b": 10, "c": 30})
    assert text == "the largest update is that of b, of norm 1e+30, the others' at most 2; c has 60% of the weight"
    assert largest({}, {}) == ""


def test_a_model_that_is_led_astray_in_small_steps_is_measured_against_the_best_so_far(run, monkeypatch):
    """Each round is worse than the one before by less than the bound: together they are not."""
    losses, real = iter([1.0, 1.4, 1.8, 1.45]), server_data.evaluate
    monkeypatch.setattr(server_data, "evaluate", lambda *args: real(*args) | {"loss": next(losses)})
    _, records = run(make_client_app(), prune={"criterion": "none"}, federation={"rounds": 3, "rollback": 0.5})
    assert [bool(record["rolled_back"]) for record in records] == [False, False, True, False]
    assert "is 1.8, the best so far is 1:" in records[2]["rolled_back"]
