"""Whose data is in which round: what the record says, against the updates that sites sent and the faults they had."""

from __future__ import annotations

import json

import hostile
import numpy as np
import pytest
from builders import run_here, tiny_config
from flwr.app import ArrayRecord, Error, Message
from flwr.common.constant import ErrorCode
from flwr.proto.node_pb2 import NodeInfo
from typer.testing import CliRunner

from fedskew.cli.main import app as command
from fedskew.demo.generator import generate
from fedskew.federation.checks import MAX_EXAMPLES
from fedskew.federation.grids import LocalGrid
from fedskew.federation.server import FederatedRun
from fedskew.federation.weights import from_record, layout
from fedskew.runs.checkpoint import read_checkpoint
from fedskew.runs.folder import RunFolderError
from fedskew.runs.reading import read_flower_runs
from fedskew.runs.report import summary_text
from fedskew.runs.resume import open_checkpoint
from fedskew.tools.participation import RoundShares, Share, participation_text, read_participation

SITES = ("site-a", "site-b", "site-c", "site-d", "site-e")
IMAGES = (40, 50, 60, 70, 80)
ABSENT, SILENT = "absent", "silent"
VANISHED = Error(ErrorCode.NODE_UNAVAILABLE, "the node is gone")
BROKEN = Error(400, "node site-b: no room on its disk")


class Hospitals(LocalGrid):
    """Registered sites with data of their own; `fates` says of (round, site) what befalls it.

    Args:
        first: the round that the run begins with, or goes on in.

    Attributes:
        sent: (round, site) → the arrays of its answer.
    """

    def __init__(self, folders, fates, run_id, first=1):
        configs = {i + 1: {"data-dir": str(folder), "name": folder.name} for i, folder in enumerate(folders)}
        super().__init__(self._answer, len(folders), node_configs=configs)
        self._run.run_id = run_id
        self._fates, self._round, self._next, self.sent = fates, 0, first, {}

    def get_nodes(self):
        there = (node for node in self._configs if self._fates.get((self._next, SITES[node - 1])) is not ABSENT)
        return [NodeInfo(node_id=node, name=SITES[node - 1]) for node in there]

    def push_messages(self, messages):
        messages = list(messages)
        for message in messages:
            self._round = message.content["config"]["server-round"]
            self._next = self._round + 1
        return super().push_messages(messages)

    def pull_messages(self, message_ids):
        silent = {key for key, message in self._pending.items() if self._fate(message) is SILENT}
        return super().pull_messages([key for key in message_ids if key not in silent])

    def _fate(self, message):
        return self._fates.get((self._round, SITES[message.metadata.dst_node_id - 1]))

    def _answer(self, message, context):
        fate = self._fate(message)
        if isinstance(fate, Error):
            return Message(fate, reply_to=message)
        reply = hostile.app(message, context)
        reply = fate(message, reply) if fate else reply
        self.sent[self._round, context.node_config["name"]] = ArrayRecord(dict(reply.content["arrays"].items()))
        return reply


def boast(task, reply):
    return hostile.lie(task, reply, lambda _, honest: honest, MAX_EXAMPLES)


@pytest.fixture(scope="module")
def disturbed(tmp_path_factory):
    """A run of three rounds whose server is started again before the last: its folder, and what the sites sent."""
    place = tmp_path_factory.mktemp("participation")
    folders = [generate(place / site, images=n, seed=n) for site, n in zip(SITES, IMAGES, strict=True)]
    fates = {
        (1, "site-a"): SILENT, (1, "site-b"): VANISHED, (1, "site-e"): boast,
        (2, "site-a"): ABSENT, (2, "site-b"): BROKEN, (2, "site-c"): hostile.huge,
        (3, "site-a"): ABSENT,
    }  # fmt: skip
    settings = {
        "data": {"clients": "own"}, "prune": {"criterion": "none"},
        "run": {"output_dir": str(place), "name": "run", "keep_checkpoints": 9},
    }  # fmt: skip
    federation = {"rounds": 2, "quorum": 3, "grace": 2.0, "norm_bound": 3.0, "max_weight_ratio": 1.5, "rollback": 99.0}
    grid = Hospitals(folders, fates, 4001)
    folder = run_here(tiny_config(federation=federation, **settings), grid=grid)
    again, checkpoint = open_checkpoint(folder.path)
    later = Hospitals(folders, fates, 4002, first=3)
    FederatedRun(later, tiny_config(federation=federation | {"rounds": 3}, **settings), again, checkpoint).run()
    return folder, grid.sent | later.sent


def test_every_site_has_its_outcome_in_every_round(disturbed):
    folder, _ = disturbed
    rounds = read_participation(folder.path)
    assert [{site: share.outcome for site, share in row.shares.items()} for row in rounds] == [
        {"site-a": "late", "site-b": "missing", "site-c": "in", "site-d": "in", "site-e": "in"},
        {"site-a": "missing", "site-b": "failed", "site-c": "refused", "site-d": "unused", "site-e": "unused"},
        {"site-a": "missing", "site-b": "in", "site-c": "in", "site-d": "in", "site-e": "in"},
    ]


def test_what_the_record_calls_in_is_what_the_model_is_made_of(disturbed):
    """The mean by hand, of what left the sites, with the weights of the record."""
    folder, sent = disturbed
    for row in (read_participation(folder.path)[0], read_participation(folder.path)[2]):
        model = read_checkpoint(folder.path / "checkpoints" / f"round-{row.number:04d}")
        expected = layout(model.architecture)
        inside = {site: share.weight for site, share in row.shares.items() if share.outcome == "in"}
        updates = {site: from_record(sent[row.number, site], expected) for site in inside}
        for name, tensor in model.weights.items():
            if tensor.is_floating_point():
                total = sum(weight * updates[site][name].astype(np.float64) for site, weight in inside.items())
                np.testing.assert_allclose(tensor.numpy(), total / sum(inside.values()), rtol=1e-6, atol=1e-7)
        assert set(inside) == {site for number, site in sent if number == row.number}, "nobody else sent anything"


def test_weights_and_limits_are_those_of_the_sites_images(disturbed):
    """Nobody weighs more than 1.5 times the middle one of the round (the lower one of an even number)."""
    folder, _ = disturbed
    records = folder.records()
    images = {site: records[3]["nodes"][site]["num-examples"] for site in SITES[1:]}
    assert images["site-b"] < images["site-c"] < images["site-d"] < images["site-e"]
    first, second, third = read_participation(folder.path)
    limit = int(1.5 * images["site-d"])
    assert {site: share.weight for site, share in first.shares.items()} == {
        "site-a": 0, "site-b": 0, "site-c": images["site-c"], "site-d": images["site-d"], "site-e": limit,
    }  # fmt: skip
    assert (first.shares["site-e"].examples, first.shares["site-e"].word) == (MAX_EXAMPLES, "in*")
    assert not any(share.weight for share in second.shares.values()), "the round was not accepted"
    assert "quorum" in second.kept
    assert (first.kept, third.kept) == ("", "")
    assert {site: share.weight for site, share in third.shares.items()} == {"site-a": 0, **images}


def test_a_site_that_was_gone_when_the_server_came_back_is_named_as_missing(disturbed):
    """The new server has never seen it; it was: not a word of it in any later round."""
    folder, _ = disturbed
    assert folder.records()[3]["failed"] == {"site-a": "not connected"}


def test_the_attempt_of_flower_that_finished_a_round_is_on_record(disturbed):
    folder, _ = disturbed
    assert [row.flower_run for row in read_participation(folder.path)] == [4001, 4001, 4002]
    assert read_flower_runs(folder.path) == [(0, 4001), (3, 4002)]


def test_of_two_attempts_at_a_round_the_later_one_finished_it(disturbed, tmp_path):
    folder, _ = disturbed
    (tmp_path / "metrics.jsonl").write_bytes((folder.path / "metrics.jsonl").read_bytes())
    starts = [{"round": 0, "flower_run": 7}, {"round": 2}, {"round": 2, "flower_run": 8}, {"round": 2, "flower_run": 9}]
    (tmp_path / "starts.jsonl").write_text("".join(json.dumps(line) + "\n" for line in starts))
    assert [row.flower_run for row in read_participation(tmp_path)] == [7, 9, 9]


def test_the_command_shows_a_table_for_people(disturbed):
    folder, _ = disturbed
    done = CliRunner().invoke(command, ["participation", str(folder.path)], env={"COLUMNS": "80"})
    assert done.exit_code == 0, done.output
    assert done.stdout.splitlines()[:4] == [
        "  round site-a  site-b  site-c  site-d  site-e",
        "      1 late    missing in      in      in*",
        "      2 missing failed  refused unused  unused",
        "      3 missing in      in      in      in",
    ]
    assert max(len(line) for line in done.stdout.splitlines()) <= 80
    text = " ".join(done.stdout.split())
    for words in (
        "round 2 was not accepted: too few good answers for federation.quorum",
        "site-a, rounds 2-3, missing: not connected",
        "site-b, round 1, missing: the node is gone",
        "site-b, round 2, failed: node site-b: no room on its disk",
        "site-c, round 2, refused: its update",
        "rounds 1-2: run 4001 in the sites' audit logs",
        "round 3: run 4002 in the sites' audit logs",
    ):
        assert words in text
    assert "site-d," not in text, "nothing is to be said of it"


def test_the_summary_of_a_run_says_who_is_not_in_every_round(disturbed):
    folder, _ = disturbed
    summary = json.loads((folder.path / "summary.json").read_text())
    assert summary["participation"] == {
        "site-a": {"rounds": 3, "in": 0}, "site-b": {"rounds": 3, "in": 1}, "site-c": {"rounds": 3, "in": 2},
        "site-d": {"rounds": 3, "in": 2}, "site-e": {"rounds": 3, "in": 2},
    }  # fmt: skip
    text = " ".join(summary_text(summary, folder.path).split())
    assert "not in every round: site-a (0 of 3), site-b (1 of 3)," in text
    whole = summary | {"participation": {"site-a": {"rounds": 3, "in": 3}, "site-b": {"rounds": 1, "in": 1}}}
    assert "not in every round" not in summary_text(whole, folder.path)


def test_the_command_gives_programs_the_same(disturbed):
    folder, _ = disturbed
    found = json.loads(CliRunner().invoke(command, ["participation", str(folder.path), "--json"]).stdout)
    assert found["sites"] == list(SITES)
    assert [row["accepted"] for row in found["rounds"]] == [True, False, True]
    assert [row["flower_run"] for row in found["rounds"]] == [4001, 4001, 4002]
    assert found["rounds"][0]["sites"]["site-b"] == {
        "outcome": "missing", "weight": 0, "examples": None, "reason": "the node is gone",
    }  # fmt: skip
    assert found["rounds"][0]["sites"]["site-e"]["examples"] == MAX_EXAMPLES


def test_the_record_of_an_earlier_version_is_refused_by_name(tmp_path):
    (tmp_path / "metrics.jsonl").write_text('{"round": 0, "nodes": {}}\n')
    with pytest.raises(RunFolderError, match=r"round 0 of .*earlier version.*nodes"):
        read_participation(tmp_path)


def test_a_folder_without_a_record_is_refused_by_name(tmp_path):
    done = CliRunner().invoke(command, ["participation", str(tmp_path)])
    assert done.exit_code == 2
    assert "is no run folder" in done.stderr


def test_rounds_alike_are_one_row_and_sites_without_room_follow_below():
    both = {"hospital-one": Share("in", 3), "hospital-two": Share("in", 4), "hospital-three": Share("in", 5)}
    rounds = [RoundShares(n, None, "", both) for n in (1, 2, 3)]
    rounds.append(RoundShares(4, None, "", {"hospital-one": Share("in", 3), "hospital-three": Share("in", 5)}))
    lines = participation_text(rounds, 40).splitlines()
    assert lines[:8] == [
        "  round hospital-one hospital-three",
        "    1-4 in           in",
        "",
        "  round hospital-two",
        "    1-3 in",
        "      4 -",
        "",
        "in: its update is in the model of that",
    ]


def test_a_run_that_has_no_round_yet_says_so():
    assert participation_text([], 80) == "no round with sites is finished yet"


def test_what_a_site_evaluates_does_not_make_up_for_what_it_did_not_train(tmp_path, generated):
    """It answered the second phase of the round: it was counted among those that are in it."""

    def app(message, context):
        if context.node_config["partition-id"] == 1 and message.metadata.message_type == "train":
            return Message(BROKEN, reply_to=message)
        return hostile.app(message, context)

    class Registered(LocalGrid):
        def get_nodes(self):
            return [NodeInfo(node_id=node, name=f"partition-{node - 1}") for node in self._configs]

    federation = {"rounds": 1, "evaluate_clients": True}
    config = tiny_config(federation=federation, run={"output_dir": str(tmp_path)})
    record = run_here(config, grid=Registered(app, 3)).records()[1]
    assert (record["clients_ok"], record["clients_failed"]) == (2, 1)
    assert record["participation"] == {"partition-0": "in", "partition-1": "failed", "partition-2": "in"}
    assert set(record["weights"]) == {"partition-0", "partition-2"}
